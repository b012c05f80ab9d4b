"""Readers who are away for a minute, while other tests go on."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from integration.ctr import Ctr
from integration.exec import Exec, Execs, opened, read_all, read_exactly

AWAY_S = 60.0


class Absence:
    """Two processes with 8 MiB and with 2 MiB to say, whose readers leave after 64 KiB. The second has ended and
    is deleted before its reader is back; half of what it said is still in the guest then. They have a sandbox of
    their own, up to `end`. `long_text` and `short_text` wait for the reader, who is back after `AWAY_S`."""

    def __init__(self, ctr: Ctr, container: str) -> None:
        self._ctr, self._container = ctr, container
        execs = Execs(ctr, container)
        self.long = execs.new("cat", "/payload")
        self.short = execs.new("head", "-c", str(2 << 20), "/payload")
        self.heads = []
        for run in (self.long, self.short):
            with opened(run.reader()) as stdout:
                run.start()
                self.heads.append(read_exactly(stdout, 65536))
        readers = ThreadPoolExecutor(2)
        self.long_text, self.short_text = (readers.submit(come_back, run) for run in (self.long, self.short))
        readers.shutdown(wait=False)

    def end_the_short_one(self) -> int:
        code = self.short.wait()
        assert self.short.call("Delete").code == 0
        return code

    def end(self) -> None:
        self._ctr.remove(self._container)


def come_back(run: Exec) -> bytes:
    time.sleep(AWAY_S)
    with opened(run.reader()) as stdout:
        return read_all(stdout)
