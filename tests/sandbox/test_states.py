"""The full matrix of the process state machine."""

from __future__ import annotations

import pytest

from shim.errors import FailedPrecondition, Internal, NotFound, ShimError, Unknown
from shim.sandbox.states import Event, State, advance

S, E = State, Event
ALLOWED = {
    (S.CREATING, E.CREATED): S.CREATED,
    (S.CREATING, E.FAIL): S.FAILED,
    (S.CREATED, E.START): S.STARTING,
    (S.CREATED, E.FAIL): S.FAILED,
    (S.CREATED, E.EXIT): S.STOPPED,
    (S.CREATED, E.DELETE): S.DELETED,
    (S.STARTING, E.STARTED): S.RUNNING,
    (S.STARTING, E.FAIL): S.FAILED,
    (S.RUNNING, E.PAUSE): S.PAUSED,
    (S.RUNNING, E.EXIT): S.STOPPED,
    (S.PAUSED, E.RESUME): S.RUNNING,
    (S.PAUSED, E.EXIT): S.STOPPED,
    (S.STOPPED, E.DELETE): S.DELETED,
    (S.FAILED, E.DELETE): S.DELETED,
}


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_every_event_in_every_state_leads_somewhere_or_is_refused(state: State, event: Event) -> None:
    if (state, event) in ALLOWED:
        assert advance(state, event) is ALLOWED[state, event]
        return
    with pytest.raises(_refusal(state, event)):
        advance(state, event)


def _refusal(state: State, event: Event) -> type[ShimError]:
    if event not in (E.START, E.PAUSE, E.RESUME, E.DELETE):
        return Internal
    return {S.DELETED: NotFound, S.CREATING: FailedPrecondition}.get(state, Unknown)


@pytest.mark.parametrize(
    ("state", "event", "words"),
    [
        (S.RUNNING, E.DELETE, "cannot delete a running process"),
        (S.RUNNING, E.START, "cannot start a running process"),
        (S.PAUSED, E.DELETE, "cannot delete a paused process"),
        (S.PAUSED, E.PAUSE, "cannot pause a paused container"),
        (S.STOPPED, E.RESUME, "cannot resume a stopped container"),
        (S.DELETED, E.DELETE, "cannot delete a deleted process: not found"),
        (S.CREATING, E.START, "container must be created: failed precondition"),
    ],
)
def test_refusals_use_the_words_of_runc(state: State, event: Event, words: str) -> None:
    with pytest.raises(ShimError, match=f"^{words}$"):
        advance(state, event)
