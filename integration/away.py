"""Readers who are away for long, while other tests go on."""

from __future__ import annotations

import time

from integration.ctr import Ctr
from integration.exec import Execs, opened, read_exactly

AWAY_S = 60.0


class Absence:
    """Two processes with 8 MiB and with 2 MiB to say, whose readers leave after 64 KiB. The second has ended and
    is deleted before its reader is back; half of what it said is still in the guest then. They have a sandbox of
    their own, up to `end`."""

    def __init__(self, ctr: Ctr, container: str) -> None:
        self._ctr, self._container = ctr, container
        execs = Execs(ctr, container)
        self.began = time.monotonic()
        self.long = execs.new("cat", "/payload")
        self.short = execs.new("head", "-c", str(2 << 20), "/payload")
        self.heads = []
        for run in (self.long, self.short):
            with opened(run.reader()) as stdout:
                run.start()
                self.heads.append(read_exactly(stdout, 65536))

    def end_the_short_one(self) -> int:
        code = self.short.wait()
        assert self.short.call("Delete").code == 0
        return code

    def over(self) -> None:
        time.sleep(max(0.0, self.began + AWAY_S - time.monotonic()))

    def end(self) -> None:
        self._ctr.remove(self._container)
