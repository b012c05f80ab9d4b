"""A pod's network in the VM: real namespaces, bridges and packets."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from integration.conftest import PAYLOAD_HASH
from integration.ctr import Ctr
from integration.dial import FETCH, PING, READ, SERVE, SERVERS
from integration.netns import ETH0, NEIGHBOUR, Lan, Netns
from integration.sandbox import members, wait_gone
from integration.until import until

pytestmark = pytest.mark.vm
WHOLE = [PAYLOAD_HASH, str(8 << 20)]

# `ctr run --cni` with plugins and settings that nobody else sees, in the namespace where the bridge is to be.
CNI = """
mount -t tmpfs none /opt && mkdir -p /opt/cni && ln -s /usr/lib/cni /opt/cni/bin &&
mount -t tmpfs none /etc && mkdir -p /etc/cni/net.d && mount -t tmpfs none /var/lib/cni &&
echo "$CNI" >/etc/cni/net.d/1.conflist && exec nsenter --net="$NETNS" -- "$@"
"""
CNI_NETWORK = """{"cniVersion": "0.4.0", "name": "kpt", "plugins": [{"type": "bridge", "bridge": "cni0",
 "isGateway": true, "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}],
 "ranges": [[{"subnet": "10.66.0.0/24"}]]}}]}"""


@pytest.fixture(scope="module")
def lan(ctr: Ctr) -> Iterator[Lan]:
    lan = Lan(ctr.daemon.namespace)
    yield lan
    lan.remove()


@pytest.fixture(scope="module")
def pod(lan: Lan) -> Netns:
    return lan.pod()


@pytest.fixture(scope="module")
def box(ctr: Ctr, pod: Netns) -> Iterator[str]:
    """A running container whose sandbox has the pod's network."""
    container = ctr.new_id()
    options = ["-d", "--null-io", "--with-ns", f"network:{pod.path}"]
    ctr(*ctr.run_args(container, "sh", "-c", SERVERS, options=options)).ok()
    until("it serves", lambda: said(ctr, container, "netstat -ltn").count(":700") == 4)
    yield container
    ctr.remove(container)
    assert pod.links() == {"lo", "eth0", "net1"}
    assert pod.qdiscs() == set()


def said(ctr: Ctr, box: str, command: str) -> str:
    return ctr.exec(box, "sh", "-c", command).ok().text


def test_the_guest_has_the_interfaces_of_the_pod(ctr: Ctr, box: str, pod: Netns) -> None:
    # The kernel tells of a carrier up to a second after it is there.
    until("each link is up", lambda: said(ctr, box, "ip link").count("LOWER_UP") == 3)
    text = said(ctr, box, "ip addr; ip route; ip -6 route; ip neigh; cat /sys/class/net/*/address")
    for name in ("eth0", "net1"):
        (link,) = pod.ip("link", "show", "dev", name)
        assert link["address"] in text
    assert "eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1400" in text, text
    assert "net1: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500" in text, text
    for expected in (
        *("inet 10.88.0.2/24 brd 10.88.0.255", "inet6 fd88::2/64", "inet 10.99.0.2/24"),
        *("default via 10.88.0.1 dev eth0", "10.77.0.0/16 via 10.99.0.1 dev net1"),
        *("default via fd88::1 dev eth0", f"{NEIGHBOUR[0]} dev eth0 lladdr {NEIGHBOUR[1]}"),
    ):
        assert expected in text, text
    assert "inet6 fe80::" in text and "tentative" not in text, text


def test_the_vmm_is_in_the_pod_s_namespace(ctr: Ctr, box: str, pod: Netns) -> None:
    pid, _ = ctr.tasks()[box]
    assert os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(pod.path).st_ino


def test_ping_both_ways_and_by_the_second_interface(ctr: Ctr, box: str, lan: Lan) -> None:
    # 1372 bytes and 28 of headers: the largest packet that fits into the interface's MTU.
    said(ctr, box, "ping -c1 -W5 -s 1372 10.88.0.1 && ping -c1 -W5 10.99.0.1 && ping -6 -c1 -W5 fd88::1")
    for address in ("10.88.0.2", "10.99.0.2"):
        assert lan.netns.python(PING, address) == b"answered\n"


def test_tcp_both_ways(ctr: Ctr, box: str, lan: Lan) -> None:
    server = subprocess.Popen(
        lan.netns.argv("python3", "-c", SERVE, "10.88.0.1", "7001", str(3 << 20)), stdout=subprocess.PIPE
    )
    assert server.stdout and server.stdout.readline() == b"ready\n"
    expected = hashlib.sha256(b"x" * (3 << 20)).hexdigest()
    assert expected in said(ctr, box, "nc 10.88.0.1 7001 </dev/null | sha256sum")
    server.communicate(timeout=10)
    for address in ("10.88.0.2", "10.99.0.2", "fd88::2"):
        assert lan.netns.python(READ, address, "7003").decode().split()[:2] == WHOLE


