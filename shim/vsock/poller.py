"""epoll with a handler per descriptor."""

from __future__ import annotations

from select import EPOLLET, EPOLLIN, epoll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_EVENTS = 64


class Poller:
    """Calls each descriptor's handler with its events. Descriptors are edge triggered unless asked
    otherwise."""

    __slots__ = ("_epoll", "_fresh", "_handlers")

    def __init__(self) -> None:
        self._epoll = epoll()
        self._handlers: dict[int, Callable[[int], object]] = {}
        # Descriptors registered while a batch of events is handled. The kernel reuses numbers: an event in
        # this batch that bears such a number belongs to a descriptor that has just been closed.
        self._fresh: set[int] = set()

    def add(self, fd: int, handler: Callable[[int], object], events: int = EPOLLIN | EPOLLET) -> None:
        """What is ready already is told by the next `poll`. Raises `PermissionError` for regular files and
        other things that are always ready."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler
        self._fresh.add(fd)

    def remove(self, fd: int) -> None:
        """Call before `fd` is closed. Not being registered is no error."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def poll(self, timeout_s: float | None) -> None:
        """Wait for events, at most `timeout_s`, and handle one batch."""
        fresh, handlers = self._fresh, self._handlers
        fresh.clear()
        for fd, events in self._epoll.poll(timeout_s, MAX_EVENTS):
            handler = handlers.get(fd)
            if handler is not None and fd not in fresh:
                handler(events)
