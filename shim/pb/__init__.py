"""Generated from proto/ by hack/gen-proto; never edited."""

SOURCES = "956bd9ff9a24fc3cf668925047924e6a11acf5b40c412686780026c0135b5e5f"
