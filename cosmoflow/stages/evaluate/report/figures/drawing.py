"""How every figure is opened, framed and written.

Figures are made with matplotlib's object interface, which has no global state and needs no display.
Most of a figure's time goes into ticks and labels, not into data: axes have few ticks, plain text
in place of formulas, and titles and labels at fixed distances, so that nothing is measured.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cosmoflow.stages.evaluate.report.figures.scales import tidy
from cosmoflow.stages.evaluate.report.methods import TRUTH_COLOUR, Style
from cosmoflow.tables import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


class Paper(NamedTuple):
    """Size of a figure, and of its letters.

    Attributes
    ----------
    width : float
        Inches.
    left, label : float
        Inches from the left edge to the first panel, and from a panel to its label along y.
    size : float
        Points of the letters; those of ticks and legends have one less.
    """

    width: float
    left: float
    label: float
    size: float


WIDE: Final = Paper(6.4, 0.8, 0.55, 12.0)
"""At 358 pixels, the width on a phone, the smallest letters are 9 pixels high."""
NARROW: Final = Paper(4.4, 0.66, 0.42, 11.0)
"""For three figures in a row: at 330 pixels the smallest letters are 10 pixels high."""
_LEGEND: Final = 26
"""Letters that a panel of a wide figure has room for beside the lines of a legend."""

_RC: Final[Any] = {
    # Fixed: matplotlib's own search for the height of a title measures all ticks first.
    "axes.titley": 1.0,
    "axes.titlepad": 5.0,
    "legend.frameon": False,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "mathtext.fontset": "dejavusans",
}

PIXELS: Final = 1024
"""Width of a PNG."""
_COMPRESSION: Final = 4
"""Of zlib: its default takes twice as long, for files that are 2 % smaller."""
_ALL: Final = slice(None)
_LETTER: Final = 0.58
"""Width of a letter over its height, on average."""


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
        Shape ``(rows, columns)``, or ``(rows, columns, parts)``, of matplotlib.axes.Axes.
    """

    canvas: Canvas
    grid: NDArray[Any]

    def add_bar(
        self, image: Any, label: str, extend: str, columns: slice = _ALL, *, above: float = 0.0
    ) -> None:
        """Draw the bar of an image's colours at the foot, below some of the columns.

        It is ``above`` inches higher where a legend is below it.
        """
        boxes = [axes.get_position() for axes in self.grid[-1, columns]]
        left, right = boxes[0].x0, boxes[-1].x1
        height = self.canvas.get_figheight()
        inset = 0.08 * (right - left)
        place = (left + inset, (0.6 + above) / height, right - left - 2.0 * inset, 0.13 / height)
        bar = self.canvas.add_axes(place)
        self.canvas.colorbar(image, cax=bar, orientation="horizontal", extend=extend, label=label)

    def add_legend(self, handles: Sequence[Any], labels: Sequence[str], columns: int = 2) -> None:
        """Draw a legend at the foot, some names a line; see :func:`legend_height`."""
        self.canvas.legend(
            handles, labels, loc="lower center", ncols=columns, handlelength=2.2, columnspacing=1.4
        )

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


