"""How every figure is opened, framed and written.

Figures are made with matplotlib's object interface, which has no global state and needs no display.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cosmoflow.stages.evaluate.report.methods import TRUTH_COLOUR, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTH: Final = 6.4
"""Inches: at 390 pixels a letter of 12 points is then still 10 pixels high."""

_RC: Final[Any] = {
    "font.size": 12.0,
    "axes.titlesize": 12.0,
    "axes.labelsize": 12.0,
    "xtick.labelsize": 11.0,
    "ytick.labelsize": 11.0,
    "legend.fontsize": 11.0,
    "legend.frameon": False,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "mathtext.fontset": "dejavusans",
}

_DPI: Final = 160
_ALL: Final = slice(None)


class Figure(NamedTuple):
    """A drawn figure.

    Attributes
    ----------
    topic : str
        Section of the report that shows it.
    title, caption : str
        Heading, and the text below the image.
    alt : str
        Description for readers who cannot see the image.
    path : Path
        The PNG file; a PDF of the same name is written beside it.
    lines : bool
        Whether it consists of lines alone, whose colours may be inverted on a dark page.
    """

    topic: str
    title: str
    caption: str
    alt: str
    path: Path
    lines: bool = False


class Sheet(NamedTuple):
    """An open figure and its panels.

    Attributes
    ----------
    canvas : matplotlib.figure.Figure
        Lengths are fractions of its width and height.
    grid : ndarray
        Shape ``(rows, columns)``, of matplotlib.axes.Axes.
    """

    canvas: Canvas
    grid: NDArray[Any]

    def add_bar(self, image: Any, label: str, extend: str, columns: slice = _ALL) -> None:
        """Draw the bar of an image's colours at the foot, below some of the columns."""
        boxes = [axes.get_position() for axes in self.grid[-1, columns]]
        left, right = boxes[0].x0, boxes[-1].x1
        height = self.canvas.get_figheight()
        inset = 0.08 * (right - left)
        place = (left + inset, 0.6 / height, right - left - 2.0 * inset, 0.13 / height)
        bar = self.canvas.add_axes(place)
        self.canvas.colorbar(image, cax=bar, orientation="horizontal", extend=extend, label=label)

    def add_legend(self, handles: list[Any], labels: list[str]) -> None:
        """Draw a legend at the foot, two names a line; see :func:`legend_height`."""
        self.canvas.legend(handles, labels, loc="lower center", ncols=2, handlelength=2.6)

    def label_planes(self) -> None:
        """Label the outer panels of planes that share their axes."""
        for axes in self.grid[-1]:
            axes.set_xlabel("x [Mpc/h]")
        for axes in self.grid[:, 0]:
            axes.set_ylabel("y [Mpc/h]")
        for axes in self.grid[:-1].flat:
            axes.tick_params(labelbottom=False)
        for axes in self.grid[:, 1:].flat:
            axes.tick_params(labelleft=False)


def legend_height(names: int) -> float:
    """Return the height of a legend with ``names`` entries at the foot, inches."""
    return 0.15 + 0.24 * ((names + 1) // 2)


@contextlib.contextmanager
def drawing(
    path: Path,
    rows: int,
    columns: int,
    *,
    aspect: float = 1.0,
    gap: float = 0.3,
    between: float = 0.0,
    foot: float = 1.36,
) -> Iterator[Sheet]:
    """Open a figure of equal panels; write it as PNG and PDF on leaving.

    matplotlib's own search for a layout takes longer than the drawing.

    Parameters
    ----------
    path : Path
        The PNG file.
    rows, columns : int
        Number of panels.
    aspect : float
        Height of a panel over its width.
    gap, between : float
        Inches between columns, and between rows beside what a title needs.
    foot : float
        Inches below the last row: labels, bars of colours, a legend.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.figure import Figure as Canvas

    left, right, head = 0.8, 0.22, 0.32
    width = (WIDTH - left - right - gap * (columns - 1)) / columns
    tall = aspect * width
    height = rows * (tall + head) + (rows - 1) * between + foot
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(_RC), warnings.catch_warnings():
        # A field at rest has no power to put on a logarithmic axis; its panel stays empty.
        warnings.filterwarnings("ignore", "Data has no positive values", UserWarning)
        # Where all cells are alike there is nothing to draw a contour around.
        warnings.filterwarnings("ignore", "No contour levels were found", UserWarning)
        canvas = Canvas(figsize=(WIDTH, height), dpi=_DPI)
        grid = np.empty((rows, columns), dtype=object)
        for row, column in np.ndindex(rows, columns):
            x = left + column * (width + gap)
            y = height - (row + 1) * (tall + head) - row * between
            grid[row, column] = canvas.add_axes(
                (x / WIDTH, y / height, width / WIDTH, tall / height)
            )
        yield Sheet(canvas, grid)
        # Not savefig, which draws everything once more beforehand. Neither dates nor versions in
        # the files: the same numbers give the same bytes.
        as_png: Any = FigureCanvasAgg(canvas)
        as_png.print_png(path, metadata={"Software": None})
        nameless = {"CreationDate": None, "Creator": None, "Producer": None}
        as_pdf: Any = FigureCanvasPdf(canvas)
        as_pdf.print_pdf(path.with_suffix(".pdf"), metadata=nameless)


def numbers(values: list[float | None]) -> NDArray[np.float64]:
    """Return a metric's list as an array, None as NaN."""
    return np.array([np.nan if value is None else value for value in values])


def magnitude(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the length of a vector field ``(3, ...)``."""
    length: NDArray[np.float32] = np.sqrt(np.sum(field**2, axis=0))
    return length


def draw_counts(
    axes: Axes, counts: NDArray[Any], edges: NDArray[Any], method: str, look: Mapping[str, Style]
) -> None:
    """Draw a histogram: a filled one of the truth, a line of any other method."""
    style: dict[str, Any] = {"fill": True, "color": TRUTH_COLOUR, "alpha": 0.45}
    if method != "truth":
        style = {**look[method].line, "lw": 1.8}
    axes.stairs(counts, edges, label=method, **style)


def square(side: float) -> dict[str, Any]:
    """Return the arguments that put the transpose of a plane of cells where its cells are."""
    return {"origin": "lower", "extent": (0.0, side, 0.0, side), "interpolation": "nearest"}


def listed(names: tuple[str, ...]) -> str:
    """Return names joined by commas and a final "and"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
