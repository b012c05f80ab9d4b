"""vhost-user, the backend's side: how QEMU hands over guest RAM and rings.

    | request u32 | flags u32: version 1, reply 4, need reply 8 | size u32 | payload: size bytes |

Descriptors travel beside the first byte of a message. `Assembler` says how many bytes to read next, never
more than the rest of one message, so that descriptors cannot be taken for those of another one.

`FrontEnd` knows the requests and their rules, and turns them into calls of a `Target`, the device. It owns no
descriptor: what the target wants to keep it duplicates or takes out of the list; the rest is the caller's
to close.

The front end is QEMU and trusted, so there is no way on after nonsense: `ProtocolFault` ends the device.
But what a guest can cause through QEMU (rings at odd places) is the target's to survive.

Source: QEMU docs/interop/vhost-user.rst.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object


class Request:
    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24


F_INDIRECT_DESC = 1 << 28
F_EVENT_IDX = 1 << 29
F_PROTOCOL_FEATURES = 1 << 30
F_VERSION_1 = 1 << 32
FEATURES = F_VERSION_1 | F_PROTOCOL_FEATURES | F_EVENT_IDX | F_INDIRECT_DESC

PF_MQ = 1 << 0
PF_REPLY_ACK = 1 << 3
PF_CONFIG = 1 << 9
PROTOCOL_FEATURES = PF_MQ | PF_REPLY_ACK | PF_CONFIG

VERSION, VERSION_MASK, REPLY, NEED_REPLY = 1, 3, 4, 8
VRING_NOFD = 0x100
QUEUES = 3
MAX_PAYLOAD = 4096
MAX_REGIONS = 8
MAX_RING = 32768

HEAD = Struct("<III")
U64 = Struct("<Q")
PAIR = Struct("<II")
ADDRESS = Struct("<IIQQQQ")
REGION = Struct("<QQQQ")


class ProtocolFault(Exception):
    """The front end does not speak vhost-user as we know it."""


class Refused(Exception):
    """The target cannot do what was asked; the front end is told if it wants to know."""


class Message:
    __slots__ = ("body", "fds", "flags", "request")

    def __init__(self, request: int, flags: int, body: bytes, fds: list[int]) -> None:
        self.request, self.flags, self.body, self.fds = request, flags, body, fds


class Assembler:
    """Puts messages together from what arrives."""

    __slots__ = ("_buffer", "_fds", "_size")

    def __init__(self) -> None:
        self._buffer, self._size = b"", HEAD.size
        self._fds: list[int] = []

    def wanted(self) -> int:
        """How many bytes to read next, at most."""
        return self._size - len(self._buffer)

    def is_idle(self) -> bool:
        """Between two messages: the front end may leave."""
        return not self._buffer

    def feed(self, data: bytes, fds: list[int]) -> Message | None:
        """Take up to `wanted()` bytes; the message when it is complete. Raises `ProtocolFault`."""
        self._buffer += data
        self._fds += fds
        if len(self._buffer) < self._size:
            return None
        request, flags, size = HEAD.unpack_from(self._buffer)
        if flags & VERSION_MASK != VERSION or flags & REPLY or size > MAX_PAYLOAD:
            raise ProtocolFault(f"request {request} with flags {flags:#x} and {size} bytes")
        self._size = HEAD.size + size
        if len(self._buffer) < self._size:
            return None
        message = Message(request, flags, self._buffer[HEAD.size :], self._fds)
        self._buffer, self._size, self._fds = b"", HEAD.size, []
        return message

    def take_fds(self) -> list[int]:
        """The descriptors of an unfinished message, to be closed."""
        fds, self._fds = self._fds, []
        return fds


class Target(Protocol):
    """What the requests act on. Every method may raise `Refused`."""

    def set_features(self, features: int) -> None: ...

    def set_memory(self, regions: list[tuple[int, int, int, int, int]]) -> None:
        """`(gpa, size, uva, offset, fd)` each; the descriptors are not kept."""

    def set_size(self, queue: int, size: int) -> None: ...

    def set_base(self, queue: int, next_avail: int) -> None: ...

    def set_address(self, queue: int, table: int, used: int, avail: int) -> None:
        """In the front end's virtual addresses."""

    def set_kick(self, queue: int, fd: int) -> None:
        """The target owns `fd` from here on, here and below; -1 for none."""

    def set_call(self, queue: int, fd: int) -> None: ...

    def set_enabled(self, queue: int, enabled: bool) -> None: ...

    def stop(self, queue: int) -> int:
        """Stop using the ring; where it was: the next available index."""


