import pytest

from shim.bootstrap.args import parse
from shim.errors import InvalidArgument

NEEDED = ["-namespace", "ns", "-id", "c1"]


def test_containerds_own_command_line_is_understood() -> None:
    call = parse([*NEEDED, "-address", "/a", "-publish-binary", "/b", "-bundle", "/c", "-debug", "delete"])
    assert (
        call.namespace,
        call.id,
        call.address,
        call.publish_binary,
        call.bundle,
        call.debug,
        call.action,
    ) == (
        *("ns", "c1", "/a", "/b", "/c"),
        *(True, "delete"),
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["-id", "c1", "-namespace", "ns"],
        ["--id", "c1", "--namespace", "ns"],
        ["-id=c1", "--namespace=ns"],
        ["-id", "other", "-id", "c1", "-namespace", "ns"],
        ["-debug=false", "-v=0", "-info=F", *NEEDED],
        [*NEEDED, "--"],
        ["-socket", "/s", "-debug-socket", "/d", *NEEDED],
    ],
)
def test_dashes_and_equal_signs_are_as_in_go(argv: list[str]) -> None:
    call = parse(argv)
    assert (call.namespace, call.id, call.action, call.debug) == ("ns", "c1", "", False)


def test_a_value_may_look_like_a_flag_or_hold_an_equal_sign() -> None:
    call = parse(["-id", "-debug", "-namespace", "a=b", "-address=x=y", "start"])
    assert (call.id, call.namespace, call.address, call.debug, call.action) == (
        "-debug",
        "a=b",
        "x=y",
        False,
        "start",
    )


def test_flags_end_at_the_action() -> None:
    call = parse([*NEEDED, "start", "-debug", "-nonsense"])
    assert call.action == "start" and not call.debug
    assert parse([*NEEDED, "--", "start"]).action == "start"


@pytest.mark.parametrize("flag", ["-v", "-version", "--version", "-v=true"])
def test_the_version_needs_nothing_else(flag: str) -> None:
    assert parse([flag]).version


def test_neither_does_the_runtime_info() -> None:
    assert parse(["-info"]).info and not parse(["-info"]).version


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "-namespace is required"),
        (["-namespace", "ns", "start"], "-id is required"),
        (["-namespace", "ns", "-id", ""], "-id is required"),
        (["-namespace", "ns", "-id", "a\0b"], "-id is required"),
        (["-namespace", "ns", "-id"], "flag needs an argument: -id"),
        (["-i", "c1"], "not defined: -i"),
        (["-inf"], "not defined: -inf"),
        (["---id", "c1"], "not defined: ---id"),
        (["-=x"], "not defined: -=x"),
        (["-debug=maybe", *NEEDED], "invalid boolean value 'maybe' for -debug"),
        (["-debug=", *NEEDED], "invalid boolean value '' for -debug"),
        ([*NEEDED, "stop"], "unknown action 'stop'"),
        ([*NEEDED, "-"], "unknown action '-'"),
        ([*NEEDED, "START"], "unknown action 'START'"),
    ],
)
def test_what_is_wrong_with_a_call_is_said(argv: list[str], said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(argv)
    assert said in str(caught.value)
