"""Reading the runtime spec: what is missing is empty, what is wrong is refused."""

from __future__ import annotations

import pytest

from shim import oci
from shim.errors import InvalidArgument


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"1", b"null", b"\xff", b"[" * 100_000, b'"{}"'])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        oci.parse(data)


def test_an_object_is_a_dict() -> None:
    assert oci.parse(b' {"a": {"b": 1}} ') == {"a": {"b": 1}}


def test_what_is_missing_or_null_is_empty() -> None:
    for spec in ({}, {"linux": None}, {"linux": {"namespaces": None}}):
        assert oci.objects(spec, "linux", "namespaces") == []
        assert oci.section(spec, "linux", "resources") == {}
        assert oci.namespace_path(spec, "pid") is None
    assert oci.text({"a": None}, "a") == ""
    assert oci.texts({"a": None}, "a") == []


def test_a_namespace_is_new_or_joined() -> None:
    spec = {"linux": {"namespaces": [{"type": "pid"}, {"type": "ipc", "path": "/p"}]}}
    assert oci.namespace_path(spec, "pid") == ""
    assert oci.namespace_path(spec, "ipc") == "/p"


@pytest.mark.parametrize(
    ("mount", "bind"),
    [
        ({"type": "bind"}, True),
        ({"type": "none", "options": ["rbind", "ro"]}, True),
        ({"options": ["bind"]}, True),
        ({"type": "tmpfs", "options": ["ro"]}, False),
        ({}, False),
    ],
)
def test_a_bind_is_known_by_type_or_option(mount: dict[str, object], bind: bool) -> None:
    assert oci.is_bind(mount) is bind


@pytest.mark.parametrize("namespaces", [5, "x", {}, [5], [None]])
def test_a_list_of_the_wrong_kind_is_refused(namespaces: object) -> None:
    with pytest.raises(InvalidArgument):
        oci.namespace_path({"linux": {"namespaces": namespaces}}, "pid")


def test_members_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        oci.text({"a": 1}, "a")
    with pytest.raises(InvalidArgument):
        oci.texts({"a": ["x", 1]}, "a")
    with pytest.raises(InvalidArgument):
        oci.section({"a": {"b": []}}, "a", "b")


def ids(*ranges: tuple[object, object, object]) -> list[dict[str, object]]:
    return [dict(zip(("containerID", "hostID", "size"), item, strict=True)) for item in ranges]


def test_ranges_of_ids_are_written_as_containerd_writes_them() -> None:
    both = {"uidMappings": ids((0, 1000, 10), (10, 5000, 5)), "gidMappings": [{"hostID": 7, "size": 1}]}
    assert oci.id_maps(both) == ("0:1000:10,10:5000:5", "0:7:1")
    assert oci.id_maps({}) is oci.id_maps({"uidMappings": None, "gidMappings": []}) is None
    assert [oci.mapped_id(number, "0:1000:10,10:5000:5") for number in (0, 9, 14, 15)] == [
        1000,
        1009,
        5004,
        None,
    ]


@pytest.mark.parametrize(
    "wrong", [(0, 0, 0), (-1, 0, 1), (0, 1 << 32, 1), ("0", 0, 1), (0, 0.5, 1), (0, None, 1)], ids=str
)
def test_what_is_no_range_of_ids_is_refused(wrong: tuple[object, object, object]) -> None:
    with pytest.raises(InvalidArgument, match="gidMappings"):
        oci.id_maps({"uidMappings": ids((0, 0, 1)), "gidMappings": ids(wrong)})


def test_uids_without_gids_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="one without the other"):
        oci.id_maps({"uidMappings": ids((0, 0, 1))})
