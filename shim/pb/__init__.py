"""Generated from proto/ by hack/gen-proto; never edited."""

SOURCES = "f2733f236b3eaaa11524b9259381effeccfb0a64ba0c8cc45fafde56627b3f64"