def legend_height(names: int, columns: int = 2) -> float:
    """Return the height of a legend with ``names`` entries at the foot, inches."""
    return 0.15 + 0.24 * -(-names // columns)


@contextlib.contextmanager
def drawing(
    path: Path,
    rows: int,
    columns: int,
    *,
    paper: Paper = WIDE,
    aspect: float = 1.0,
    gap: float = 0.3,
    between: float = 0.0,
    foot: float = 1.36,
    parts: Sequence[tuple[float, float]] = (),
) -> Iterator[Sheet]:
    """Open a figure of equal panels; write it as PNG and PDF on leaving.

    Parameters
    ----------
    path : Path
        The PNG file.
    rows, columns : int
        Number of panels.
    paper : Paper
        Size of the figure and of its letters.
    aspect : float
        Height of a panel over its width.
    gap, between : float
        Inches between columns, and between rows beside what a title needs.
    foot : float
        Inches below the last row: labels, bars of colours, a legend.
    parts : sequence of (float, float)
        Cuts every panel into several: from and up to which share of its height each reaches.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.figure import Figure as Canvas

    head, right = 0.32, 0.22
    width = (paper.width - paper.left - right - gap * (columns - 1)) / columns
    tall = aspect * width
    height = rows * (tall + head) + (rows - 1) * between + foot
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(_RC | _letters(paper.size)), warnings.catch_warnings():
        # A field at rest has no power to put on a logarithmic axis; its panel stays empty.
        warnings.filterwarnings("ignore", "Data has no positive values", UserWarning)
        # Where all cells are alike there is nothing to draw a contour around.
        warnings.filterwarnings("ignore", "No contour levels were found", UserWarning)
        canvas = Canvas(figsize=(paper.width, height), dpi=PIXELS / paper.width)
        spans = list(parts) or [(0.0, 1.0)]
        grid = np.empty((rows, columns, len(spans)), dtype=object)
        for row, column, part in np.ndindex(*grid.shape):
            x = paper.left + column * (width + gap)
            y = height - (row + 1) * (tall + head) - row * between
            low, high = (tall * share for share in spans[part])
            place = (x, y + low, width, high - low)
            across, up = paper.width, height
            grid[row, column, part] = canvas.add_axes(
                (place[0] / across, place[1] / up, place[2] / across, place[3] / up)
            )
        yield Sheet(canvas, grid if parts else grid[..., 0])
        for axes in canvas.axes:
            tidy(axes)
            _place_text(axes, canvas, paper)
        # Not savefig, which draws everything once more beforehand. Neither dates nor versions in
        # the files: the same numbers give the same bytes.
        as_png: Any = FigureCanvasAgg(canvas)
        quick = {"compress_level": _COMPRESSION}
        as_png.print_png(path, metadata={"Software": None}, pil_kwargs=quick)
        nameless = {"CreationDate": None, "Creator": None, "Producer": None}
        as_pdf: Any = FigureCanvasPdf(canvas)
        as_pdf.print_pdf(path.with_suffix(".pdf"), metadata=nameless)


def _letters(size: float) -> dict[str, float]:
    """Return matplotlib's settings for letters of some points."""
    smaller = ("xtick.labelsize", "ytick.labelsize", "legend.fontsize")
    return dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), size) | dict.fromkeys(
        smaller, size - 1.0
    )


def _place_text(axes: Axes, canvas: Canvas, paper: Paper) -> None:
    """Put the labels at fixed distances, and make a title as short as its panel."""
    box = axes.get_position()
    width, height = box.width * paper.width, box.height * canvas.get_figheight()
    axes.xaxis.set_label_coords(0.5, -0.31 * paper.size / 12.0 / height)
    axes.yaxis.set_label_coords(-paper.label / width, 0.5)
    title = axes.get_title()
    letters = 1.1 * 72.0 * width / (_LETTER * paper.size)
    if len(title) > letters:
        size = max(0.8, letters / len(title)) * paper.size
        axes.set_title(shorten(title, int(letters / 0.8)), fontsize=size)


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


def fill_with_legend(axes: Axes, curves: Axes) -> None:
    """Make an empty panel the legend of the curves of another."""
    handles, names = curves.get_legend_handles_labels()
    axes.axis("off")
    axes.legend(handles, [shorten(name, _LEGEND) for name in names], loc="center", handlelength=2.4)


def square(side: float) -> dict[str, Any]:
    """Return the arguments that put the transpose of a plane of cells where its cells are."""
    return {"origin": "lower", "extent": (0.0, side, 0.0, side), "interpolation": "nearest"}


def listed(names: tuple[str, ...]) -> str:
    """Return names joined by commas and a final "and"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
