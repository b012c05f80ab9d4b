"""What the stdio fields of requests name."""

from __future__ import annotations

import pytest

from shim.errors import InvalidArgument
from shim.stdio.uri import Endpoints, Stdio, parse


def test_paths_and_fifo_uris_are_opened_and_nothing_is_no_stream() -> None:
    assert parse(Stdio(False, "/a/in", "fifo:///a/out", "")) == Endpoints("/a/in", "/a/out", None)
    assert parse(Stdio()) == Endpoints(None, None, None)


def test_a_terminal_has_no_stderr_whatever_is_given() -> None:
    assert parse(Stdio(True, "/i", "/o", "/e")) == Endpoints("/i", "/o", None)
    assert parse(Stdio(True, "/i", "/o", "nonsense")).stderr is None


@pytest.mark.parametrize(
    "uri",
    ["file:///x", "binary:///bin/l?a=b", "binary-v2:///l", "ttrpc+unix:///s?streaming_id=1", "http://x",
     "relative", "fifo://relative", "/nul\0", "://", " "],
)  # fmt: skip
@pytest.mark.parametrize("field", ["stdin", "stdout", "stderr"])
def test_anything_else_is_refused_by_name(uri: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        parse(Stdio(**{field: uri}))  # type: ignore[arg-type]
    assert repr(uri) in str(error.value)
