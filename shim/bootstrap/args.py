"""containerd's command line: Go `flag` syntax, by hand.

    -namespace NS -address SOCKET -publish-binary PATH -id ID [-bundle DIR] [-debug] [start|delete]
    -info | -v

One or two dashes are the same; a value is the next argument or follows "="; a boolean takes a value only with
"="; flags end at the first other argument (the action) or at "--". argparse would take prefixes of names (-i)
and print usage to where containerd reads the reply.
"""

from __future__ import annotations

from shim.errors import InvalidArgument

_STRINGS = {"namespace", "address", "publish-binary", "id", "bundle", "socket", "debug-socket"}
_BOOLEANS = {"debug", "info", "v", "version"}
# strconv.ParseBool
_TRUE, _FALSE = {"1", "t", "T", "true", "TRUE", "True"}, {"0", "f", "F", "false", "FALSE", "False"}


class Call:
    """One call of the binary. `action` is "" when there is none: run the daemon.

    `address` is the path of containerd's gRPC socket; `bundle` is given for delete only.
    """

    __slots__ = (
        "action",
        "address",
        "bundle",
        "debug",
        "id",
        "info",
        "namespace",
        "publish_binary",
        "version",
    )

    def __init__(self, strings: dict[str, str], booleans: dict[str, bool], action: str) -> None:
        self.namespace, self.id = strings.get("namespace", ""), strings.get("id", "")
        self.address, self.bundle = strings.get("address", ""), strings.get("bundle", "")
        self.publish_binary = strings.get("publish-binary", "")
        self.debug, self.info = booleans.get("debug", False), booleans.get("info", False)
        self.version = booleans.get("v", False) or booleans.get("version", False)
        self.action = action


def parse(argv: list[str]) -> Call:
    """The call that `argv` (without the program's name) makes; InvalidArgument names what is wrong."""
    strings: dict[str, str] = {}
    booleans: dict[str, bool] = {}
    rest = iter(argv)
    action = ""
    for argument in rest:
        if argument in ("--", "-") or not argument.startswith("-"):
            action = next(rest, "") if argument == "--" else argument
            break
        name, equals, value = argument[2 if argument.startswith("--") else 1 :].partition("=")
        if name in _BOOLEANS:
            booleans[name] = _boolean(name, value) if equals else True
        elif name in _STRINGS:
            given = value if equals else next(rest, None)
            if given is None:
                raise InvalidArgument(f"flag needs an argument: -{name}")
            strings[name] = given
        else:
            raise InvalidArgument(f"flag provided but not defined: {argument}")
    if action not in ("", "start", "delete"):
        raise InvalidArgument(f"unknown action {action!r}: want start or delete")
    call = Call(strings, booleans, action)
    if not (call.info or call.version):
        for name, text in (("namespace", call.namespace), ("id", call.id)):
            if not text or "\0" in text:
                raise InvalidArgument(f"flag -{name} is required; it is containerd that runs this program")
    return call


def _boolean(name: str, value: str) -> bool:
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise InvalidArgument(f"invalid boolean value {value!r} for -{name}")
