"""How the report writes numbers and embeds images."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

NONE: Final = "\N{EN DASH}"


def number(value: float | None, digits: int) -> str:
    """Return a number with ``digits`` digits after the point, or a dash for None."""
    if value is None:
        return NONE
    if value != 0.0 and abs(value) < 0.5 * 10.0**-digits:
        return f"{value:.0e}"
    return f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    """Return a share in percent."""
    return NONE if share is None else f"{100.0 * share:.1f} %"


def ratio(value: float | None) -> str:
    """Return a number with three digits after the point, or fewer, so columns stay narrow."""
    size = abs(value or 0.0)
    return number(value, 3 if size < 9.9995 else 2 if size < 99.995 else 0)


def png(path: Path) -> dict[str, Any]:
    """Return the size of a PNG file in pixels and its bytes in base64."""
    data = path.read_bytes()
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    return {"width": width, "height": height, "data": base64.b64encode(data).decode("ascii")}


def flatten(context: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every leaf of nested mappings with its dotted key."""
    for key, value in context.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(str(part) for part in value)
        else:
            yield f"{prefix}{key}", str(value)
