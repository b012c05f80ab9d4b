import pytest
from betterproto.lib.google.protobuf import Any as AnyMessage

from shim.errors import FailedPrecondition, InvalidArgument
from shim.pb.containerd.task import v2
from shim.pb.runtimeoptions import v1
from shim.task.options import NO_OPTIONS, RuntimeOptions, check_options, runtime_options
from tests.sandbox.stack import Stack, with_stack


def ours(path: str = "", body: bytes = b"", url: str = "runtimeoptions.v1.Options") -> AnyMessage:
    return AnyMessage(type_url=url, value=bytes(v1.Options(config_path=path, config_body=body)))


def test_options_of_other_runtimes_are_ignored() -> None:
    for message in (AnyMessage(), AnyMessage("containerd.runc.v1.Options", b"\xff"), AnyMessage("", b"x")):
        assert runtime_options(message) == NO_OPTIONS
        check_options(message, RuntimeOptions("/a"))


def test_ours_are_read_by_either_form_of_the_type_url() -> None:
    assert runtime_options(ours("/a", b"x = 1")) == RuntimeOptions("/a", "x = 1")
    assert (
        runtime_options(ours("/a", url="type.googleapis.com/runtimeoptions.v1.Options")).config_path == "/a"
    )


@pytest.mark.parametrize("value", [b"\xff", b"\x12\x05/a", bytes(v1.Options(config_body=b"\xff"))])
def test_garbage_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidArgument, match="runtime options: "):
        runtime_options(AnyMessage("runtimeoptions.v1.Options", value))


def test_what_start_was_given_is_right_and_nothing_else_is() -> None:
    check_options(ours("/a"), RuntimeOptions("/a"))
    check_options(ours(), RuntimeOptions("/a", "x = 1"))
    with pytest.raises(FailedPrecondition, match="config_path is '/b' in Create and was '/a' at the start"):
        check_options(ours("/b"), RuntimeOptions("/a"))
    with pytest.raises(FailedPrecondition, match="config_body is 'x = 2' in Create"):
        check_options(ours(body=b"x = 2"), RuntimeOptions("", "x = 1"))


@with_stack
async def test_only_the_first_container_brings_the_settings(shim: Stack) -> None:
    with pytest.raises(FailedPrecondition, match="config_path"):
        await shim.create(options=ours("/other"))
    await shim.create()
    request = v2.CreateTaskRequest(id="c2", bundle=str(shim.bundle("c2")), options=ours("/other"))
    assert (await shim.task.create(request)).pid > 0