class FrontEnd:
    """Answers the front end of one device whose config space is `config`."""

    __slots__ = ("_config", "_protocol_features", "_target")

    def __init__(self, target: Target, config: bytes) -> None:
        self._target, self._config = target, config
        self._protocol_features = 0

    def on_message(self, message: Message) -> bytes | None:
        """Do what `message` asks; the bytes to answer, if any.

        A descriptor that the target took is removed from `message.fds`. Raises `ProtocolFault`.
        """
        failed = False
        try:
            body = self._answer(message)
        except StructError as error:
            raise ProtocolFault(f"request {message.request} is too short: {error}") from error
        except Refused:
            body, failed = None, True
        if body is None and message.flags & NEED_REPLY and self._protocol_features & PF_REPLY_ACK:
            body = U64.pack(failed)
        if body is None:
            return None
        return HEAD.pack(message.request, VERSION | REPLY, len(body)) + body

    def _answer(self, message: Message) -> bytes | None:
        target, body = self._target, message.body
        match message.request:
            case Request.GET_FEATURES:
                return U64.pack(FEATURES)
            case Request.SET_FEATURES:
                target.set_features(U64.unpack_from(body)[0] & FEATURES)
            case Request.GET_PROTOCOL_FEATURES:
                return U64.pack(PROTOCOL_FEATURES)
            case Request.SET_PROTOCOL_FEATURES:
                self._protocol_features = U64.unpack_from(body)[0] & PROTOCOL_FEATURES
            case Request.GET_QUEUE_NUM:
                return U64.pack(QUEUES)
            case Request.GET_CONFIG:
                return self._read_config(body)
            case Request.SET_MEM_TABLE:
                target.set_memory(_regions(message))
            case Request.SET_OWNER | Request.RESET_OWNER:  # there is one front end and never another
                pass
            case _:
                return self._answer_ring(message)
        return None

    def _answer_ring(self, message: Message) -> bytes | None:
        target, body = self._target, message.body
        match message.request:
            case Request.SET_VRING_NUM:
                queue, size = _queue_and_value(body)
                if not 0 < size <= MAX_RING or size & (size - 1):
                    raise ProtocolFault(f"ring of {size} descriptors")
                target.set_size(queue, size)
            case Request.SET_VRING_ADDR:
                queue, _, table, used, avail, _ = ADDRESS.unpack_from(body)
                target.set_address(_queue(queue), table, used, avail)
            case Request.SET_VRING_BASE:
                queue, base = _queue_and_value(body)
                target.set_base(queue, base & 0xFFFF)
            case Request.GET_VRING_BASE:
                queue, _ = _queue_and_value(body)
                return PAIR.pack(queue, target.stop(queue))
            case Request.SET_VRING_KICK:
                target.set_kick(*_queue_and_fd(message))
            case Request.SET_VRING_CALL:
                target.set_call(*_queue_and_fd(message))
            case Request.SET_VRING_ERR:  # we have nothing to say on it
                pass
            case Request.SET_VRING_ENABLE:
                queue, enabled = _queue_and_value(body)
                target.set_enabled(queue, bool(enabled))
            case _:
                raise Refused
        return None

    def _read_config(self, body: bytes) -> bytes:
        offset, size, flags = HEAD.unpack_from(body)
        if size > 256 or len(body) < HEAD.size + size:
            raise ProtocolFault(f"config of {size} bytes at {offset}")
        return HEAD.pack(offset, size, flags) + self._config[offset : offset + size].ljust(size, b"\0")


def _queue(index: int) -> int:
    if index >= QUEUES:
        raise ProtocolFault(f"queue {index}")
    return index


def _queue_and_value(body: bytes) -> tuple[int, int]:
    queue, value = PAIR.unpack_from(body)
    return _queue(queue), value


def _queue_and_fd(message: Message) -> tuple[int, int]:
    value: int = U64.unpack_from(message.body)[0]
    queue = _queue(value & 0xFF)
    if value & VRING_NOFD:
        return queue, -1
    if len(message.fds) != 1:
        raise ProtocolFault(f"request {message.request} with {len(message.fds)} descriptors")
    return queue, message.fds.pop()


def _regions(message: Message) -> list[tuple[int, int, int, int, int]]:
    count, _ = PAIR.unpack_from(message.body)
    if count > MAX_REGIONS or count != len(message.fds):
        raise ProtocolFault(f"{count} memory regions with {len(message.fds)} descriptors")
    return [
        (*REGION.unpack_from(message.body, PAIR.size + REGION.size * i), message.fds[i]) for i in range(count)
    ]
