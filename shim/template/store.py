"""The directory of templates.

    <directory>/                 0700: what is in it becomes a VM's memory
        .lock                    flock'ed by whoever creates
        <key>/memory             a sparse file (see hypervisor.api.Snapshot)
              state
              template.json      what it was made of; written last
        <key>.rejected           why there is no template of this key; until when, as its mtime
        .new-<key>  .old-*       being made, being removed; leftovers of a crash when nobody has the lock

A template appears by one rename and goes by one, so nobody sees half of one. Who has it open while it is
removed goes on reading.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shim.errors import DataLoss, FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from shim.hypervisor.api import Fingerprint, Snapshot
from shim.template.key import File, Inputs
from shim.value import Value

# What failed may be tried again after this time: a template that is no good, or one that could not be made for a
# reason that may pass.
REJECTED_S = 3600.0
POSTPONED_S = 60.0
_MIB = 1 << 20


class Template(Value):
    """One template on disk. Times are seconds since 1970; `allocated` is in bytes."""

    key: str
    directory: Path
    inputs: Inputs
    memory_mib: int
    vcpus: int
    created: float
    used: float
    allocated: int

    @property
    def snapshot(self) -> Snapshot:
        return Snapshot(self.directory / "memory", self.directory / "state")


def inputs(fingerprint: Fingerprint) -> Inputs:
    """What the fingerprint says, with the files as they are now. NotFound names one that is missing."""
    return Inputs(fingerprint.words, tuple(_file(path) for path in fingerprint.files))


def _file(path: Path) -> File:
    try:
        found = os.stat(path)
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from error
    return File(str(path), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Store:
    """`limit_mib` is what all templates together may allocate. Methods raise OSError where the disk does."""

    def __init__(self, directory: Path, limit_mib: int) -> None:
        self._dir, self._limit = directory, limit_mib * _MIB

    def find(self, key: str) -> Template | None:
        """A template to use now. DataLoss says what is wrong with one that is broken."""
        directory = self._dir / key
        try:
            self._check_private()
            template = _load(directory)
            os.utime(directory)
        except FileNotFoundError as error:
            if directory.is_dir():
                raise DataLoss(f"{error.filename}: {error.strerror}") from error
            return None
        return template

    def all(self) -> list[Template]:
        """Every template that is whole, the one used last first."""
        found = []
        for directory in self._entries():
            try:
                found.append(_load(directory))
            except (DataLoss, FileNotFoundError):
                continue  # `find` tells who wants it, `prune` removes it
        return sorted(found, key=lambda template: template.used, reverse=True)

    @contextmanager
    def lock(self, *, wait: bool) -> Iterator[None]:
        """The right to create and to prune. Unavailable if somebody else has it and we are not to wait."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._check_private()
        with open(self._dir / ".lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise Unavailable("another template is being created") from error
            yield

    @contextmanager
    def new(self, made_of: Inputs, memory_mib: int, vcpus: int) -> Iterator[Snapshot]:
        """Files to write a template into. It is published at the end of the block, in place of any of the same
        key; an exception undoes it. Under the lock."""
        fresh = self._dir / f".new-{made_of.key}"
        _delete(fresh)
        fresh.mkdir(mode=0o700)
        try:
            snapshot = Snapshot(fresh / "memory", fresh / "state")
            yield snapshot
            about = {
                **made_of.to_json(),
                "memory_mib": memory_mib,
                "vcpus": vcpus,
                "created": time.time(),
                "sizes": {path.name: path.stat().st_size for path in (snapshot.memory, snapshot.state)},
            }
            if _allocated(fresh) > self._limit:
                raise ResourceExhausted(f"of {_allocated(fresh) // _MIB} MiB, which is over the limit")
            with open(fresh / "template.json", "x") as file:
                json.dump(about, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            self.remove(made_of.key)
            fresh.rename(self._dir / made_of.key)
        except BaseException:
            _delete(fresh)
            raise
        self._rejection(made_of.key).unlink(missing_ok=True)

    def remove(self, key: str) -> bool:
        """Whether there was one."""
        old = self._dir / f".old-{key}-{os.urandom(4).hex()}"
        try:
            (self._dir / key).rename(old)
        except FileNotFoundError:
            return False
        _delete(old)
        return True

    def reject(self, key: str, reason: str, for_s: float = REJECTED_S) -> None:
        """No template of this key, and no attempt to make one for a while."""
        self.remove(key)
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._rejection(key).write_text(reason)
        until = time.time() + for_s
        os.utime(self._rejection(key), (until, until))

    def rejected(self, key: str) -> str | None:
        """Why there is no template and none is to be made."""
        try:
            if time.time() < self._rejection(key).stat().st_mtime:
                return self._rejection(key).read_text()
        except FileNotFoundError:
            pass
        return None

    def prune(self, keep: str) -> list[str]:
        """Remove what a crash has left, templates that are broken or that no VM can have any more since a file
        has changed, and those used longest ago beyond the limit, but not `keep`. The keys. Under the lock."""
        for path in self._half_made():
            _delete(path)
        for path in self._dir.glob("*.rejected"):
            if self.rejected(path.stem) is None:
                path.unlink()
        templates = self.all()
        whole = {template.key for template in templates if _is_current(template)}
        gone = [path.name for path in self._entries() if path.name not in whole | {keep}]
        total = 0
        for template in sorted(templates, key=lambda template: template.key != keep):
            if template.key in gone:
                continue
            total += template.allocated
            if total > self._limit and template.key != keep:
                gone.append(template.key)
        for key in gone:
            self.remove(key)
        return gone

    def left(self, *, remove: bool = False) -> list[Path]:
        """What a crash has left half made or half removed; none of it while somebody creates a template."""
        if not self._dir.is_dir():
            return []
        try:
            with self.lock(wait=False):
                found = self._half_made()
                for path in found if remove else ():
                    _delete(path)
                return found
        except Unavailable:
            return []

    def _half_made(self) -> list[Path]:
        return sorted(self._dir.glob(".*-*"))

    def _entries(self) -> list[Path]:
        if not self._dir.is_dir():
            return []
        return [path for path in self._dir.iterdir() if path.is_dir() and not path.name.startswith(".")]

    def _rejection(self, key: str) -> Path:
        return self._dir / f"{key}.rejected"

    def _check_private(self) -> None:
        found = self._dir.stat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise FailedPrecondition(f"{self._dir} can be written by others: want it to be ours, mode 0700")


def _load(directory: Path) -> Template:
    """FileNotFoundError, or DataLoss if it is not what was published."""
    try:
        about = json.loads((directory / "template.json").read_bytes())
        for name in ("memory", "state"):
            size, wanted = (directory / name).stat().st_size, about["sizes"][name]
            if size != wanted:
                raise DataLoss(f"{directory / name} is of {size} bytes and not of {wanted}")
        return Template(
            key=directory.name,
            directory=directory,
            inputs=Inputs.from_json(about),
            memory_mib=int(about["memory_mib"]),
            vcpus=int(about["vcpus"]),
            created=float(about["created"]),
            used=directory.stat().st_mtime,
            allocated=_allocated(directory),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataLoss(f"{directory}/template.json: {error!r}") from error


def _is_current(template: Template) -> bool:
    try:
        return all(_file(Path(file.path)) == file for file in template.inputs.files)
    except NotFound:
        return False


def _allocated(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.iterdir())


def _delete(directory: Path) -> None:
    """Two may do it at once."""
    shutil.rmtree(directory, ignore_errors=True)
