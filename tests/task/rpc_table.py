"""Every call of the Task service against every state: a table of gRPC status codes, and a walk that tries all of it.

0 is fine, 2 unknown, 5 not found, 6 already exists, 9 failed precondition, 12 unimplemented; `wait` does not answer;
`step` changes the state, is fine, and is how the walk gets on; `-` is not asked. `a/b`: ours answers a where runc's
shim answers b. All else is what runc's shim of containerd 1.6 answers, and 1.7's and 2's as far as they get.

The walk is a client that shares no code with the shim: it is used on fakes behind our server's socket and on real
containers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from integration.ttrpc import Answer, Task, message

# Of a container, asked of its init process.
INIT = """
             unknown  created  running  paused  stopped  deleted
State        5        0        0        0       0        5
Create       -        6/2      6/2      6/2     6/2      -
Start        5        step     2        2       2        5
Delete       5        -        2        2       step     5
Pids         5        0        0        0       0        5
Pause        5        2        step     2       2        5
Resume       5        2        2        step    2        5
Checkpoint   5        12/2     12/-     12/-    12/2     5
Update       5        0        0        0       2        5
Stats        5        0        0        0       0        5
Connect      0        0        0        0       0        0
Exec         5        step     step     2       2        5
Kill         5        0        0        0       5        5
KillAll      5        0        0        0/-     5/0      5
ResizePty    5        0        0        0       0        5
CloseIO      5        0        0        0       0        5
Wait         5        wait     wait     wait    0        5
Shutdown     0        0        0        0       0        0
"""
# Of an exec; the second line is the container's state.
EXEC = """
             none     created  created  running  stopped  created  running  stopped  created  stopped  deleted
             running  created  running  running  running  paused   paused   paused   stopped  stopped  deleted
State        5        0        0        0        0        0        0        0        0        0        5
Start        5        9/-      step     2        2        2        2        2        9/-      9/-      5
Delete       5        step     step     2        step     step     2        step     step     step     5
Exec         step     6        6        6        6        6        6        6        6        6        5
Kill         5        9        9        0        5        9        0        5        5/9      5        5
ResizePty    5        0        0        0        2        0        0        2        2/0      2        5
CloseIO      5/2      0        0        0        0        0        0        0        0        0        5
Wait         5        wait     wait     wait     0        wait/0   wait     0        0/wait   0        5
"""
_TYPES = "types.containerd.io/opencontainers/runtime-spec/1"
_SLEEP = {"args": ["sleep", "1000"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
_CONTINUE, _KILL = 18, 9


def columns(table: str, heads: int) -> dict[tuple[str, ...], dict[str, str]]:
    """{(state, …): {call: what it gives}}."""
    lines = [line.split() for line in table.strip("\n").splitlines()]
    names = list(zip(*lines[:heads], strict=True))
    assert len(set(names)) == len(names)
    found: dict[tuple[str, ...], dict[str, str]] = {name: {} for name in names}
    for call, *cells in lines[heads:]:
        for name, cell in zip(names, cells, strict=True):
            found[name][call] = cell
    return found


@dataclass
class Walk:
    """One container and its execs through all their states. `connect` opens a connection that gives up on an answer
    after so many seconds; `bundle` is a container's, ready to run; another container keeps the shim alive."""

    connect: Callable[[float], Task]
    container: str
    bundle: str
    runc: bool = False  # the second of two answers is wanted
    patience_s: float = 0.3  # without an answer: there is none to come
    wrong: list[str] = field(default_factory=list)

    def all(self) -> list[str]:
        """Walk; what was answered otherwise than the tables say."""
        self._init("unknown")
        self._step("Create")
        self._init("created")
        self._step("Exec", "c-created")
        self._exec("created", "created", "c-created")
        self._step("Delete", "c-created")
        self._step("Start")
        self._exec("none", "running", "nobody")
        for name in ("e-created", "p-created", "s-created"):
            self._step("Exec", name)
        for name in ("e-running", "e-stopped", "p-running", "p-stopped", "s-running"):
            self._step("Exec", name)
            self._step("Start", name)
        for name in ("e-stopped", "p-stopped"):
            self._end(name)
        self._init("running")
        for state in ("created", "running", "stopped"):
            self._exec(state, "running", f"e-{state}")
        self._step("Delete", "e-created")
        self._step("Delete", "e-stopped")
        self._step("Pause")
        self._init("paused")
        for state in ("created", "running", "stopped"):
            self._exec(state, "paused", f"p-{state}")
        self._step("Delete", "p-created")
        self._step("Delete", "p-stopped")
        self._step("Resume")
        self._end("")
        self._init("stopped")
        self._exec("created", "stopped", "s-created")
        self._exec("stopped", "stopped", "s-running")
        self._step("Delete", "s-created")
        self._step("Delete", "s-running")
        self._step("Delete")
        self._init("deleted")
        self._exec("deleted", "deleted", "s-running")
        return self.wrong

    def call(self, rpc: str, exec_id: str = "", timeout_s: float = 30.0, signal: int = _CONTINUE) -> Answer:
        """TimeoutError when there is no answer in time."""
        fields: dict[str, str | bytes | int] = {"f1": self.container}
        if exec_id:
            fields["f2"] = exec_id
        match rpc:
            case "Create":
                fields["f2"] = self.bundle
            case "Kill":
                fields["f3"] = signal
            case "KillAll":
                fields |= {"f3": signal, "f4": 1}
            case "Exec":
                spec = json.dumps(_SLEEP).encode()
                fields |= {"f2": exec_id or "refused", "f7": message(f1=f"{_TYPES}/Process", f2=spec)}
            case "ResizePty":
                fields |= {"f3": 80, "f4": 24}
            case "CloseIO":
                fields["f3"] = 1
            case "Update":
                limits = json.dumps({"memory": {"limit": 64 << 20}}).encode()
                fields["f2"] = message(f1=f"{_TYPES}/LinuxResources", f2=limits)
            case "Checkpoint":
                fields["f2"] = "/nowhere"
        with self.connect(timeout_s) as task:
            return task.call(rpc.removesuffix("All"), **fields)

    def _step(self, rpc: str, exec_id: str = "", **more: int) -> None:
        answer = self.call(rpc, exec_id, **more)
        assert answer.code == 0, f"{rpc} {exec_id}: {answer.code} {answer.message}; until then: {self.wrong}"

    def _end(self, exec_id: str) -> None:
        self._step("Kill", exec_id, signal=_KILL)
        self._step("Wait", exec_id)

    def _init(self, state: str) -> None:
        self._ask(columns(INIT, 1)[state,], "", state)

    def _exec(self, state: str, container: str, exec_id: str) -> None:
        self._ask(columns(EXEC, 2)[state, container], exec_id, f"exec {state}, container {container}")

    def _ask(self, column: dict[str, str], exec_id: str, state: str) -> None:
        for rpc, cell in column.items():
            ours, _, runcs = cell.partition("/")
            wanted = runcs or ours if self.runc else ours
            if wanted in ("step", "-"):
                continue
            try:
                answer = self.call(rpc, exec_id, timeout_s=self.patience_s if wanted == "wait" else 30.0)
                got = f"{answer.code}"
            except TimeoutError:
                answer, got = Answer(0, "", {}), "wait"
            if got != wanted:
                self.wrong.append(f"{state}: {rpc}: {got} instead of {wanted}: {answer.message}")