@pytest.mark.parametrize("address", ["127.0.0.1:7001", "[::1]:7002", "127.0.0.1:7002"])
def test_a_port_of_the_guest_s_loopback_is_one_of_the_pod_s(
    ctr: Ctr, box: str, pod: Netns, address: str
) -> None:
    assert pod.python(FETCH, f"http://{address}/payload").decode().strip() == PAYLOAD_HASH


def test_a_half_close_is_forwarded(ctr: Ctr, box: str, pod: Netns) -> None:
    data = os.urandom(3 << 20)
    answer = pod.python(READ, "127.0.0.1", "7004", stdin=data)
    assert hashlib.sha256(data).hexdigest().encode() in answer


def test_a_port_where_nobody_listens_is_a_reset(ctr: Ctr, box: str, pod: Netns) -> None:
    for address in ("127.0.0.1", "::1"):
        assert pod.python(READ, address, "7009").strip() == b"ConnectionResetError"


def test_the_shim_takes_no_part_in_forwarding(ctr: Ctr, box: str, pod: Netns) -> None:
    (before,) = [item for item in members(ctr, box).values() if item.role == "shim"]
    for _ in range(4):
        assert pod.python(READ, "127.0.0.1", "7003").decode().split()[:2] == WHOLE
    (after,) = [item for item in members(ctr, box).values() if item.role == "shim"]
    assert after.cpu_s - before.cpu_s < 0.2


def test_no_container_has_the_host_s_network(ctr: Ctr, box: str) -> None:
    done = ctr.run("true", options=["--rm", "--net-host"])
    assert done.code != 0 and "host's network" in done.err
    done = ctr.run("true", options=["--rm", "--with-ns", "network:/proc/1/ns/net"])
    assert done.code != 0 and "/proc/1/ns/net" in done.err
    done = ctr.run("true", options=["--rm", "--with-ns", "network:/run/netns/no-such"])
    assert done.code != 0 and "/run/netns/no-such" in done.err


def test_a_failed_start_and_a_killed_shim_leave_the_namespace_as_it_was(ctr: Ctr, lan: Lan) -> None:
    pod = lan.pod([ETH0])
    options = ["--null-io", "--with-ns", f"network:{pod.path}"]
    assert ctr.run("/no/such/program", options=["--rm", *options]).code != 0
    assert (pod.links(), pod.qdiscs()) == ({"lo", "eth0"}, set())

    container = ctr.detached("sleep", "1000", options=options)
    assert (pod.links(), pod.qdiscs()) == ({"lo", "eth0", "tap0_kata"}, {"eth0", "tap0_kata"})
    everyone = members(ctr, container)
    os.kill(next(item.pid for item in everyone.values() if item.role == "shim"), signal.SIGKILL)
    wait_gone(everyone.values(), timeout=8)
    until("the bundle is gone", lambda: not (ctr.daemon.bundles / container).exists())
    assert (pod.links(), pod.qdiscs()) == ({"lo", "eth0"}, set())
    ctr("container", "rm", container).ok()


def test_an_empty_namespace_is_a_loopback(ctr: Ctr, lan: Lan) -> None:
    pod = lan.pod([])
    options = ["--rm", "--with-ns", f"network:{pod.path}"]
    assert "127.0.0.1" in ctr.run("ip", "addr", options=options).ok().text
    began = time.monotonic()
    pod.remove()
    lan.pods.remove(pod)
    assert time.monotonic() - began < 5


def test_interfaces_that_come_before_the_start_are_taken(ctr: Ctr, lan: Lan) -> None:
    """`ctr run --cni`: the namespace is the VMM's own, and is filled between Create and Start."""
    container = ctr.new_id()
    script = "ip addr show eth0; ping -c1 -W5 10.66.0.1"
    argv = ctr.argv(*ctr.run_args(container, "sh", "-c", script, options=["--rm", "--cni"]))
    environment = {**os.environ, "CNI": CNI_NETWORK, "NETNS": lan.netns.path}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", CNI, "sh", *argv],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "inet 10.66.0." in done.stdout and "1 packets received" in done.stdout
    assert "cni0" in lan.netns.links()
    # The kernel takes a namespace apart, and the veths in it, some time after its last process has ended.
    until("the veth is gone", lambda: not any("veth" in link for link in lan.netns.links()))
