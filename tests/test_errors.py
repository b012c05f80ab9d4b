import pytest

from shim import errors


def test_every_status_code_has_exactly_one_error() -> None:
    kinds = errors.ShimError.__subclasses__()
    assert sorted(kind.code for kind in kinds) == list(range(1, 17))


@pytest.mark.parametrize("kind", errors.ShimError.__subclasses__())
def test_an_error_survives_its_way_over_an_rpc(kind: type[errors.ShimError]) -> None:
    back = errors.from_status(kind.code, kind("why").message)
    assert type(back) is kind and str(back) == "why"


def test_a_code_from_the_future_is_unknown() -> None:
    assert type(errors.from_status(99, "m")) is errors.Unknown


@pytest.mark.parametrize(
    ("code", "stderr", "message"),
    [
        (2, " no such file\n", "qemu: exit status 2: no such file"),
        (-9, "", "qemu: signal 9: no message"),
    ],
)
def test_a_failed_child_says_who_how_and_why(code: int, stderr: str, message: str) -> None:
    for argv in (["qemu", "-x"], ["unshare", "--net", "--", "qemu", "-x"]):
        error = errors.ChildFailed(argv, code, stderr)
        assert str(error) == message and error.code == errors.Internal.code
