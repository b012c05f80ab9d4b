"""A pod's network by CNI's bridge: what kubelet, a service and a user with port-forward need of it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator

import pytest

from integration.conftest import PAYLOAD_HASH
from integration.cri.crictl import Crictl, Pod
from integration.dial import FETCH, PING, READ, SERVE, SERVERS
from integration.until import until

WHOLE = [PAYLOAD_HASH, str(8 << 20)]
HOST_NETWORK = {"security_context": {"namespace_options": {"network": 2, "pid": 1, "ipc": 0}}}


@pytest.fixture(scope="module")
def box(pod: Pod, crictl: Crictl) -> str:
    container = pod.run("sh", "-c", SERVERS)
    until("it serves", lambda: crictl.sh(container, "netstat -ltn").count(":700") == 4)
    return container


def on_the_node(crictl: Crictl, code: str, *args: str, stdin: bytes = b"") -> list[str]:
    """The words that a Python program says at the other end of the bridge."""
    command = ["nsenter", f"--net={crictl.daemon.net}", "python3", "-c", code, *args]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().split()


def test_the_pod_s_addresses_answer(crictl: Crictl, pod: Pod, box: str) -> None:
    ipv4, ipv6 = pod.addresses
    assert on_the_node(crictl, PING, ipv4) == ["answered"]
    for address in (ipv4, ipv6):
        assert on_the_node(crictl, READ, address, "7003")[:2] == WHOLE


def test_a_container_reaches_the_node(crictl: Crictl, box: str) -> None:
    crictl.sh(box, "ping -c1 -W5 10.88.0.1; ping -6 -c1 -W5 fd00:88::1")
    command = [
        "nsenter",
        f"--net={crictl.daemon.net}",
        "python3",
        "-c",
        SERVE,
        "10.88.0.1",
        "7010",
        str(3 << 20),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout and server.stdout.readline() == b"ready\n"
        expected = hashlib.sha256(b"x" * (3 << 20)).hexdigest()
        assert expected in crictl.sh(box, "nc 10.88.0.1 7010 </dev/null | sha256sum")


@pytest.fixture(scope="module")
def forwarded(crictl: Crictl, pod: Pod, box: str) -> Iterator[None]:
    """`crictl port-forward` of three ports of the pod to the node's loopback, 10000 higher."""
    ports = [f"{port + 10000}:{port}" for port in (7001, 7002, 7009)]
    with crictl.spawn("port-forward", pod.id, *ports, stdin=subprocess.DEVNULL) as child:
        try:
            for _ in ports:
                assert child.stdout and b"Forwarding from" in child.stdout.readline()
            yield
        finally:
            child.terminate()
            child.communicate(timeout=20)


@pytest.mark.parametrize("port", ["17001", "17002"])
def test_port_forward_reaches_the_container_s_loopback(crictl: Crictl, forwarded: None, port: str) -> None:
    """7001 is 127.0.0.1's alone, 7002 ::1's; both know of no other address."""
    assert on_the_node(crictl, FETCH, f"http://127.0.0.1:{port}/payload") == [PAYLOAD_HASH]


def test_port_forward_sends_whole(crictl: Crictl, forwarded: None) -> None:
    data = os.urandom(3 << 20)
    said = on_the_node(crictl, FETCH, "http://127.0.0.1:17001/cgi-bin/hash", stdin=data)
    assert hashlib.sha256(data).hexdigest() in said


def test_port_forward_to_nobody_is_an_error(crictl: Crictl, forwarded: None) -> None:
    assert on_the_node(crictl, READ, "127.0.0.1", "17009")[1:2] in ([], ["0"])  # reset, or ended with nothing


def test_a_pod_has_each_interface_that_cni_gives_it_and_a_port_of_the_node(crictl: Crictl) -> None:
    daemon = crictl.daemon
    daemon.set_network([daemon.bridge(), {"type": "portmap", "capabilities": {"portMappings": True}}])
    daemon.set_network([daemon.bridge("kata-py1", ["10.99.0.0/16"])], "20-second")
    try:
        crictl.wait_ready()
        until("the second is loaded", lambda: "20-second" in crictl("info").ok().text)
        until("portmap is loaded", lambda: "portmap" in crictl("info").ok().text)
        pod = crictl.run_pod(port_mappings=[{"container_port": 8080, "host_port": 18080}])
    finally:
        daemon.set_network([daemon.bridge()])
        (daemon.root / "cni/20-second.conflist").unlink()
    try:
        box = pod.run("nc", "-ll", "-p", "8080", "-e", "cat", "/payload")
        shown = crictl.sh(box, "ip addr show eth0; ip addr show eth1")
        assert "inet 10.88." in shown and "inet 10.99." in shown
        crictl.sh(box, "ping -c1 -W5 10.88.0.1 && ping -c1 -W5 10.99.0.1")
        for address in ("10.88.0.1", "127.0.0.1"):
            assert on_the_node(crictl, READ, address, "18080")[:2] == WHOLE
    finally:
        pod.remove()
        until("the second is unloaded", lambda: "20-second" not in crictl("info").ok().text)
        subprocess.run(["ip", "-n", crictl.daemon.net.name, "link", "del", "kata-py1"], check=True)


@pytest.mark.vm
def test_the_node_s_network_is_refused(crictl: Crictl) -> None:
    if crictl.daemon.sandboxer == "shim":
        pytest.skip("containerd 2.1 itself panics (NewBundle)")
    done = crictl("runp", "--runtime", crictl.handler, str(crictl.pod_config(linux=HOST_NETWORK)))
    assert done.code != 0 and "host's network" in done.err
