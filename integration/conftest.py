"""Options, the private containerd, the test image, and the check that nothing is left behind.

`pytest integration --containerd 1.6|1.7|2|all`: a version alone runs everything on it; `all` runs everything on
1.6, on 2 all but what is marked `once`, and what is marked `short` on 1.7 and on 1.6 with VMs that boot ("1.6-off"),
where all others start from a template. Pods run whole on all of them, on 2 with the shim as the sandboxer, too
("2-shim"). With `--runtime io.containerd.runc.v2` the same tests run against runc, which shows that they ask for
nothing but containerd's contract; those marked `vm` are left out.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration import leak, process
from integration.away import Absence
from integration.ctr import Ctr
from integration.daemon import Containerd

CHECKOUT = Path(__file__).resolve().parent.parent
VERSIONS = ("1.6", "1.7", "2")
# With the setting `template = "off"`.
BOOTING = "1.6-off"
# containerd 2 with the shim as the sandboxer; pods only.
SANDBOX_API = "2-shim"
OURS = "io.containerd.kata-py.v2"

PAYLOAD = random.Random("kata-py").randbytes(8 << 20)
PAYLOAD_HASH = hashlib.sha256(PAYLOAD).hexdigest()

# Writes as nginx in its official image does: logs that are links to /dev/stdout, opened by name for writing.
NGINX_STYLE = b"""#!/bin/sh
echo access >/var/log/access.log
echo error >/var/log/error.log
echo device >/dev/stdout
echo number >/proc/self/fd/1
echo again >>/proc/self/fd/1
"""


def assert_whole(out: bytes) -> None:
    """`out` is the payload, every byte of it; else an AssertionError that says which bytes are not there."""
    if hashlib.sha256(out).hexdigest() == PAYLOAD_HASH:
        return
    at = next((n for n in range(min(len(out), len(PAYLOAD))) if out[n] != PAYLOAD[n]), len(out))
    resumed = PAYLOAD.find(out[at : at + 64]) if at + 64 <= len(out) else -1
    raise AssertionError(
        f"{len(out)} of {len(PAYLOAD)} bytes; right up to {at}, then what belongs at {resumed}"
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("integration")
    group.addoption(
        "--containerd",
        default="1.6",
        choices=[*VERSIONS, BOOTING, SANDBOX_API, "all"],
        help="version to run on",
    )
    group.addoption("--runtime", default=OURS, help="runtime under test")
    group.addoption("--snapshotter", default="overlayfs", choices=["overlayfs", "native"])
    group.addoption("--shims", default=str(CHECKOUT / "cmd"), help="folder of the shim's programs")
    group.addoption("--guest", default=str(CHECKOUT / "build/guest"), help="folder of the guest image")
    group.addoption("--template", default="auto", choices=["auto", "off"], help="start VMs from a template")
    group.addoption("--settings", default="", help="TOML lines for the shim's configuration")
    group.addoption("--execs", type=int, default=60, help="how many in a row for test_many.py")
    group.addoption("--debug-log", action="store_true", help="containerd and the shim log at debug level")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "short: runs on every containerd, and with VMs that boot")
    config.addinivalue_line("markers", "once: takes long, and no containerd can make a difference to it")
    config.addinivalue_line("markers", "vm: asks for what only a virtual machine gives")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    fixture = next((name for name in ("containerd", "crictl") if name in metafunc.fixturenames), None)
    if fixture is None:
        return
    wanted, marked = metafunc.config.getoption("--containerd"), metafunc.definition.get_closest_marker
    if wanted != "all":
        versions = [wanted]
    elif fixture == "crictl":
        versions = [*VERSIONS, SANDBOX_API]
    elif marked("once"):
        versions = ["1.6"]
    else:
        versions = [*VERSIONS, BOOTING] if marked("short") else ["1.6", "2"]
    metafunc.parametrize(fixture, versions, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--runtime") == OURS:
        return
    for item in items:
        if item.get_closest_marker("vm"):
            item.add_marker(pytest.mark.skip(reason="only for a runtime with VMs"))


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test image as a tar: busybox, /payload (8 MiB nobody can guess) and /bin/nginx-style."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "payload").write_bytes(PAYLOAD)
    (folder / "nginx-style").write_bytes(NGINX_STYLE)
    extra = [f"/payload={folder / 'payload'}", f"/bin/nginx-style={folder / 'nginx-style'}"]
    subprocess.run([CHECKOUT / "hack/busybox-image", folder / "image.tar", *extra], check=True)
    return folder / "image.tar"


def import_image(ctr: Ctr, image: Path, snapshotter: str) -> None:
    """Imports and unpacks. From containerd 2 on, only --local lets ctr choose the snapshotter."""
    local = ["--local"] if ctr.daemon.version == "2" else []
    ctr("image", "import", *local, "--snapshotter", snapshotter, str(image)).ok()


def guest_settings(guest: Path, template: str) -> str:
    """The shim's settings for a guest image. Templates lie beside it and are of use to the next run, too."""
    return (
        f'kernel = "{guest}/vmlinux"\ninitrd = "{guest}/initrd.cpio"\n'
        f'template = "{template}"\ntemplate_dir = "{guest.parent}/templates"\n'
    )


