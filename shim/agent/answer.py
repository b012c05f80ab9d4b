"""The agent's answers, measured before they are parsed.

They come from the guest. For each message within a message, which two bytes make, betterproto takes up to 0.12 ms: an
answer of 4 MiB, which ttrpc allows, would keep the shim from everything else for minutes.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import betterproto

from shim import wire
from shim.errors import ResourceExhausted
from shim.ttrpc.channel import Channel, Stream

# The largest are of ReadStdout, which is never asked for more than 256 KiB.
MAX_ANSWER = 512 << 10
# Messages in one answer, all levels together. Statistics have some hundred, ListProcesses one for each process.
MAX_MESSAGES = 4096

M = TypeVar("M", bound=betterproto.Message)


class Answers:
    """Stands between the generated stubs and their channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def request(
        self, name: str, cardinality: Any, request_type: type[Any], reply_type: type[Any], **options: Any
    ) -> Stream:
        checked: Any = _Checked(reply_type)
        return self._channel.request(name, cardinality, request_type, checked, **options)


class _Checked:
    """As `kind`, for whoever wants to parse one."""

    def __init__(self, kind: type[betterproto.Message]) -> None:
        self._kind = kind

    def FromString(self, data: bytes) -> betterproto.Message:
        return parse(self._kind, data)


def parse(kind: type[M], data: bytes) -> M:
    """ResourceExhausted for what would take too long, InvalidArgument for what is no message."""
    messages: list[tuple[type[betterproto.Message], bytes]] = [(kind, data)]
    for outer, content in messages:  # which grows meanwhile
        nested = _nested(outer)
        for number, inner in wire.contents(content):
            if number in nested:
                messages.append((nested[number], inner))
                if len(messages) > MAX_MESSAGES:
                    raise ResourceExhausted(f"more than {MAX_MESSAGES} messages in one")
    return kind.FromString(data)


@cache
def _nested(kind: type[betterproto.Message]) -> dict[int, type[betterproto.Message]]:
    """The fields that hold messages, a map's entries among them."""
    table: Any = kind()._betterproto  # type: ignore[arg-type]
    return {
        meta.number: table.cls_by_field[name]
        for name, meta in table.meta_by_field_name.items()
        if meta.proto_type in (betterproto.TYPE_MESSAGE, betterproto.TYPE_MAP)
    }
