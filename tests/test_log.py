import os

import pytest

from shim import log


def test_a_line_is_in_the_text_format_of_containerds_own_log() -> None:
    line = log.encode(1_700_000_000_000_000_005, "info", "sandbox ready", {"sandbox": "c1", "n": 3})
    assert line == b'time="2023-11-14T22:13:20.000000005Z" level=info msg="sandbox ready" sandbox=c1 n=3\n'


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain/word-1.2:3", b"plain/word-1.2:3"),
        ("", b'""'),
        ("two words", b'"two words"'),
        ('say "hi"\\', b'"say \\"hi\\"\\\\"'),
        ("a\nlevel=error msg=forged", b'"a\\nlevel=error msg=forged"'),
        ("\x1b[31m\r", b'"\\x1b[31m\\r"'),
        ("\udcff", b"\\xdcff"),
        (None, b"None"),
    ],
)
def test_a_value_never_leaves_its_field_or_its_line(value: object, written: bytes) -> None:
    line = log.encode(0, "info", "m", {"v": value})
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert written in line.partition(b" v=")[2]


def test_levels_below_the_chosen_one_are_left_out_and_bound_fields_come_first() -> None:
    reader, writer = os.pipe()
    logger = log.Log(writer, "warning", sandbox="s").bind(container="c")
    logger.debug("no")
    logger.info("no")
    logger.warning("yes", n=1)
    logger.error("yes")
    os.close(writer)
    lines = os.read(reader, 4096).decode().splitlines()
    os.close(reader)
    assert [line.partition(" level=")[2] for line in lines] == [
        "warning msg=yes sandbox=s container=c n=1",
        "error msg=yes sandbox=s container=c",
    ]


def test_a_full_or_closed_log_neither_blocks_nor_fails_the_caller() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    logger = log.Log(writer)
    for _ in range(2000):
        logger.info("x" * 100)
    os.close(reader)
    logger.info("nobody reads")
    os.close(writer)
    logger.info("not even open")
