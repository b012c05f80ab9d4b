"""The device's loop: front end, clients, rings and host descriptors in one thread, and its orderly end.

The device ends when the front end hangs up (QEMU quit or crashed), on SIGTERM and SIGINT, and when the front
end talks nonsense. Then nothing new is begun, but bytes taken from the guest still go to the host, as long as
some host descriptor takes some at least every ten seconds; each stream is told DRAINED when its last byte is
there. A second signal ends at once.
"""

from __future__ import annotations

import _socket
import os
from time import monotonic

from .device import Device
from .hub import Hub
from .listener import Listener, receive_fds
from .muxer import Muxer
from .poller import Poller
from .vhost_user import Assembler, FrontEnd, ProtocolFault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..log import Log

FLUSH_TIMEOUT_S = 10.0
TICK_S = 1.0
# exit codes; 2 is for wrong arguments
ENDED, FAILED = 0, 1


class Backend:
    """One device. `front_fd` and `listen_fd` are owned; writing to the eventfd `stop_fd` ends `run`."""

    def __init__(
        self, front_fd: int, listen_fd: int, stop_fd: int, *, path: str, guest_cid: int, log: Log
    ) -> None:
        self._log = log
        self._poller = Poller()
        self._hub = Hub(self._poller, Muxer(guest_cid), path, log)
        self._device = Device(self._poller, self._hub, guest_cid, log)
        self._listener = Listener(self._poller, self._hub, listen_fd, log)
        self._front = FrontEnd(self._device, guest_cid.to_bytes(8, "little"))
        self._assembler = Assembler()
        self._front_socket = _socket.socket(fileno=front_fd)
        self._front_socket.setblocking(False)
        self._poller.add(front_fd, self._on_front)
        self._stop_fd = stop_fd
        self._poller.add(stop_fd, self._on_stop)
        self._ending = False
        self._give_up_at = 0.0
        self._left = 0
        self._exit_code = ENDED

    def run(self) -> int:
        """Until the end; the exit code."""
        while not (self._ending and self._is_flushed()):
            self._poller.poll(self._timeout())
            if not self._ending:
                self._device.serve()
                if self._has_deadlines():
                    now = monotonic()
                    self._listener.sweep(now)
                    self._hub.sweep(now)
        return self._exit_code

    def _has_deadlines(self) -> bool:
        return self._listener.has_deadlines() or bool(self._hub.requested)

    def _timeout(self) -> float | None:
        if self._ending:
            return TICK_S
        if self._device.has_work():
            return 0.0
        return TICK_S if self._has_deadlines() else None

    # ---- the front end ---------------------------------------------------------------------------

    def _on_front(self, _events: int) -> None:
        try:
            while not self._ending:
                try:
                    data, fds, _ = receive_fds(self._front_socket, self._assembler.wanted())
                except BlockingIOError:
                    return
                if data:
                    self._on_data(data, fds)
                elif self._assembler.is_idle():
                    self._end("the front end left")
                else:
                    raise ProtocolFault("the front end left in the middle of a message")
        except ConnectionError as error:
            self._end(f"the front end is lost: {error}")
        except (ProtocolFault, OSError) as error:
            self._exit_code = FAILED
            self._log.error("the front end broke the protocol", error=error)
            self._end("protocol fault")

    def _on_data(self, data: bytes, fds: list[int]) -> None:
        message = self._assembler.feed(data, fds)
        if message is None:
            return
        self._log.debug("front end", request=message.request, size=len(message.body), fds=len(message.fds))
        try:
            answer = self._front.on_message(message)
        finally:
            for fd in message.fds:
                os.close(fd)
        if answer is not None:
            self._front_socket.sendall(answer)

    # ---- the end ---------------------------------------------------------------------------------

    def _on_stop(self, _events: int) -> None:
        os.eventfd_read(self._stop_fd)
        if self._ending:
            self._give_up_at = 0.0
        else:
            self._end("signal")

    def _end(self, why: str) -> None:
        """Begin nothing new. What the guest has put into its ring before it died is still taken."""
        self._log.info("the device ends", why=why)
        self._ending = True
        for fd in self._assembler.take_fds():
            os.close(fd)
        self._poller.remove(self._front_socket.fileno())
        self._front_socket.close()
        self._listener.close()
        self._device.close()
        self._left = -1
        self._give_up_at = monotonic() + FLUSH_TIMEOUT_S

    def _is_flushed(self) -> bool:
        """Is every byte with the host, or is there no hope?"""
        left = sum(len(stream.pending) for stream in self._hub.muxer.draining)
        if left == 0:
            return True
        now = monotonic()
        if left != self._left and self._give_up_at:
            self._left, self._give_up_at = left, now + FLUSH_TIMEOUT_S
        if now < self._give_up_at:
            return False
        self._log.warning("bytes were not delivered", count=left, streams=len(self._hub.muxer.draining))
        return True
