"""Tables and figures as HTML, and how numbers are written in them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final

from cosmoflow.stages.evaluate.report.figures import Figure
from cosmoflow.stages.evaluate.report.methods import Style

NONE: Final = "\N{EN DASH}"


class Html(str):
    """Markup, which is not escaped again."""

    __slots__ = ()


def text(value: object) -> str:
    """Return what a cell shows: markup as it is, anything else escaped."""
    return value if isinstance(value, Html) else escape(str(value))


def section(name: str, title: str, content: Iterable[str]) -> Iterator[str]:
    """Yield a section that the contents link to."""
    yield f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>'
    yield from content
    yield "</section>"


def note(words: str) -> str:
    """Return a paragraph in small print."""
    return f'<p class="note">{escape(words)}</p>'


def plates(figures: Sequence[Figure], topic: str) -> list[str]:
    """Return the figures of a topic."""
    return [plate(figure) for figure in figures if figure.topic == topic]


def beside(*columns: str, kind: str = "pair") -> str:
    """Return columns that stand side by side where the page is wide enough for them."""
    return f'<div class="{kind}">{"".join(f"<div>{column}</div>" for column in columns)}</div>'


def plate(figure: Figure) -> str:
    """Return a figure with its image in it."""
    data = figure.path.read_bytes()
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    image = base64.b64encode(data).decode("ascii")
    # Not lazily: the data are here already, and a page that is printed must have them.
    return (
        f'<figure><h3>{escape(figure.title)}</h3><img alt="{escape(figure.alt)}" '
        f'class="{"lines" if figure.lines else "maps"}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{image}"><figcaption>{escape(figure.caption)}</figcaption>'
        "</figure>"
    )


def table(caption: str, head: Sequence[str], rows: Iterable[str], kind: str = "") -> str:
    """Return a table in a region of its own, which scrolls where the page is too narrow."""
    # A region that scrolls must be reachable by keyboard, and named.
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<table class="{kind}"><caption>{escape(caption)}</caption><thead><tr>{columns}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def row(
    name: str, *cells: object, look: Mapping[str, Style] | None = None, published: bool = False
) -> str:
    """Return a row of a table, with the colour that its method has in the figures."""
    dot = ""
    if look is not None and name in look:
        dot = f'<span class="swatch" style="background:{look[name].colour}"></span>'
    values = "".join(cell if isinstance(cell, Bar) else f"<td>{text(cell)}</td>" for cell in cells)
    kind = ' class="published"' if published else ""
    return f'<tr{kind}><th scope="row">{dot}{escape(str(name))}</th>{values}</tr>'


class Bar(Html):
    """A cell with a bar in it."""

    __slots__ = ()


def bar(share: float, colour: str) -> Bar:
    """Return a cell with a bar over ``share`` of its width; the number stands beside it."""
    width = 100.0 * min(max(share, 0.0), 1.0)
    style = f"width:{width:.1f}%;background:{colour}"
    return Bar(f'<td class="bar" aria-hidden="true"><i style="{style}"></i></td>')


def number(value: float | None, digits: int) -> str:
    """Return a number with so many digits after the point; a dash for what is no number."""
    if value is None:
        return NONE
    if value != 0.0 and abs(value) < 0.5 * 10.0**-digits:
        return f"{value:.0e}"
    return f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    """Return a share in percent."""
    return NONE if share is None else f"{100.0 * share:.1f} %"


def ratio(value: float | None) -> str:
    """Return a number with four digits or three after the point, so columns stay narrow."""
    size = abs(value or 0.0)
    return number(value, 3 if size < 9.9995 else 2 if size < 99.995 else 0)


def with_error(value: float | None, error: float | None) -> Html:
    """Return a number and, in small print below it, its error."""
    below = "" if error is None else f"<small>± {ratio(error)}</small>"
    return Html(f"{ratio(value)}{below}")


def plus_minus(mean: float | None, scatter: float | None, digits: int) -> Html:
    """Return a mean and, in small print below it, a scatter."""
    return Html(f"{number(mean, digits)}<small>± {number(scatter, digits)}</small>")


def spread(found: Mapping[str, Any], name: str, digits: int) -> Html:
    """Return mean and scatter of a figure."""
    return plus_minus(found[f"mean_{name}"], found[f"scatter_{name}"], digits)


def flatten(context: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every leaf of nested mappings with its dotted key."""
    for key, value in context.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(str(part) for part in value)
        else:
            yield f"{prefix}{key}", str(value)
