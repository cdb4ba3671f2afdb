"""Small tables as text and HTML, for what Python shows of an object."""

from __future__ import annotations

import html
from collections.abc import Sequence

WIDTH = 100
"""Most characters of a line."""


def shorten(text: str, width: int = WIDTH) -> str:
    """Return a text of at most ``width`` characters, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text: the first column to the left, the others to the right."""
    lines = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def html_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as HTML."""

    def line(kind: str, cells: Sequence[str]) -> str:
        inner = "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells)
        return f"<tr>{inner}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><caption>{html.escape(title)}</caption>{line('th', headings)}{body}</table>"
