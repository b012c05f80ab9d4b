"""Generated from proto/ by hack/gen-proto; never edited. shim/wire.py describes the form."""

SOURCES = "1ddf34d317f264e3bc1c9dcd68e5ffde11587aed75818ade999f4f28b8764a18"

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
