"""What a container needs of the booted sandbox: the values, not the sandbox itself."""

from __future__ import annotations

import asyncio

from shim.agent.api import Agent
from shim.rootfs.api import RootfsShare
from shim.sandbox.capacity import Capacity
from shim.sandbox.disks import Disks
from shim.stdio.wiring import Wiring
from shim.value import Value


class Limits(Value):
    """How long things may take, in seconds.

    `drain_grace_s` is how long output may stand still after its process has ended before the exit is told,
    `drain_limit_s` how long it may go on flowing.
    """

    boot_s: float = 60.0
    stream_s: float = 10.0
    drain_grace_s: float = 2.0
    drain_limit_s: float = 30.0
    # How long an output may stand still after the exit was told before it is cut off. Our agent ends it sooner and
    # behind its last byte, so this is for agents that wait for ever; a VM that gets no CPU must not lose bytes.
    abandon_s: float = 30.0
    # For what must end because its container's init process has: the guest kernel kills it, then we do.
    exec_exit_s: float = 3.0
    # How long an exit by a SIGKILL that nobody asked for waits to be explained by the OOM killer.
    oom_grace_s: float = 0.5
    # Of a container's stats. containerd 2.3 asks for every container once in a second.
    stats_age_s: float = 1.0
    # How long to look for the reason when the agent is lost: the VM's death is seen a moment later.
    post_mortem_s: float = 1.0


# The guest takes 128 connections that it has not looked at yet, and an exec has three. More at once gain nothing: they
# wait for the guest's processors, with their time running.
EXECS_AT_ONCE = 32


class Guest(Value):
    """A booted guest. `pid` is the VMM's, which stands for every process in the guest; an exec is started inside of
    `starting`."""

    agent: Agent
    stdio: Wiring
    share: RootfsShare
    disks: Disks
    capacity: Capacity
    pid: int
    starting: asyncio.Semaphore
