"""Packages of the machine's own Debian: which versions, downloaded and unpacked, with apt's configuration."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

# apt's unprivileged user cannot write into a private directory; what is downloaded is verified in any case.
_APT_GET = ("apt-get", "-qq", "-o", "APT::Sandbox::User=root")
_URI_LINE = re.compile(r"^'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) (?P<hash>SHA256:[0-9a-f]{64})$")


class PackageError(Exception):
    """apt or dpkg failed; the message has its own words."""


@dataclass(frozen=True, slots=True)
class Package:
    """One version of a package: `file` is apt's name for the download, `sha256` that of the whole .deb."""

    name: str
    version: str
    file: str
    sha256: str


def resolve(kernel_meta: str, names: Sequence[str]) -> tuple[Package, list[Package]]:
    """The kernel package a meta package stands for, and all packages (the kernel's too), sorted by name."""
    try:
        shown = _run(["apt-cache", "show", "--no-all-versions", kernel_meta])
    except PackageError as err:
        raise PackageError(f"{err}; is this Debian 12 on amd64, and did apt-get update run?") from err
    found = re.search(r"^Depends: (?:.*, )?(linux-image-[0-9][^\s,]*)", shown, re.MULTILINE)
    if found is None:
        raise PackageError(f"{kernel_meta} depends on no kernel package")
    kernel = found[1]
    packages: dict[str, Package] = {}
    with tempfile.TemporaryDirectory() as empty:  # apt says nothing of a file that is already there
        lines = _run([*_APT_GET, "download", "--print-uris", kernel, *names], cwd=Path(empty)).splitlines()
    for line in lines:
        if match := _URI_LINE.match(line):
            name, version, _ = match["file"].rsplit("_", 2)
            packages[name] = Package(name, unquote(version), match["file"], match["hash"].partition(":")[2])
    missing = sorted({kernel, *names} - packages.keys())
    if missing:
        raise PackageError(f"apt has no source for {', '.join(missing)}; try apt-get update")
    return packages[kernel], [packages[name] for name in sorted(packages)]


def download(packages: Sequence[Package], cache: Path) -> int:
    """Bring the .debs into `cache`; returns how many had to be fetched."""
    cache.mkdir(parents=True, exist_ok=True)
    absent = [package for package in packages if not _is_there(package, cache)]
    for package in absent:
        (cache / package.file).unlink(missing_ok=True)  # apt would take a damaged one for downloaded
    if absent:
        _run([*_APT_GET, "download", *(f"{package.name}={package.version}" for package in absent)], cwd=cache)
    for package in absent:
        if not _is_there(package, cache):
            raise PackageError(f"{package.file}: the download is not what apt's index says")
    return len(absent)


def unpack(packages: Sequence[Package], cache: Path, directory: Path) -> None:
    for package in packages:
        _run(["dpkg-deb", "-x", str(cache / package.file), str(directory)])


def _is_there(package: Package, cache: Path) -> bool:
    path = cache / package.file
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == package.sha256


def _run(argv: Sequence[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as err:
        raise PackageError(f"{argv[0]} is not installed: the image is built on Debian 12") from err
    if done.returncode:
        raise PackageError(f"{' '.join(argv[:4])} …: {done.stderr.strip() or f'exit {done.returncode}'}")
    return done.stdout
