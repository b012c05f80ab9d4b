"""The files that a pod's containers share."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim.controller import files
from shim.errors import Internal
from shim.pb.runtime.v1 import DnsConfig, PodSandboxConfig


@pytest.mark.parametrize(
    ("dns", "text"),
    [
        (DnsConfig(), ""),
        (DnsConfig(servers=["192.0.2.1", "2001:db8::1"]), "nameserver 192.0.2.1\nnameserver 2001:db8::1\n"),
        (DnsConfig(searches=["a.example", "b.example"]), "search a.example b.example\n"),
        (DnsConfig(["192.0.2.1"], ["a"], ["ndots:5", "edns0"]),
         "search a\nnameserver 192.0.2.1\noptions ndots:5 edns0\n"),
    ],
)  # fmt: skip
def test_resolv_conf_is_what_the_pod_names(dns: DnsConfig, text: str) -> None:
    assert files.resolv_conf(dns) == text


def test_a_pod_that_names_no_servers_has_the_node_s_files(tmp_path: Path) -> None:
    written = files.write(tmp_path / "etc", PodSandboxConfig(), "name")
    assert set(written) == {"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}
    assert written["/etc/hostname"].read_text() == "name\n"
    for place in ("/etc/hosts", "/etc/resolv.conf"):
        own = Path(place).read_text() if Path(place).exists() else ""
        assert written[place].read_text() == own
        assert written[place].stat().st_mode & 0o777 == 0o644


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file")
    with pytest.raises(Internal, match="hostname"):
        files.write(tmp_path / "etc", PodSandboxConfig(), "name")
