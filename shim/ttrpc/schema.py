"""Generated from proto/ by hack/gen-proto; never edited. shim/wire.py describes the form."""

SOURCES = "602dff4aeba2b8726eed8181a5621de15af845dfad3cd29119c930514647ac2e"

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
