"""The containerd with CRI, and the check that no pod leaves anything behind."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.conftest import CHECKOUT, OURS, daemon_arguments, import_image, program_folder
from integration.cri import leak
from integration.cri.crictl import Crictl, Pod
from integration.cri.daemon import CriContainerd
from integration.ctr import Ctr


@pytest.fixture(scope="session")
def pause_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pause") / "image.tar"
    subprocess.run([CHECKOUT / "hack/busybox-image", "--pause", path], check=True)
    return path


@pytest.fixture(scope="session")
def crictl(request: pytest.FixtureRequest, image: Path, pause_image: Path) -> Iterator[Crictl]:
    """crictl on a running private containerd of the version at hand."""
    option = request.config.getoption
    version, _, sandboxer = request.param.partition("-")
    ours = option("--runtime") == OURS
    if sandboxer and not ours:
        pytest.skip("runc's shim is no sandboxer")
    daemon = CriContainerd(
        *daemon_arguments(request.config, version),
        snapshotter=option("--snapshotter"),
        sandboxer=sandboxer or "podsandbox",
    )
    with running(daemon, request.config, image, pause_image) as crictl:
        yield crictl


@contextmanager
def running(daemon: CriContainerd, config: pytest.Config, image: Path, pause_image: Path) -> Iterator[Crictl]:
    """crictl on this containerd, started and with the images, the runtime under test as its handler. At its end nothing
    of any pod may be left."""
    option = config.getoption
    ours = option("--runtime") == OURS
    try:
        if ours and option("--template") == "auto":
            daemon.tool("template", "create")
        daemon.start()
        ctr = Ctr(daemon, option("--runtime"), option("--snapshotter"))
        for path in (image, pause_image):
            import_image(ctr, path, ctr.snapshotter)
        crictl = Crictl(daemon, program_folder("crictl") / "crictl", "kata-py" if ours else "runc")
        crictl.wait_ready()
        yield crictl
        remaining = leak.left(crictl, {"link lo", "link kata-py0"})
        assert not remaining, "left at the end:\n" + "\n".join(sorted(remaining))
    finally:
        daemon.stop()
        daemon.remove()


@pytest.fixture(scope="module")
def pod(crictl: Crictl) -> Iterator[Pod]:
    """A running pod that the tests of one module share."""
    made = crictl.run_pod()
    yield made
    made.remove()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: the pods that it made removed, and nothing of them left."""
    if "crictl" not in request.fixturenames:
        yield
        return
    for name in {"pod", "box"} & set(request.fixturenames):  # these are their modules'
        request.getfixturevalue(name)
    crictl: Crictl = request.getfixturevalue("crictl")
    before, pods, containers = leak.present(crictl), set(crictl.pods()), set(crictl.containers())
    request.node.log_offset = crictl.daemon.log_size()
    yield
    for container in set(crictl.containers()) - containers:
        crictl("rm", "--force", container)
    for pod in set(crictl.pods()) - pods:
        crictl("rmp", "--force", pod)
    leaked = leak.left(crictl, before | {"link kata-py0"})
    assert not leaked, "left behind:\n" + "\n".join(sorted(leaked))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failure shows what containerd and the shim logged meanwhile; the guest's console is in there too."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    crictl = getattr(item, "funcargs", {}).get("crictl")
    if report.failed and crictl is not None:
        text = crictl.daemon.log_since(getattr(item, "log_offset", 0))
        report.sections.append(("containerd and shim log", text[-20000:]))
