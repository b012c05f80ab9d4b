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
# The network belongs to the guest, not to a container's user namespace, in which being root would thus mean nothing
# to it. So what a pod's network lets its own root do is everybody's: low ports and pings.
_WITH_OWN_IDS = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}
_SWAPPED = str.maketrans("./", "/.")


def set_of_network(spec: dict[str, Any], root: str = ROOT) -> None:
    """Set the `net.*` parameters among `linux.sysctl` and take them out; with a user namespace also
    what it wants. InvalidArgument names one that the kernel does not have or does not take."""
    parameters: dict[str, str] = spec["linux"].get("sysctl", {})
    if any(namespace["type"] == "user" for namespace in spec["linux"].get("namespaces", [])):
        parameters.update({**_WITH_OWN_IDS, **parameters})
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
