"""The program in the namespace, with stand-ins for ip and tc that write down how they were called."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shim.network import worker

Programs = Callable[..., None]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Makes `ip` and `tc` of shell lines; each call and its input goes to the file `calls`."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(worker, "open_tap", lambda _name: os.open("/dev/null", os.O_RDWR))

    def refuse() -> tuple[int, int]:
        raise PermissionError(1, "not here")

    monkeypatch.setattr(worker, "capture_loopback", refuse)

    def make(ip: str = "echo '[]'", tc: str = "true") -> None:
        for name, body in (("ip", ip), ("tc", tc)):
            path = tmp_path / name
            note = f'echo "{name} $*" >>{tmp_path}/calls; cat >>{tmp_path}/calls'
            path.write_text(f"#!/bin/sh\n{note}\n{body}\n")
            path.chmod(0o755)

    return make


def ask(request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        worker.serve(theirs, request)
        data, fds, _, _ = socket.recv_fds(ours, worker.MESSAGE_LIMIT, 8)
    for fd in fds:
        os.close(fd)
    return json.loads(data), fds


def calls(directory: Path) -> list[str]:
    return (directory / "calls").read_text().splitlines()


def test_a_scan_is_what_iproute2_prints(programs: Programs, tmp_path: Path) -> None:
    programs(ip="""case "$*" in *address*) echo '[{"ifname": "eth0"}]';; *-6*) ;; *) echo '[]';; esac""")
    answer, fds = ask({"do": "scan"})
    assert answer == {"links": [{"ifname": "eth0"}], "routes": [], "routes6": [], "neighbours": []}
    assert not fds
    assert "ip -json -details address show" in calls(tmp_path)


def test_attach_joins_each_interface_to_its_tap(programs: Programs, tmp_path: Path) -> None:
    programs()
    answer, fds = ask({"do": "attach", "pairs": [["eth0", "tap0_kata", 1400]]})
    assert answer == {"taps": 1, "refused": "[Errno 1] not here"}
    assert len(fds) == 1
    everything = "parent ffff: protocol all u32 match u8 0 0 action mirred egress redirect dev"
    assert calls(tmp_path) == [
        "ip -batch -",
        "link set dev tap0_kata mtu 1400 addrgenmode none up",
        "tc qdisc add dev eth0 ingress",
        "tc -batch -",
        "qdisc add dev tap0_kata ingress",
        f"filter add dev eth0 {everything} tap0_kata",
        f"filter add dev tap0_kata {everything} eth0",
    ]


def test_a_failure_is_told_in_the_program_s_words_and_undone(programs: Programs, tmp_path: Path) -> None:
    programs(tc='case "$*" in *add*net1*) echo "Error: Exclusivity flag on." >&2; exit 2;; esac')
    answer, fds = ask({"do": "attach", "pairs": [["eth0", "tap0", 1500], ["net1", "tap1", 1500]]})
    assert "Exclusivity flag on" in answer["error"] and "net1" in answer["error"]
    assert not fds
    # The other's was there before us, and is somebody else's.
    assert [call for call in calls(tmp_path) if " del " in call] == ["tc qdisc del dev eth0 ingress"]


def test_output_that_is_no_json_is_an_answer_too(programs: Programs) -> None:
    programs(ip="echo oops")
    answer, _ = ask({"do": "scan"})
    assert "error" in answer


def test_a_tap_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((worker.Failed, OSError)):
        worker.open_tap("a name that is much too long for an interface")
