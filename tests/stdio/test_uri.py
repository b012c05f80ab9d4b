"""What the stdio fields of requests name."""

from __future__ import annotations

import pytest

from shim.errors import InvalidArgument
from shim.stdio.uri import Endpoints, File, Logger, Stdio, parse


def test_paths_and_fifo_uris_are_opened_and_nothing_is_no_stream() -> None:
    assert parse(Stdio(False, "/a/in", "fifo:///a/out", "")) == Endpoints("/a/in", "/a/out", None)
    assert parse(Stdio()) == Endpoints(None, None, None)


def test_a_file_is_for_output() -> None:
    log = "file:///var/log/a%20b?x=y"
    assert parse(Stdio(False, "", log, log)) == Endpoints(None, File("/var/log/a b"), File("/var/log/a b"))
    with pytest.raises(InvalidArgument, match="stdin"):
        parse(Stdio(stdin=log))
    assert parse(Stdio(False, "", "/plain%20path", "")).stdout == "/plain%20path"


def test_a_logger_is_a_program_with_the_query_as_its_arguments() -> None:
    logger = Logger("/bin/my log", ("tag", "a b", "empty", "", "x", "1"), sends_byte=False)
    uri = "binary:///bin/my%20log?tag=a%20b&empty=&x=1&x=2"
    assert parse(Stdio(False, "", uri, "/e")) == Endpoints(None, logger, "/e")
    assert parse(Stdio(False, "", "", "binary-v2:///l")).stderr == Logger("/l", (), sends_byte=True)
    with pytest.raises(InvalidArgument, match="stdin"):
        parse(Stdio(stdin=uri))


def test_an_unknown_scheme_is_named_with_those_there_are() -> None:
    with pytest.raises(
        InvalidArgument, match="unknown scheme 'http': there are fifo, file, binary, binary-v2"
    ):
        parse(Stdio(stdout="http:///x"))


def test_a_terminal_has_no_stderr_whatever_is_given() -> None:
    assert parse(Stdio(True, "/i", "/o", "/e")) == Endpoints("/i", "/o", None)
    assert parse(Stdio(True, "/i", "/o", "nonsense")).stderr is None


@pytest.mark.parametrize(
    "uri",
    ["binary://l?a=b", "binary-v2:///l?a=%00", "ttrpc+unix:///s?streaming_id=1", "http://x",
     "relative", "fifo://relative", "/nul\0", "://", " ", "file://relative", "http:///x", "fifo://[/x"],
)  # fmt: skip
@pytest.mark.parametrize("field", ["stdin", "stdout", "stderr"])
def test_anything_else_is_refused_by_name(uri: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        parse(Stdio(**{field: uri}))  # type: ignore[arg-type]
    assert repr(uri) in str(error.value)