def program_folder(*command: str) -> Path:
    """What a script in hack/ has made ready, by the folder that it prints."""
    script, *arguments = command
    found = subprocess.run(
        [CHECKOUT / "hack" / script, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return Path(found.stdout.strip())


def template_mode(config: pytest.Config, version: str) -> str:
    """ "auto" or "off"."""
    return version.partition("-")[2] or str(config.getoption("--template"))


def daemon_arguments(config: pytest.Config, version: str) -> tuple[str, Path, Path, str, str]:
    """How a `Containerd` of this version is made. Ends the run when there is no guest image."""
    option, template = config.getoption, template_mode(config, version)
    version = version.partition("-")[0]
    guest = Path(option("--guest"))
    if option("--runtime") == OURS and not (guest / "vmlinux").exists():
        pytest.exit(f"no guest image in {guest}: hack/guest/build --out {guest} makes it", returncode=4)
    settings = f"{guest_settings(guest, template)}{option('--settings')}\n"
    level = "debug" if option("--debug-log") else "info"
    return version, program_folder("containerd", version), Path(option("--shims")), settings, level


@pytest.fixture(scope="session")
def containerd(request: pytest.FixtureRequest, image: Path) -> Iterator[Containerd]:
    """A running private containerd of the version at hand. At its end nothing of ours may be left at all."""
    option = request.config.getoption
    daemon = Containerd(*daemon_arguments(request.config, request.param))
    try:
        if option("--runtime") == OURS and template_mode(request.config, request.param) == "auto":
            daemon.tool("template", "create")
        daemon.start()
        ctr = Ctr(daemon, option("--runtime"), option("--snapshotter"))
        import_image(ctr, image, ctr.snapshotter)
        yield daemon
        remaining = leak.left(ctr, set())
        assert not remaining, "left at the end:\n" + "\n".join(sorted(remaining))
    finally:
        daemon.stop()
        daemon.remove()


@pytest.fixture(scope="session")
def ctr(containerd: Containerd, request: pytest.FixtureRequest) -> Ctr:
    option = request.config.getoption
    return Ctr(containerd, option("--runtime"), option("--snapshotter"))


@pytest.fixture(scope="module")
def box(ctr: Ctr) -> Iterator[str]:
    """A running container that the execs of one module share."""
    container = ctr.new_id()
    try:
        ctr(*ctr.run_args(container, "sleep", "100000", options=["-d", "--null-io"])).ok()
        yield container
    finally:
        ctr.remove(container)


@pytest.fixture(scope="session")
def away(ctr: Ctr) -> Iterator[Absence]:
    """Readers who are away while other tests run."""
    container = ctr.detached("sleep", "100000", options=["--null-io"])
    try:
        yield Absence(ctr, container)
    finally:
        ctr.remove(container)


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: its containers removed, and no process, mount, socket or folder more than before."""
    if "ctr" not in request.fixturenames:
        yield
        return
    for name in {"box", "away"} & set(request.fixturenames):  # these outlive the test
        request.getfixturevalue(name)
    ctr: Ctr = request.getfixturevalue("ctr")
    before, known, request.node.log_offset = leak.present(ctr), len(ctr.made), ctr.daemon.log_size()
    yield
    remaining = set(ctr.containers())
    for container in ctr.made[known:]:
        if container in remaining:
            ctr.remove(container)
    leaked = leak.left(ctr, before)
    assert not leaked, "left behind:\n" + "\n".join(sorted(leaked))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failure shows what containerd and the shim logged meanwhile; the guest's console is in there too."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    ctr = getattr(item, "funcargs", {}).get("ctr")
    if report.failed and ctr is not None:
        text = ctr.daemon.log_since(getattr(item, "log_offset", 0))
        report.sections.append(("containerd and shim log", text[-20000:]))
        found = process.marked(str(ctr.daemon.root)).values()
        lines = [f"{item.pid:>8} {item.parent:>8} {item.state} {item.command[:200]}" for item in found]
        report.sections.append(("processes", "\n".join(lines)))
