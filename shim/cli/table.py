"""Output for people: tables that fit 80 columns. And the options that commands share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

WIDTH = 80

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def echo_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1))


def table(columns: Sequence[tuple[str, int]], rows: Sequence[Sequence[object]]) -> str:
    """Rows below their headings. A column's width is negative to align it to the right; the last one's text is cut
    where the line would not fit, any other's in its middle, since names differ at both of their ends."""
    lines = []
    for row in ([name for name, _ in columns], *rows):
        line = ""
        for (_, width), value in zip(columns, row, strict=True):
            text = shortened(str(value), abs(width) - 1)
            line += f"{text:>{-width - 1}} " if width < 0 else f"{text:<{width}}"
        lines.append(line.rstrip()[:WIDTH])
    return "\n".join(lines)


def shortened(text: str, width: int) -> str:
    """`text` in at most `width` columns, without what could not be printed in one."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    if len(text) <= width:
        return text
    head = (width - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def mib(size: float) -> str:
    return f"{size / (1 << 20):.0f} MiB"
