"""The directory of templates: nobody ever sees half of one, and what is broken is told and goes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from shim.errors import DataLoss, FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from shim.hypervisor.api import Fingerprint
from shim.template.key import Inputs
from shim.template.store import Store, inputs

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "templates", 10)


@pytest.fixture
def made_of(tmp_path: Path) -> Inputs:
    return other(tmp_path, "kernel")


def other(folder: Path, name: str) -> Inputs:
    """Inputs with a file of their own."""
    (folder / name).write_text(name)
    return inputs(Fingerprint(("-m", "64M"), (folder / name,)))


def publish(store: Store, made_of: Inputs, size: int = 3 * MIB) -> str:
    with store.lock(wait=False), store.new(made_of, 64, 1) as snapshot:
        snapshot.memory.write_bytes(b"m" * size)
        snapshot.state.write_bytes(b"state")
    return made_of.key


def names(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "templates").iterdir()} - {".lock"}


def test_a_published_template_is_found_and_listed(store: Store, made_of: Inputs) -> None:
    assert store.find(made_of.key) is None
    key = publish(store, made_of)
    template = store.find(key)
    assert template is not None and template.snapshot.state.read_bytes() == b"state"
    assert (template.memory_mib, template.vcpus, template.inputs) == (64, 1, made_of)
    assert template.allocated >= 3 * MIB
    assert [item.key for item in store.all()] == [key]


def test_its_directory_is_nobody_elses(store: Store, made_of: Inputs, tmp_path: Path) -> None:
    key = publish(store, made_of)
    for path in (tmp_path / "templates", tmp_path / "templates" / key):
        assert path.stat().st_mode & 0o777 == 0o700


def test_a_directory_others_can_write_is_refused(store: Store, made_of: Inputs, tmp_path: Path) -> None:
    key = publish(store, made_of)
    (tmp_path / "templates").chmod(0o777)
    with pytest.raises(FailedPrecondition, match="can be written by others"):
        store.find(key)
    with pytest.raises(FailedPrecondition), store.lock(wait=False):
        pass


def test_nothing_is_seen_of_a_template_that_is_being_written(store: Store, made_of: Inputs) -> None:
    with store.lock(wait=False), store.new(made_of, 64, 1) as snapshot:
        snapshot.memory.write_bytes(b"m")
        snapshot.state.write_bytes(b"s")
        assert store.find(made_of.key) is None
        assert store.all() == []
    assert store.find(made_of.key) is not None


def test_an_error_while_writing_leaves_nothing(store: Store, made_of: Inputs, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk"), store.lock(wait=False), store.new(made_of, 64, 1) as snapshot:
        snapshot.memory.write_bytes(b"m")
        raise OSError("disk")
    assert names(tmp_path) == set()


def test_half_a_snapshot_is_not_published(store: Store, made_of: Inputs, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), store.lock(wait=False), store.new(made_of, 64, 1) as snapshot:
        snapshot.memory.write_bytes(b"m")
    assert names(tmp_path) == set()


def test_a_new_one_takes_the_place_of_an_old_one(store: Store, made_of: Inputs, tmp_path: Path) -> None:
    publish(store, made_of)
    publish(store, made_of, 5)
    assert names(tmp_path) == {made_of.key}
    assert store.all()[0].snapshot.memory.stat().st_size == 5


def test_leftovers_of_a_crash_are_in_nobodys_way(store: Store, made_of: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "templates" / f".new-{made_of.key}"
    folder.mkdir(parents=True)
    (tmp_path / "templates").chmod(0o700)
    (folder / "memory").write_bytes(b"half")
    (tmp_path / "templates" / ".old-x-y").mkdir()
    key = publish(store, made_of)
    assert store.find(key) is not None
    with store.lock(wait=False):
        assert store.prune(keep=key) == []
    assert names(tmp_path) == {key}


def test_only_one_may_create(store: Store) -> None:
    with (
        store.lock(wait=False),
        pytest.raises(Unavailable, match="another template"),
        store.lock(wait=False),
    ):
        pass
    with store.lock(wait=True):
        pass


@pytest.mark.parametrize("name", ["memory", "state"])
@pytest.mark.parametrize("size", [0, 4, 1 << 20])
def test_a_file_of_another_size_is_data_loss(store: Store, made_of: Inputs, name: str, size: int) -> None:
    key = publish(store, made_of)
    template = store.find(key)
    assert template is not None
    os.truncate(template.directory / name, size)
    with pytest.raises(DataLoss, match=f"{name} is of {size} bytes"):
        store.find(key)
    assert store.all() == []


@pytest.mark.parametrize("name", ["memory", "state", "template.json"])
def test_a_missing_file_is_data_loss(store: Store, made_of: Inputs, name: str, tmp_path: Path) -> None:
    key = publish(store, made_of)
    (tmp_path / "templates" / key / name).unlink()
    with pytest.raises(DataLoss, match=name):
        store.find(key)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "\xff", '{"sizes": 1}', '{"sizes": {"memory": "x"}}', "[" * 100000]
)
def test_a_description_that_makes_no_sense_is_data_loss(
    store: Store, made_of: Inputs, text: str, tmp_path: Path
) -> None:
    key = publish(store, made_of)
    (tmp_path / "templates" / key / "template.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataLoss):
        store.find(key)
    with store.lock(wait=False):
        assert store.prune(keep="") == [key]


def test_who_reads_a_template_goes_on_while_it_is_removed(
    store: Store, made_of: Inputs, tmp_path: Path
) -> None:
    key = publish(store, made_of, 4)
    template = store.find(key)
    assert template is not None
    with template.snapshot.memory.open("rb") as reader:
        assert store.remove(key)
        assert reader.read() == b"mmmm"
    assert not store.remove(key)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("change", ["written", "gone"])
def test_a_template_of_files_that_are_no_more_is_pruned(
    store: Store, made_of: Inputs, change: str, tmp_path: Path
) -> None:
    current = publish(store, other(tmp_path, "new kernel"))
    stale = publish(store, made_of)
    if change == "gone":
        (tmp_path / "kernel").unlink()
    else:
        (tmp_path / "kernel").write_text("KERNEL")
    with store.lock(wait=False):
        assert store.prune(keep=current) == [stale]
    assert [item.key for item in store.all()] == [current]


def test_beyond_the_limit_those_used_longest_ago_go(store: Store, tmp_path: Path) -> None:
    keys = [publish(store, other(tmp_path, name)) for name in "abcd"]
    for age, key in enumerate(keys):
        used = time.time() - 100 * age
        os.utime(tmp_path / "templates" / key, (used, used))
    with store.lock(wait=False):
        assert store.prune(keep=keys[3]) == [keys[2]]
    assert {item.key for item in store.all()} == {keys[0], keys[1], keys[3]}


def test_use_makes_it_young_again(store: Store, made_of: Inputs, tmp_path: Path) -> None:
    key = publish(store, made_of)
    os.utime(tmp_path / "templates" / key, (1, 1))
    assert store.find(key) is not None
    assert store.all()[0].used > 1


def test_a_template_over_the_limit_is_not_published(store: Store, made_of: Inputs, tmp_path: Path) -> None:
    with pytest.raises(ResourceExhausted, match="11 MiB"):
        publish(store, made_of, 11 * MIB)
    assert names(tmp_path) == set()


def test_a_rejection_lasts_an_hour_or_until_there_is_a_template(
    store: Store, made_of: Inputs, tmp_path: Path
) -> None:
    key = publish(store, made_of)
    store.reject(key, "QEMU does not like it")
    assert store.find(key) is None
    assert store.rejected(key) == "QEMU does not like it"
    mark = tmp_path / "templates" / f"{key}.rejected"
    assert 3500 < mark.stat().st_mtime - time.time() <= 3600
    store.prune(keep="")
    assert mark.exists()
    now = time.time()
    os.utime(mark, (now, now))
    assert store.rejected(key) is None
    store.prune(keep="")
    assert not mark.exists()
    store.reject(key, "again")
    publish(store, made_of)
    assert store.rejected(key) is None


def test_an_input_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="/no/kernel"):
        inputs(Fingerprint((), (Path("/no/kernel"),)))


def test_the_description_is_for_people_too(store: Store, made_of: Inputs, tmp_path: Path) -> None:
    key = publish(store, made_of)
    about = json.loads((tmp_path / "templates" / key / "template.json").read_text())
    assert about["sizes"] == {"memory": 3 * MIB, "state": 5}
    assert about["files"][0]["path"] == str(tmp_path / "kernel")
