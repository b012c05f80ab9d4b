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
        self.cgroups: list[str] = []
        self.redirections: list[Redirection] = []
        self.containers: dict[str, int] = {}

    @classmethod
    def create(cls, namespace: str, sandbox_id: str, address: str) -> Record:
        """A new record on disk, in place of any other. `address` is the shim's, `unix://<path>`."""
        run_dir = sandbox_dir(namespace, sandbox_id)
        make_run_dir(run_dir)
        record = cls(run_dir, namespace, sandbox_id, address)
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
            if record.address:
                _absolute(record.socket)
            for item in data["processes"]:
                process = Process(_text(item["role"]), _pid(item["pid"]), _number(item["start_time"]))
                record.processes.append(process)
            record.cgroups = [_absolute(item) for item in data["cgroups"]]
            for item in data["redirections"]:
                links = [_text(link) for link in item["links"]]
                redirection = Redirection(_absolute(item["netns"]), _text(item["identity"]), links)
                record.redirections.append(redirection)
            record.containers = {key: _number(value) for key, value in data["containers"].items()}
        except FileNotFoundError as error:
            raise NotFound(f"{path}: no record") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidArgument) as error:
            raise DataLoss(f"{path}: not a record: {error!r}") from error
        return record

    @classmethod
    def salvage(cls, run_dir: str, address: str) -> Record:
        """The record in `run_dir`, or without a sound one what is known all the same: where it would be, and the
        shim's `address` ("" for none)."""
        try:
            record = cls.load(run_dir)
        except (NotFound, DataLoss):
            _, namespace, sandbox_id = run_dir.rsplit("/", 2)
            return cls(run_dir, namespace, sandbox_id, address)
        record.address = record.address or address
        return record

    @property
    def socket(self) -> str:
        """The path at which the shim listens; "" if it is not known."""
        return self.address.removeprefix("unix://")

    def save(self) -> None:
        """Replace the file. Not synced: it lies in a tmpfs and matters only until the next boot."""
        import json

        data = {
            "namespace": self.namespace,
            "sandbox_id": self.sandbox_id,
            "address": self.address,
            "processes": [{"role": p.role, "pid": p.pid, "start_time": p.start_time} for p in self.processes],
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

    def add_cgroups(self, *paths: str) -> None:
        """Directories of cgroups, absolute; removed when no process is in them."""
        if new := [path for path in paths if _absolute(path) not in self.cgroups]:
            self.cgroups += new
            self.save()

    def forget_cgroups(self) -> None:
        if self.cgroups:
            self.cgroups = []
            self.save()

    def add_redirection(self, netns: str, links: Sequence[str]) -> Redirection:
        """Packets that come in at `links` of a network namespace are going to be redirected. OSError if there is no
        such namespace."""
        self.redirections.append(Redirection.at(_absolute(netns), links))
        self.save()
        return self.redirections[-1]

    def forget_redirection(self, redirection: Redirection) -> None:
        self.redirections.remove(redirection)
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
