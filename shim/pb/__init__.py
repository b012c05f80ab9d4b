"""Generated from proto/ by hack/gen-proto; never edited."""

SOURCES = "e72f460c55951f18d8c79e2f013b650a1ff79d4080fe6251c7f3c7d970672e8f"
