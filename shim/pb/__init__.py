"""Generated from proto/ by hack/gen-proto; never edited."""

SOURCES = "f7ca10b1fec43ca8d34fac1f2712d28750e6219646c532deba715f16ad64725c"
