"""Mount options as containerd writes them, and real mounts where we are root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.errors import Internal, InvalidArgument, NotFound, ShimError
from shim.rootfs import mount as subject
from shim.rootfs.api import Mount
from shim.rootfs.mount import MS_BIND, MS_NODEV, MS_NOSUID, MS_RDONLY, MS_REC, Options, parse_options

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.mark.parametrize(
    ("words", "parsed"),
    [
        ((), Options(0, ())),
        (("rw",), Options(0, ())),
        (("rbind", "rw"), Options(MS_BIND | MS_REC, ())),
        (("bind", "ro"), Options(MS_BIND | MS_RDONLY, ())),
        (("ro", "rw"), Options(0, ())),
        (("rw", "ro"), Options(MS_RDONLY, ())),
        (
            ("nosuid", "nodev", "size=64k", "mode=755"),
            Options(MS_NOSUID | MS_NODEV, ("size=64k", "mode=755")),
        ),
        (
            ("index=off", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b"),
            Options(0, ("index=off", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b")),
        ),
        (("", "defaults"), Options(0, ())),
        (("ROX",), Options(0, ("ROX",))),
        (("uidmap=0:5:1,1:9:2", "gidmap=0:6:1", "ro"), Options(MS_RDONLY, (), ids=("0:5:1,1:9:2", "0:6:1"))),
    ],
)
def test_words_become_flags_and_data(words: tuple[str, ...], parsed: Options) -> None:
    assert parse_options(words) == parsed


@pytest.mark.parametrize("word", ["loop", "remount", "rshared", "private", "a\0b"])
def test_words_that_one_mount_call_cannot_do_are_refused(word: str) -> None:
    with pytest.raises(InvalidArgument, match="mount option"):
        parse_options(("ro", word))


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "target"
    path.mkdir()
    yield path
    while subject.unmount(path):
        pass


@needs_root
def test_mounts_stack_and_come_off_one_by_one(tmp_path: Path, target: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
        subject.mount(Mount("bind", str(tmp_path / name), ("rbind", "rw")), target)
    assert os.listdir(target) == ["b"]
    assert subject.unmount(target)
    assert os.listdir(target) == ["a"]
    assert subject.unmount(target)
    assert not subject.unmount(target)
    assert os.listdir(target) == []


@needs_root
def test_a_read_only_bind_is_read_only_below_too(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    subject.mount(Mount("tmpfs", "tmpfs", ("size=64k",)), source / "sub")
    try:
        subject.mount(Mount("bind", str(source), ("rbind", "ro", "nosuid", "noatime")), target)
        for path in (target / "x", target / "sub" / "x"):
            with pytest.raises(OSError, match="Read-only"):
                path.touch()
        (source / "sub" / "y").touch()
        assert os.statvfs(target).f_flag & os.ST_NOSUID
    finally:
        subject.unmount(source / "sub")


@needs_root
def test_a_bind_mount_needs_no_bind_among_its_options(tmp_path: Path, target: Path) -> None:
    (tmp_path / "file").touch()
    subject.mount(Mount("bind", str(tmp_path)), target)
    assert (target / "file").exists()


@needs_root
def test_a_tmpfs_takes_plain_data(target: Path) -> None:
    subject.mount(Mount("tmpfs", "tmpfs", ("nosuid", "size=64k", "mode=711")), target)
    assert target.stat().st_mode & 0o777 == 0o711


@needs_root
def test_an_error_names_mount_and_reason(tmp_path: Path, target: Path) -> None:
    with pytest.raises(NotFound, match=r"mount bind /no/such on .*target: open_tree: No such file"):
        subject.mount(Mount("bind", "/no/such", ("rbind",)), target)
    with pytest.raises(ShimError, match="mount nosuchfs x on"):
        subject.mount(Mount("nosuchfs", "x"), target)
    with pytest.raises(Internal, match=r"mount tmpfs .*: Invalid argument"):
        subject.mount(Mount("tmpfs", "tmpfs", ("such=nonsense",)), target)
    assert not subject.unmount(target)


@needs_root
def test_an_overlay_of_more_layers_than_fit_in_a_page(tmp_path: Path, target: Path) -> None:
    layers = []
    for number in range(100):
        layer = tmp_path / "snapshots" / f"a-rather-long-name-for-a-snapshot-directory-{number}" / "fs"
        layer.mkdir(parents=True)
        (layer / str(number)).touch()
        layers.append(str(layer))
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    options = (f"workdir={tmp_path}/work", f"upperdir={tmp_path}/upper", f"lowerdir={':'.join(layers)}")
    assert len(",".join(options)) > 4096
    fds = os.listdir("/proc/self/fd")
    subject.mount(Mount("overlay", "overlay", options), target)
    assert sorted(map(int, os.listdir(target))) == list(range(100))
    (target / "new").touch()
    assert (tmp_path / "upper" / "new").exists()
    assert len(os.listdir("/proc/self/fd")) == len(fds)


@needs_root
def test_a_missing_layer_is_named(tmp_path: Path, target: Path) -> None:
    with pytest.raises(NotFound, match=r"mount overlay .*gone"):
        subject.mount(Mount("overlay", "overlay", (f"lowerdir={tmp_path}/gone:" + "/" * 5000,)), target)


def test_options_that_cannot_be_shortened_are_refused_in_words(target: Path) -> None:
    with pytest.raises(InvalidArgument, match="longer than 4096"):
        subject.mount(Mount("tmpfs", "tmpfs", ("x" * 5000,)), target)


@needs_root
def test_unmounting_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    assert not subject.unmount(tmp_path)
    assert not subject.unmount(tmp_path / "never was")


@needs_root
def test_unmounting_does_not_follow_a_link(tmp_path: Path, target: Path) -> None:
    subject.mount(Mount("tmpfs", "tmpfs"), target)
    link = tmp_path / "link"
    link.symlink_to(target)
    assert not subject.unmount(link)
    assert subject.unmount(target)


@needs_root
def test_a_bind_follows_later_mounts_only_when_asked_to(tmp_path: Path, target: Path) -> None:
    points, source, follower = (tmp_path / name for name in ("points", "source", "follower"))
    (points / "sub").mkdir(parents=True)
    source.mkdir()
    follower.mkdir()
    subject.make_shared_root(points, source)
    try:
        subject.mount(Mount("bind", str(source), ("rbind", "rprivate", "ro")), target)
        subject.mount(Mount("bind", str(source), ("rbind", "rslave")), follower)
        subject.mount(Mount("tmpfs", "later"), source / "sub")
        (source / "sub/file").touch()
        assert os.listdir(follower / "sub") == ["file"]
        assert os.listdir(target / "sub") == []
    finally:
        for path in (source / "sub", follower / "sub", follower, source):
            subject.unmount(path)


def test_propagation_is_a_word_for_binds_only() -> None:
    assert subject.parse_options(("rbind", "rslave")).follow
    assert not subject.parse_options(("rbind", "rprivate")).follow
    with pytest.raises(InvalidArgument, match="rslave"):
        subject.parse_options(("rslave",))


IDS = ("uidmap=0:100000:10", "gidmap=0:200000:10")


@needs_root
def test_a_bind_with_mapped_ids_shows_other_owners_and_takes_them(tmp_path: Path, target: Path) -> None:
    (tmp_path / "data").mkdir()
    subject.mount(Mount("bind", str(tmp_path / "data"), ("rbind", "rw", *IDS)), target)
    found = os.stat(target)
    assert (found.st_uid, found.st_gid) == (100000, 200000)
    (tmp_path / "data/new").touch()
    os.chown(target / "new", 100003, 200004)
    found = os.stat(tmp_path / "data/new")
    assert (found.st_uid, found.st_gid) == (3, 4)


@needs_root
def test_an_overlay_with_mapped_ids_has_mapped_layers(tmp_path: Path, target: Path) -> None:
    for name in ("upper", "work", "low", "lower", "scratch"):
        (tmp_path / name).mkdir()
    (tmp_path / "low/a").touch()
    (tmp_path / "lower/b").touch()
    layers = f"lowerdir={tmp_path}/low:{tmp_path}/lower"
    options = (*IDS, f"workdir={tmp_path}/work", f"upperdir={tmp_path}/upper", layers)
    fds = len(os.listdir("/proc/self/fd"))
    subject.mount(Mount("overlay", "overlay", options), target, tmp_path / "scratch")
    assert {os.stat(target / name).st_uid for name in ("a", "b")} == {100000}
    assert len(os.listdir("/proc/self/fd")) == fds
    assert not os.path.ismount(tmp_path / "scratch")


@needs_root
@pytest.mark.parametrize("ids", ["0:0:0", "0:0:10,5:0:10", "nonsense"])
def test_ids_that_the_kernel_does_not_take_are_named(tmp_path: Path, target: Path, ids: str) -> None:
    with pytest.raises(InvalidArgument, match=f"uid mappings '{ids}'"):
        subject.mount(Mount("bind", str(tmp_path), ("bind", f"uidmap={ids}", IDS[1])), target)
    assert not subject.unmount(target)


@needs_root
def test_ids_that_cannot_be_mapped_are_refused_and_never_left_as_they_are(target: Path) -> None:
    with pytest.raises(InvalidArgument, match="mapped ids"):
        subject.mount(Mount("tmpfs", "tmpfs", IDS), target)
    with pytest.raises(InvalidArgument, match="uidmap"):
        subject.mount(Mount("bind", "/", ("bind", IDS[0])), target)
    with pytest.raises(ShimError, match="mapped ids: mount_setattr"):  # the kernel's: no such owners in there
        subject.mount(Mount("bind", "/proc", ("bind", *IDS)), target)
    assert not subject.unmount(target)
