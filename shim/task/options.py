"""The runtime options of a Create. containerd sends them to `start` as well, by which the sandbox was set up."""

from __future__ import annotations

from betterproto.lib.google.protobuf import Any as AnyMessage

from shim.errors import FailedPrecondition, InvalidArgument
from shim.pb.runtimeoptions import v1
from shim.value import Value

_OURS = "runtimeoptions.v1.Options"


class RuntimeOptions(Value):
    """Of `runtimeoptions.v1.Options`; "" is "not given"."""

    config_path: str = ""
    config_body: str = ""


NO_OPTIONS = RuntimeOptions()


def runtime_options(message: AnyMessage) -> RuntimeOptions:
    """None given if the message is empty or of another runtime, which is normal. InvalidArgument if it is no
    message."""
    if message.type_url.rpartition("/")[2] != _OURS:
        return NO_OPTIONS
    try:
        options = v1.Options.FromString(message.value)
        return RuntimeOptions(options.config_path, options.config_body.decode())
    except Exception as error:  # whatever a decoder raises, the bytes were at fault
        raise InvalidArgument(f"runtime options: {error}") from error


def check_options(message: AnyMessage, given: RuntimeOptions) -> None:
    """FailedPrecondition for settings that the sandbox was not set up with, since its VM boots already."""
    asked = runtime_options(message)
    for name in ("config_path", "config_body"):
        wanted, used = getattr(asked, name), getattr(given, name)
        if wanted and wanted != used:
            raise FailedPrecondition(
                f"runtime option {name} is {wanted!r} in Create and was {used!r} at the start of the shim"
            )
