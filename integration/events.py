"""containerd's events of tasks, as `ctr events` tells them while something is done."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from integration.ctr import Ctr
from integration.until import until

Event = tuple[str, dict[str, object]]


class Recording:
    """What has been told so far: (topic, fields) each."""

    _marks = itertools.count(1)

    def __init__(self, ctr: Ctr, path: Path) -> None:
        self._ctr, self._path = ctr, path

    def of(self, container: str) -> list[Event]:
        """The events of one container's task."""
        lines = self._path.read_text(errors="replace").splitlines()
        found = (re.search(r" (/tasks/[a-z-]+) (\{.*\})$", line) for line in lines)
        events = [(match[1], json.loads(match[2])) for match in found if match]
        return [(topic, fields) for topic, fields in events if fields.get("container_id") == container]

    def wait_for(self, topic: str, container: str, exec_id: str = "", count: int = 1) -> None:
        """Until so many of a container or of a process in it have been told: the last event comes after the last
        answer."""

        def told() -> bool:
            events = [fields for name, fields in self.of(container) if name == topic]
            return len([fields for fields in events if exec_id in ("", fields.get("id"))]) >= count

        until(f"{count} {topic} of {container} {exec_id}", told)

    def mark(self) -> None:
        """Until an event of our own is told. It comes behind all those that containerd has got before."""
        mark = next(Recording._marks)

        def told() -> bool:
            self._ctr("namespaces", "label", self._ctr.daemon.namespace, f"mark={mark}").ok()
            return f'"mark":"{mark}"' in self._path.read_text(errors="replace")

        until("ctr has subscribed to the events", told)


@contextmanager
def recorded(ctr: Ctr) -> Iterator[Recording]:
    """While the block runs. It waits itself for what it expects last."""
    path = ctr.daemon.root / f"events-{next(Recording._marks)}"
    with path.open("wb") as out:
        child = ctr.spawn("events", stdout=out, stderr=subprocess.STDOUT)
    recording = Recording(ctr, path)
    try:
        recording.mark()  # ctr says nothing when it has subscribed
        yield recording
        recording.mark()
    finally:
        child.terminate()
        child.wait()
