"""The program that is run in a pod's network namespace: does what `shim.network.netns` asks, then ends.

    nsenter --net=PATH kata-py-netns FD

FD is one end of an AF_UNIX SOCK_SEQPACKET pair; every message is a JSON object, answered by one.

    {"do": "scan"}                                 -> {"links": …, "routes": …, "routes6": …, "neighbours": …},
                                                      each what `ip -json` prints
    {"do": "attach", "pairs": [[link, tap, mtu]]}  -> {"taps": n, "refused": ""} with n + 2 descriptors: the taps,
                                                      the listener and its redirect. "refused": why there are none
                                                      of the last two
    anything that fails                            -> {"error": "…"}, and nothing of it stays

The work is iproute2's, and of a few system calls. Only the standard library is used.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence

from shim.network import loopback

MESSAGE_LIMIT = 1 << 20
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TUNSETIFF = 0x400454CA  # <linux/if_tun.h>
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_COMMAND_S = 5.0

Pair = tuple[str, str, int]


class Failed(Exception):
    """In words, for the answer."""


def main() -> int:
    with socket.socket(fileno=int(sys.argv[1])) as caller:
        while request := caller.recv(MESSAGE_LIMIT):
            serve(caller, json.loads(request))
    return 0


def serve(caller: socket.socket, request: Any) -> None:
    fds: list[int] = []
    try:
        if request["do"] == "scan":
            answer = scan()
        else:
            answer = attach([(link, tap, mtu) for link, tap, mtu in request["pairs"]], fds)
    except (OSError, Failed, ValueError, subprocess.TimeoutExpired) as error:
        answer = {"error": str(error)}
    try:
        socket.send_fds(caller, [json.dumps(answer).encode()], fds if "error" not in answer else [])
    finally:
        for fd in fds:
            os.close(fd)


def scan() -> dict[str, Any]:
    commands = {
        "links": ["-details", "address", "show"],
        "routes": ["-4", "route", "show"],
        "routes6": ["-6", "route", "show"],
        "neighbours": ["neighbour", "show"],
    }
    return {name: json.loads(run("ip", "-json", *words) or "[]") for name, words in commands.items()}


def attach(pairs: Sequence[Pair], fds: list[int]) -> dict[str, Any]:
    """Appends to `fds`, which are the caller's also after an error."""
    for _, tap, _ in pairs:
        fds.append(open_tap(tap))
    # The tap is a plug, no interface of the host's: without addresses, or the kernel would speak to the guest on it.
    run("ip", "-batch", "-", lines=[f"link set dev {t} mtu {mtu} addrgenmode none up" for _, t, mtu in pairs])
    joined: list[str] = []
    try:
        for link, tap, _ in pairs:
            run("tc", "qdisc", "add", "dev", link, "ingress")
            joined.append(link)
            run("tc", "-batch", "-", lines=redirection(link, tap))
    except BaseException:
        for link in joined:
            subprocess.run(["tc", "qdisc", "del", "dev", link, "ingress"], check=False, timeout=_COMMAND_S)
        raise
    refused = ""
    try:
        fds.extend(capture_loopback())
    except OSError as error:
        refused = str(error)
    return {"taps": len(pairs), "refused": refused}


def open_tap(name: str) -> int:
    """A tap in this namespace that lives as long as its descriptor. QEMU wants headers (IFF_VNET_HDR): large segments
    go through unsplit and without checksums."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        os.close(fd)
        raise Failed(f"tap {name}: {error.strerror}") from error
    return fd


def redirection(link: str, tap: str) -> list[str]:
    """tc's lines: what comes in at either goes out at the other."""
    everything = "parent ffff: protocol all u32 match u8 0 0 action mirred egress redirect"
    return [
        f"qdisc add dev {tap} ingress",
        f"filter add dev {link} {everything} dev {tap}",
        f"filter add dev {tap} {everything} dev {link}",
    ]


def capture_loopback() -> tuple[int, int]:
    netns = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        listener, redirect = loopback.capture(netns)
    finally:
        os.close(netns)
    return listener.detach(), redirect


def run(*argv: str, lines: Sequence[str] = ()) -> str:
    """What a command prints; `lines` are its input. Failed with its own words."""
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(argv)}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout
