from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from shim import errors
from shim.guest import boot, syscall


def test_modules_are_told_apart_by_what_they_are_for_and_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "order").write_text("fuse.ko\nvirtio.ko\nvirtio-pci.ko\nvirtiofs.ko\nvsock.ko\n")
    modules = boot.Modules(str(tmp_path))
    assert modules.to_listen == [f"{tmp_path}/vsock.ko"]
    assert modules.to_be_reached == [f"{tmp_path}/virtio.ko", f"{tmp_path}/virtio-pci.ko"]
    assert modules.others == [f"{tmp_path}/fuse.ko", f"{tmp_path}/virtiofs.ko"]


def test_an_image_without_modules_is_fine(tmp_path: Path) -> None:
    modules = boot.Modules(str(tmp_path / "none"))
    assert modules.to_listen == modules.to_be_reached == modules.others == []


def test_the_kernel_command_line_gives_the_agents_parameters() -> None:
    parameters = boot.parse_cmdline(
        "quiet agent.passfd_listener_port=1 agent.log=debug agent.flag agent.passfd_listener_port=1027 x=agent.y\n"
    )
    assert parameters == {"passfd_listener_port": "1027", "log": "debug", "flag": ""}


@pytest.mark.parametrize(
    ("value", "number"), [("1027", 1027), ("", 9), ("-1", 9), ("abc", 9), ("1e3", 9), ("0", 0)]
)
def test_a_parameter_that_is_no_number_counts_as_absent(value: str, number: int) -> None:
    assert boot.number({"n": value}, "n", 9) == number


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", "x.ko"])
def test_a_kernel_module_is_named_and_not_a_path(name: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        boot.load_by_name(name, "")


def test_a_kernel_module_that_the_image_has_is_loaded_with_its_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "order").write_text("some_thing.ko\n")
    loaded = []
    monkeypatch.setattr(syscall, "load_module", lambda *call: loaded.append(call))
    boot.load_by_name("some-thing", "a=1", str(tmp_path))
    assert loaded == [(f"{tmp_path}/some_thing.ko", "a=1")]
    with pytest.raises(errors.NotFound, match="no_such_module"):
        boot.load_by_name("no_such_module", "", str(tmp_path))


def test_a_file_system_of_disks_is_unpacked_and_loaded_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "somefs").mkdir()
    (tmp_path / "somefs/order").write_text("checksum.ko\nsomefs.ko\n")
    for name in ("checksum", "somefs"):
        (tmp_path / f"somefs/{name}.ko.z").write_bytes(zlib.compress(name.encode() * 100))
    loaded = []
    monkeypatch.setattr(syscall, "load_module_data", lambda *call: loaded.append(call))
    boot.load_file_system("somefs", str(tmp_path))
    assert loaded == [(b"checksum" * 100, "checksum.ko"), (b"somefs" * 100, "somefs.ko")]


@pytest.mark.parametrize("name", ["ext4", "", "../somefs", "a/b"])
def test_a_file_system_that_the_image_has_no_modules_for_is_left_to_the_kernel(
    tmp_path: Path, name: str
) -> None:
    boot.load_file_system(name, str(tmp_path / "modules"))
