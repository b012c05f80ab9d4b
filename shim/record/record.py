"""The record file of one sandbox."""

from __future__ import annotations

from shim.errors import DataLoss, InvalidArgument, NotFound
from shim.record.place import make_run_dir, sandbox_dir, write_file
from shim.record.process import Process
from shim.record.redirection import Redirection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Record:
    """The file of one sandbox. Every method that changes it has it on disk when it returns.

    `containers` maps a container's id to the pid that was reported for it, which `delete` answers with.
    """

    def __init__(self, run_dir: str, namespace: str, sandbox_id: str, address: str) -> None:
        self.run_dir, self.namespace, self.sandbox_id, self.address = run_dir, namespace, sandbox_id, address
        self.processes: list[Process] = []
        self.mounts: list[str] = []
        self.sockets: list[str] = []
        self.paths: list[str] = []
        self.cgroups: list[str] = []
        self.redirections: list[Redirection] = []
        self.containers: dict[str, int] = {}

    @classmethod
    def create(cls, namespace: str, sandbox_id: str, address: str) -> Record:
        """A new record on disk, in place of any other. `address` is the shim's, `unix://<path>`; the socket
        is among what `teardown` removes."""
        run_dir = sandbox_dir(namespace, sandbox_id)
        make_run_dir(run_dir)
        record = cls(run_dir, namespace, sandbox_id, address)
        if address:
            record.sockets.append(address.removeprefix("unix://"))
        record.save()
        return record

    @classmethod
    def load(cls, run_dir: str) -> Record:
        """The record in `run_dir`. NotFound if there is none, DataLoss if it makes no sense."""
        import json

        path = f"{run_dir}/record.json"
        try:
            with open(path, "rb") as file:
                data = json.load(file)
            record = cls(run_dir, *(_text(data[key]) for key in ("namespace", "sandbox_id", "address")))
            for item in data["processes"]:
                process = Process(_text(item["role"]), _pid(item["pid"]), _number(item["start_time"]))
                record.processes.append(process)
            record.mounts = [_absolute(item) for item in data["mounts"]]
            record.sockets = [_absolute(item) for item in data["sockets"]]
            record.paths = [_absolute(item) for item in data["paths"]]
            record.cgroups = [_absolute(item) for item in data.get("cgroups", ())]  # as with the next
            for item in data.get("redirections", ()):  # a record of before there were any
                links = [_text(link) for link in item["links"]]
                redirection = Redirection(_absolute(item["netns"]), _text(item["identity"]), links)
                record.redirections.append(redirection)
            record.containers = {key: _number(value) for key, value in data["containers"].items()}
        except FileNotFoundError as error:
            raise NotFound(f"{path}: no record") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidArgument) as error:
            raise DataLoss(f"{path}: not a record: {error!r}") from error
        return record

    def save(self) -> None:
        """Replace the file. Not synced: it lies in a tmpfs and matters only until the next boot."""
        import json

        data = {
            "namespace": self.namespace,
            "sandbox_id": self.sandbox_id,
            "address": self.address,
            "processes": [{"role": p.role, "pid": p.pid, "start_time": p.start_time} for p in self.processes],
            "mounts": self.mounts,
            "sockets": self.sockets,
            "paths": self.paths,
            "cgroups": self.cgroups,
            "redirections": [
                {"netns": r.netns, "identity": r.identity, "links": r.links} for r in self.redirections
            ],
            "containers": self.containers,
        }
        write_file(f"{self.run_dir}/record.json", json.dumps(data, indent=1))

    def add_process(self, role: str, pid: int) -> None:
        """`role` "daemon" is the shim itself. NotFound if there is no such process any more."""
        self.processes.append(Process.find(role, pid))
        self.save()

    def forget_process(self, pid: int) -> None:
        self.processes = [process for process in self.processes if process.pid != pid]
        self.save()

    def add_mount(self, path: str) -> None:
        """A mount point, absolute; unmounted in reverse order."""
        self._add(self.mounts, path)

    def add_socket(self, path: str) -> None:
        """A Unix socket outside of the runtime directory, absolute."""
        self._add(self.sockets, path)

    def add_path(self, path: str) -> None:
        """A file or tree outside of the runtime directory, absolute, that is ours to delete."""
        self._add(self.paths, path)

    def add_cgroup(self, path: str) -> None:
        """A cgroup's directory, absolute; removed when no process is in it."""
        self._add(self.cgroups, path)

    def add_redirection(self, netns: str, links: Sequence[str]) -> Redirection:
        """Packets that come in at `links` of a network namespace are going to be redirected. OSError if there is no
        such namespace."""
        self.redirections.append(Redirection.at(_absolute(netns), links))
        self.save()
        return self.redirections[-1]

    def forget_redirection(self, redirection: Redirection) -> None:
        self.redirections.remove(redirection)
        self.save()

    def forget(self, path: str) -> None:
        """The mount, socket, path or cgroup is gone. Nothing happens if it is not known."""
        for entries in (self.mounts, self.sockets, self.paths, self.cgroups):
            if path in entries:
                entries.remove(path)
        self.save()

    def set_container(self, container_id: str, pid: int) -> None:
        """`pid` was reported to containerd as the container's."""
        self.containers[container_id] = pid
        self.save()

    def forget_container(self, container_id: str) -> None:
        self.containers.pop(container_id, None)
        self.save()

    def daemon(self) -> Process | None:
        return next((process for process in self.processes if process.role == "daemon"), None)

    def _add(self, entries: list[str], path: str) -> None:
        if _absolute(path) not in entries:
            entries.append(path)
            self.save()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"want a string, not {value!r}")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"want a number, not {value!r}")
    return value


def _pid(value: object) -> int:
    pid = _number(value)
    if not 1 < pid < 1 << 31:
        raise ValueError(f"{pid} is no pid of ours")
    return pid


def _absolute(value: object) -> str:
    path = _text(value)
    if not path.startswith("/") or ".." in path.split("/"):
        raise InvalidArgument(f"{path!r}: want an absolute path without '..'")
    return path
