"""The life of one process as a table.

                                                                    PAUSED ──exit──▶ STOPPED
                                                                  pause▲ │resume
                                                                       │ ▼
    CREATING ──created──▶ CREATED ──start──▶ STARTING ──started──▶ RUNNING ──exit──▶ STOPPED
       │                   │  └──exit──▶ STOPPED  │                                     │
      fail                fail                   fail                                 delete
       └───────────────────┴──────▶ FAILED ◀──────┘                                     ▼
                                      └──delete──▶ DELETED ◀──delete── CREATED       DELETED

An init process begins in CREATING while its sandbox boots; an exec begins in CREATED. FAILED is a process
that never ran: there is no exit event for it. PAUSED is an init process, and its whole container with it: what
the execs are is kept, though State says of them that they are paused, too. `tests/sandbox/test_states.py` walks
the full matrix."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from shim.errors import FailedPrecondition, Internal, NotFound, ShimError, Unknown


class State(Enum):
    """Where a process is in its life."""

    CREATING = "creating"
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    FAILED = "failed"
    DELETED = "deleted"


class Event(Enum):
    """What happens to a process. START, PAUSE, RESUME and DELETE are asked for; the others are facts."""

    CREATED = "created"
    START = "start"
    STARTED = "started"
    PAUSE = "pause"
    RESUME = "resume"
    FAIL = "fail"
    EXIT = "exit"
    DELETE = "delete"


TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    State.CREATING: {Event.CREATED: State.CREATED, Event.FAIL: State.FAILED},
    State.CREATED: {
        Event.START: State.STARTING,
        Event.FAIL: State.FAILED,
        Event.EXIT: State.STOPPED,
        Event.DELETE: State.DELETED,
    },
    State.STARTING: {Event.STARTED: State.RUNNING, Event.FAIL: State.FAILED},
    State.RUNNING: {Event.PAUSE: State.PAUSED, Event.EXIT: State.STOPPED},
    State.PAUSED: {Event.RESUME: State.RUNNING, Event.EXIT: State.STOPPED},
    State.STOPPED: {Event.DELETE: State.DELETED},
    State.FAILED: {Event.DELETE: State.DELETED},
    State.DELETED: {},
}


def advance(state: State, event: Event) -> State:
    """The state after `event`.

    A request that does not fit raises what runc's shim answers (Unknown, FailedPrecondition or NotFound with
    its words); a fact that does not fit is an error of ours: Internal.
    """
    after = TRANSITIONS[state].get(event)
    if after is None:
        raise _refusal(state, event)
    return after


def _refusal(state: State, event: Event) -> ShimError:
    if event not in (Event.START, Event.PAUSE, Event.RESUME, Event.DELETE):
        return Internal(f"a {state.value} process cannot become {event.value}")
    if state is State.DELETED:
        return NotFound(f"cannot {event.value} a deleted process: not found")
    if state is State.CREATING:
        return FailedPrecondition("container must be created: failed precondition")
    what = "process" if event in (Event.START, Event.DELETE) else "container"
    return Unknown(f"cannot {event.value} a {state.value} {what}")
