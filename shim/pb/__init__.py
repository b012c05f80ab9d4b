"""Generated from proto/ by hack/gen-proto; never edited."""

SOURCES = "ea7cf4ce52f34de3866c65a456bfee6f4cb63763ba6f0f038b29acbca7d6c3ed"
