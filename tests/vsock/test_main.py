from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shim.log import Log
from shim.vsock import backend
from tests.fakes.guest_driver import GuestDriver, GuestSocket
from tests.vsock.device import PROGRAM, ROOT


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--vhost-user-fd", "3"],
        ["--vhost-user-fd", "x", "--listen-fd", "4", "--socket-path", "/x"],
        ["--vhost-user-fd", "3", "--listen-fd", "4", "--socket-path", "/x", "--what"],
    ],
)
def test_wrong_arguments_are_named(argv: list[str]) -> None:
    done = subprocess.run([PROGRAM, *argv], capture_output=True, check=False, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("kata-py-vsock: missing or wrong argument")
    assert "Traceback" not in done.stderr


def test_the_installed_program_finds_its_own_packages(tmp_path: Path) -> None:
    site = tmp_path / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    site.mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    shutil.copy(PROGRAM, tmp_path / "bin")
    shutil.copytree(ROOT / "shim" / "vsock", site / "shim" / "vsock")
    for name in ("__init__.py", "log.py"):
        shutil.copy(ROOT / "shim" / name, site / "shim")
    script = tmp_path / "bin" / PROGRAM.name
    (tmp_path / "elsewhere").symlink_to(script)
    argv = [sys.executable, "-IS", str(tmp_path / "elsewhere")]
    done = subprocess.run(argv, capture_output=True, check=False, text=True, cwd="/")
    assert (done.returncode, "missing or wrong argument" in done.stderr) == (2, True)


def test_a_reader_that_never_comes_does_not_keep_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "FLUSH_TIMEOUT_S", 0.2)
    monkeypatch.setattr(backend, "TICK_S", 0.05)
    ours, front = socket.socketpair()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    log = Log(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT))
    stop_fd = os.eventfd(0, os.EFD_NONBLOCK)
    made = backend.Backend(
        front.detach(), listener.detach(), stop_fd, path=str(tmp_path / "s"), guest_cid=3, log=log
    )
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(made.run()), daemon=True)
    thread.start()
    guest = GuestDriver(ours)
    accepted: list[GuestSocket] = []
    guest.listening[1027] = accepted.append
    guest.boot()
    read_end, write_end = os.pipe()
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(tmp_path / "s"))
    client.sendall(b"passfd\n")
    socket.send_fds(client, [b"1027 stream"], [write_end])
    guest.run_until(lambda: accepted)
    accepted[0].send(bytes((1 << 20) + 1000))
    guest.run_until(lambda: not accepted[0].outgoing)
    guest.close()
    thread.join(10)
    assert codes == [backend.ENDED]
    assert "bytes were not delivered" in (tmp_path / "log").read_text()
    os.close(read_end)
    os.close(write_end)
    client.close()
