from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shim.errors import InvalidArgument
from shim.guest.sysctl import set_of_network


def spec(**sysctl: str) -> dict[str, Any]:
    return {"linux": {"sysctl": sysctl}}


def test_parameters_of_the_network_are_set_and_the_others_left_to_crun(tmp_path: Path) -> None:
    (tmp_path / "net/ipv4/conf/eth0.1").mkdir(parents=True)
    for name in ("net/ipv4/ping_group_range", "net/ipv4/conf/eth0.1/forwarding"):
        (tmp_path / name).write_text("")
    given = spec(
        **{
            "net.ipv4.ping_group_range": "0 2147483647",
            "net.ipv4.conf.eth0/1.forwarding": "1",
            "kernel.shm_rmid_forced": "1",
        }
    )
    set_of_network(given, str(tmp_path))
    assert (tmp_path / "net/ipv4/ping_group_range").read_text() == "0 2147483647"
    assert (tmp_path / "net/ipv4/conf/eth0.1/forwarding").read_text() == "1"
    assert given == spec(**{"kernel.shm_rmid_forced": "1"})


def test_a_spec_without_parameters_is_left_alone() -> None:
    given: dict[str, Any] = {"linux": {}}
    set_of_network(given)
    assert given == {"linux": {}}


@pytest.mark.parametrize("name", ["net.ipv4.no_such_thing", "net/../kernel/core_pattern", "net.a\0b"])
def test_what_is_no_parameter_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/core_pattern").write_text("")
    with pytest.raises(InvalidArgument, match="sysctl"):
        set_of_network(spec(**{name: "1"}), str(tmp_path))
    assert (tmp_path / "kernel/core_pattern").read_text() == ""


def test_with_a_user_namespace_the_network_is_open_to_those_who_are_not_its_root(tmp_path: Path) -> None:
    (tmp_path / "net/ipv4").mkdir(parents=True)
    for name in ("ping_group_range", "ip_unprivileged_port_start"):
        (tmp_path / "net/ipv4" / name).write_text("")
    given = spec(**{"net.ipv4.ip_unprivileged_port_start": "80"})
    given["linux"]["namespaces"] = [{"type": "user"}]
    set_of_network(given, str(tmp_path))
    assert (tmp_path / "net/ipv4/ping_group_range").read_text() == "0 2147483647"
    assert (tmp_path / "net/ipv4/ip_unprivileged_port_start").read_text() == "80"  # the spec's own word
