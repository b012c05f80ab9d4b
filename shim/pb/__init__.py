"""Generated from proto/ by hack/gen-proto; never edited."""

SOURCES = "aae4dde9cf37e1eb441845406f6b0f59c530433621cabaad4502910867f0dd99"
