"""Root file systems on disks, as block snapshotters give them: devmapper a device, blockfile a file to be looped."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.conftest import PAYLOAD_HASH
from integration.ctr import IMAGE, Ctr
from integration.ttrpc import Task, message

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def tree(ctr: Ctr, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The test image's files."""
    folder = tmp_path_factory.mktemp("tree")
    ctr("image", "mount", "--snapshotter", ctr.snapshotter, IMAGE, str(folder)).ok()
    yield folder
    ctr("image", "unmount", "--rm", str(folder)).ok()


@pytest.fixture(scope="module")
def ext4(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with an ext4 file system of them."""
    path = tmp_path_factory.mktemp("ext4") / "disk"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(path), "32M"], check=True)
    # Where the spec has a mount, a root that is read-only needs a directory.
    subprocess.run(["debugfs", "-w", "-R", "mkdir /run", path], check=True, capture_output=True)
    return path


@pytest.fixture(params=["device", "file"])
def disk(request: pytest.FixtureRequest, ext4: Path, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A copy of it, and the option that its kind of source has."""
    path = tmp_path / "disk"
    path.write_bytes(ext4.read_bytes())
    if request.param == "file":
        yield path, "loop"
        return
    with looped(path) as device:
        yield device, "discard"


@contextmanager
def looped(path: Path) -> Iterator[Path]:
    """A block device on a file. Nothing may hold it at the end."""
    made = subprocess.run(["losetup", "--find", "--show", path], check=True, capture_output=True, text=True)
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
        # A device that is still open would be detached by its last user, some time.
        assert subprocess.run(["losetup", "-n", "-j", path], capture_output=True, check=True).stdout == b""


def run(
    ctr: Ctr, box: str, bundle: Path, script: str, source: Path, *options: str, kind: str = "ext4"
) -> tuple[int, str]:
    """A shell script in a container of the box's sandbox whose root is this mount, as containerd's client asks for
    it; its exit status and output."""
    name = f"{box}-disk"
    spec = json.loads((ctr.daemon.bundles / box / "config.json").read_text())
    spec["process"]["args"] = ["sh", "-c", script]
    spec["linux"]["cgroupsPath"] = f"/{ctr.daemon.namespace}/{name}"
    bundle.mkdir(exist_ok=True)
    (bundle / "config.json").write_text(json.dumps(spec))
    words = b"".join(message(f4=option) for option in options)
    out = bundle / "output"
    out.touch()
    with Task(ctr.daemon.shim_address(box), timeout=30) as task:
        created = task.call(
            "Create",
            f1=name,
            f2=str(bundle),
            f3=message(f1=kind, f2=str(source)) + words,
            f6=f"file://{out}",
        )
        assert created.code == 0, created.message
        try:
            started = task.call("Start", f1=name)
            assert started.code == 0, started.message
            code = task.call("Wait", f1=name).fields.get(1, 0)
        finally:
            deleted = task.call("Delete", f1=name)
        assert deleted.code == 0, deleted.message
    assert isinstance(code, int)
    return code, out.read_text()


def on_disk(disk: Path, command: str) -> str:
    """What debugfs says of the file system without mounting it."""
    done = subprocess.run(["debugfs", "-R", command, disk], check=True, capture_output=True, text=True)
    return done.stdout


def test_a_root_on_a_disk_is_the_guest_s_to_mount(
    ctr: Ctr, box: str, disk: tuple[Path, str], tmp_path: Path
) -> None:
    source, option = disk
    script = """
        sha256sum </payload; grep -c ' / ext4 rw' /proc/mounts
        dd if=/payload bs=1M of=/copy 2>/dev/null; mkdir /made; echo it was here >/made/note; mv /etc/group /made
    """
    code, said = run(ctr, box, tmp_path / "bundle", script, source, option, "rw")
    assert (code, said.split()) == (0, [PAYLOAD_HASH, "-", "1"])
    # Whole and unmounted in order, though nobody in the container has asked to have it written.
    assert on_disk(source, "cat /made/note") == "it was here\n"
    assert on_disk(source, "ls -p /made").count("/group/") == 1
    assert "needs_recovery" not in on_disk(source, "features")
    assert subprocess.run(["e2fsck", "-fn", source], capture_output=True, check=False).returncode == 0
    code, said = run(ctr, box, tmp_path / "bundle2", "sha256sum </copy; cat /made/note", source, option)
    assert (code, said.split()[0], said.splitlines()[1:]) == (0, PAYLOAD_HASH, ["it was here"])
    left = ctr.exec(box, "sh", "-c", "ls /sys/block | grep -c vd").text
    assert left == "0\n"


def test_a_read_only_root_on_a_disk_stays_as_it_is(
    ctr: Ctr, box: str, disk: tuple[Path, str], tmp_path: Path
) -> None:
    source, option = disk
    before = source.read_bytes()
    script = "sha256sum </payload; grep -c ' / ext4 ro' /proc/mounts; echo x >/etc/group"
    code, said = run(ctr, box, tmp_path / "bundle", script, source, option, "ro")
    assert (code, said.split()) == (1, [PAYLOAD_HASH, "-", "1"])
    assert source.read_bytes() == before


@contextmanager
def mounted(device: Path, at: Path) -> Iterator[None]:
    subprocess.run(["mount", device, at], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", at], check=True)


def test_a_root_may_be_xfs(ctr: Ctr, box: str, tree: Path, tmp_path: Path) -> None:
    """devmapper's other file system, which the guest's kernel learns when it is wanted."""
    image, point = tmp_path / "disk", tmp_path / "point"
    point.mkdir()
    subprocess.run(["truncate", "--size=320M", image], check=True)
    subprocess.run(["mkfs.xfs", "-q", image], check=True)
    script = "grep -c ' / xfs rw' /proc/mounts; sha256sum </payload; echo written >/note"
    with looped(image) as device:
        with mounted(device, point):
            subprocess.run(["cp", "-a", f"{tree}/.", point], check=True)
        code, said = run(ctr, box, tmp_path / "bundle", script, device, "nouuid", kind="xfs")
        assert (code, said.split()) == (0, ["1", PAYLOAD_HASH, "-"])
        with mounted(device, point):
            assert (point / "note").read_text() == "written\n"
