"""Pictures in the terminal, of half blocks with colours or of shades."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

_MOST_COLUMNS: Final = 64
_UPPER: Final = "\u2580"
"""Upper half of a character: the foreground is the pixel above, the background the one below."""
_SHADES: Final = " \u2591\u2592\u2593\u2588"
_ASCII: Final = " .:-=+*#%@"

_COLOURS: Final = {
    False: ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)),
    True: ((33, 102, 172), (146, 197, 222), (247, 247, 247), (244, 165, 130), (178, 24, 43)),
}
"""Colours of viridis, and of a scale with white in the middle, from the first to the last."""


def show_picture(console: Console, values: NDArray[np.floating], *, signed: bool = False) -> None:
    """Print a picture.

    Parameters
    ----------
    values : (height, width) array
        Brightness, 0 to 1; the first row is at the top. The height is even.
    signed : bool
        Whether 0.5 is a neutral value, which is white.
    """
    upper, lower = values[0::2], values[1::2]
    if console.color_system is None:
        ramp = _SHADES if _encodes(console, _SHADES) else _ASCII
        ends = np.minimum((0.5 * (upper + lower) * len(ramp)).astype(int), len(ramp) - 1)
        for row in ends:
            console.print("".join(ramp[place] for place in row), markup=False, soft_wrap=True)
        return
    table = np.asarray(_COLOURS[signed], np.float64)
    for row in zip(upper, lower, strict=True):
        front, back = (_colours(line, table) for line in row)
        line = Text()
        for one, other in zip(front, back, strict=True):
            line.append(_UPPER, Style(color=Color.from_rgb(*one), bgcolor=Color.from_rgb(*other)))
        console.print(line, soft_wrap=True)


def pixels(console: Console, width: float, height: float) -> tuple[int, int]:
    """Return height and width of a picture, in pixels, that fits the terminal.

    Parameters
    ----------
    width, height : float
        Sides of what it shows, in any unit. Two pixels are one character high.
    """
    # Three lines are left for the title, the range and the prompt.
    columns, lines = min(console.width, _MOST_COLUMNS), max(console.height - 3, 8)
    each = max(width / columns, height / (2 * lines))
    return 2 * max(round(height / each / 2), 1), max(round(width / each), 1)


def resample(values: NDArray[np.floating], height: int, width: int) -> NDArray[np.float64]:
    """Return an array of another shape: means of the cells of a pixel, or repeated cells."""
    out = np.asarray(values, np.float64)
    for axis, size in enumerate((height, width)):
        cells = out.shape[axis]
        edges = np.arange(size) * cells // size
        if size >= cells:
            out = out.take(edges, axis)
        else:
            counts = np.diff(edges, append=cells).reshape((-1, 1) if axis == 0 else (1, -1))
            out = np.add.reduceat(out, edges, axis) / counts
    return out


def _colours(levels: NDArray[np.floating], table: NDArray[np.float64]) -> list[list[int]]:
    """Return red, green and blue of levels from 0 to 1, interpolated in a table."""
    places = levels * (len(table) - 1)
    inside = np.arange(len(table))
    bands = [np.interp(places, inside, table[:, band]) for band in range(3)]
    found: list[list[int]] = np.rint(np.stack(bands, axis=-1)).astype(int).tolist()
    return found


def _encodes(console: Console, text: str) -> bool:
    """Return whether the terminal has these characters."""
    try:
        text.encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
