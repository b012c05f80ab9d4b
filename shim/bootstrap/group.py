"""Which sandbox a container belongs to, by the annotations of its OCI spec."""

from __future__ import annotations

from shim.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Set by whoever wants several containers in one shim (containerd's runc shim defines it): first choice.
_EXPLICIT = "io.containerd.runc.v2.group"
# Set by containerd's CRI on a pod's sandbox (its own id) and on each of its containers.
_CRI = "io.kubernetes.cri.sandbox-id"


class Group:
    """`id` is the sandbox's id. `named` says that an annotation other than CRI's chose it, so that perhaps no
    container has this id."""

    __slots__ = ("id", "named")

    def __init__(self, id: str, *, named: bool = False) -> None:
        self.id, self.named = id, named


def group_of(bundle: str, own_id: str) -> Group:
    """The group of the container in `bundle`; its own without annotation or config.json (a sandbox of the
    Sandbox API, or a bundle that is gone). InvalidArgument for a config.json that makes no sense."""
    path = f"{bundle}/config.json"
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return Group(own_id)
    # Most specs outside of Kubernetes name neither key and need no parsing. A key could also be spelled with
    # \u escapes, which nobody does.
    if not any(needle in data for needle in (_EXPLICIT.encode(), _CRI.encode(), b"\\u00")):
        return Group(own_id)
    try:
        annotations = _parse_json(data.decode()).get("annotations") or {}
        explicit, cri = annotations.get(_EXPLICIT), annotations.get(_CRI)
    except (ValueError, AttributeError, RecursionError) as error:
        raise InvalidArgument(f"{path}: not an OCI spec: {error}") from error
    for value in (explicit, cri):
        if value is not None and not isinstance(value, str):
            raise InvalidArgument(f"{path}: the group annotation {value!r} is not a string")
    if explicit:
        return Group(explicit, named=explicit != cri)
    return Group(cri or own_id)


class _Strict:
    """What json.JSONDecoder would set for the scanner it is made of."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float = parse_constant = float
    parse_int = int


def _parse_json(text: str) -> Any:
    """`json.loads`, by the C scanner at its heart: the rest of the package takes 8 ms to import, for the sake
    of regular expressions that the scanner does not use. ValueError for what is no JSON."""
    try:
        from _json import make_scanner
    except ImportError:
        from json import loads

        return loads(text)
    try:
        return make_scanner(_Strict)(text.strip(), 0)[0]  # type: ignore[arg-type]
    except StopIteration as error:
        raise ValueError("no JSON value") from error
