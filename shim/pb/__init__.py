"""Generated from proto/ by hack/gen-proto; never edited."""

SOURCES = "1ddf34d317f264e3bc1c9dcd68e5ffde11587aed75818ade999f4f28b8764a18"
