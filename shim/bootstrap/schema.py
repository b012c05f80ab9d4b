"""Generated from proto/ by hack/gen-proto; never edited. shim/wire.py describes the form."""

SOURCES = "602dff4aeba2b8726eed8181a5621de15af845dfad3cd29119c930514647ac2e"

MESSAGES: dict[str, dict[int, tuple[str, ...]]] = {
    "containerd.runtime.bootstrap.v1.BootstrapParams": {
        1: ("instance_id", "string"),
        2: ("namespace", "string"),
        3: ("log_level", "enum"),
        4: ("containerd_version", "string"),
        5: ("containerd_ttrpc_address", "string"),
        6: ("containerd_grpc_address", "string"),
        7: ("containerd_binary", "string"),
        8: ("extensions", "containerd.runtime.bootstrap.v1.Extension", "repeated"),
        9: ("socket_dir", "string", "optional"),
    },
    "containerd.runtime.bootstrap.v1.BootstrapResult": {
        1: ("version", "int32"),
        2: ("address", "string"),
        3: ("protocol", "string"),
        4: ("capabilities", "enum", "repeated"),
        5: ("metadata", "string", "map", "string"),
    },
    "containerd.runtime.bootstrap.v1.Extension": {
        1: ("value", "google.protobuf.Any"),
    },
    "containerd.task.v2.DeleteResponse": {
        1: ("pid", "uint32"),
        2: ("exit_status", "uint32"),
        3: ("exited_at", "google.protobuf.Timestamp"),
    },
    "containerd.types.RuntimeInfo": {
        1: ("name", "string"),
        2: ("version", "containerd.types.RuntimeVersion"),
        3: ("options", "google.protobuf.Any"),
        4: ("features", "google.protobuf.Any"),
        5: ("annotations", "string", "map", "string"),
    },
    "containerd.types.RuntimeRequest": {
        1: ("runtime_path", "string"),
        2: ("options", "google.protobuf.Any"),
    },
    "containerd.types.RuntimeVersion": {
        1: ("version", "string"),
        2: ("revision", "string"),
    },
    "google.protobuf.Any": {
        1: ("type_url", "string"),
        2: ("value", "bytes"),
    },
    "google.protobuf.Timestamp": {
        1: ("seconds", "int64"),
        2: ("nanos", "int32"),
    },
    "runtimeoptions.v1.Options": {
        1: ("type_url", "string"),
        2: ("config_path", "string"),
        3: ("config_body", "bytes"),
    },
}
