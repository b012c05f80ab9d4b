"""Kernel parameters that a spec sets for a container.

Those of the network are the pod's: its network is the guest's own, of which no container has a namespace, and crun
would refuse to set them without one. All others are left to crun, which knows which belong to a namespace.
"""

from __future__ import annotations

from shim import errors
from shim.guest import syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ROOT = "/proc/sys"
_SWAPPED = str.maketrans("./", "/.")


def set_of_network(spec: dict[str, Any], root: str = ROOT) -> None:
    """Set the `net.*` parameters among `linux.sysctl` and take them out. InvalidArgument names one that the
    kernel does not have or does not take."""
    parameters: dict[str, str] = spec["linux"].get("sysctl", {})
    for name in [name for name in parameters if name.replace("/", ".").startswith("net.")]:
        value = parameters.pop(name)
        # As sysctl(8): whichever of "." and "/" comes first parts the names, the other is a character of one.
        relative = name if "/" in name.partition(".")[0] else name.translate(_SWAPPED)
        if ".." in relative.split("/") or "\0" in relative:
            raise errors.InvalidArgument(f"sysctl {name!r} is no kernel parameter")
        try:
            syscall.set_value(f"{root}/{relative}", value)
        except OSError as error:
            raise errors.InvalidArgument(f"sysctl {name} = {value}: {error.strerror}") from error
