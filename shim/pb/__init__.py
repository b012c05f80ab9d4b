"""Generated from proto/ by hack/gen-proto; never edited."""

SOURCES = "4ead80b8a81d0b81c13bbccbc119ed08d26dbba7528d28213e734078f894c9a2"
