"""Generated from proto/ by hack/gen-proto; never edited. shim/wire.py describes the form."""

SOURCES = "aae4dde9cf37e1eb441845406f6b0f59c530433621cabaad4502910867f0dd99"

MESSAGES: dict[str, dict[int, tuple[str, ...]]] = {
    "google.protobuf.Any": {
        1: ("type_url", "string"),
        2: ("value", "bytes"),
    },
    "google.rpc.Status": {
        1: ("code", "int32"),
        2: ("message", "string"),
        3: ("details", "google.protobuf.Any", "repeated"),
    },
    "ttrpc.KeyValue": {
        1: ("key", "string"),
        2: ("value", "string"),
    },
    "ttrpc.Request": {
        1: ("service", "string"),
        2: ("method", "string"),
        3: ("payload", "bytes"),
        4: ("timeout_nano", "int64"),
        5: ("metadata", "ttrpc.KeyValue", "repeated"),
    },
    "ttrpc.Response": {
        1: ("status", "google.rpc.Status"),
        2: ("payload", "bytes"),
    },
}
