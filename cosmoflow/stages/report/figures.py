"""The figures of an evaluation report, as PNG files narrow enough to read on a phone.

Every function takes a :class:`Comparison` and a folder and returns what it drew. Figures are made
with matplotlib's object interface, which has no global state and needs no display.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cosmoflow.numerics.comparison import Comparison
from cosmoflow.stages.report import paper_tables
from cosmoflow.stages.report.methods import (
    TRUTH_COLOUR,
    best_baseline,
    best_network,
    shown_in_slices,
    styles,
)

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
    "savefig.dpi": 160,
    "mathtext.fontset": "dejavusans",
}

_FOUR: Final = {
    "speed": r"$|v|$",
    "divergence": r"$\theta=\nabla\cdot v$",
    "momentum": r"$p=|v|\,\delta$",
    "theta_p": r"$\Theta_p=|\nabla\times(\rho v)|$",
}


_POWER_UNITS: Final = (
    "Units of P(k): (km/s)^2 (Mpc/h)^3 for |v| and p, (km/s)^2 (Mpc/h) for the two derivatives."
)


class Figure(NamedTuple):
    """A drawn figure: what it is called, what it says and where it lies."""

    title: str
    caption: str
    path: Path


@contextlib.contextmanager
def _drawing(path: Path, height: float) -> Iterator[Canvas]:
    """Open a figure of the standard width and write it as PNG on leaving."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(_RC), warnings.catch_warnings():
        # A field at rest has no power to put on a logarithmic axis; its panel stays empty.
        warnings.filterwarnings("ignore", "Data has no positive values", UserWarning)
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
        yield canvas
        # No software version in the file: the same numbers give the same bytes.
        canvas.savefig(path, format="png", metadata={"Software": None})


def make_figures(comparison: Comparison, folder: Path) -> list[Figure]:
    """Draw all figures of a report into ``folder``, in the order the report shows them."""
    drawn = [*slices(comparison, folder), *histograms(comparison, folder)]
    drawn += [*spectra(comparison, folder), *whole_box(comparison, folder)]
    return drawn + residual_by_density(comparison, folder)


def _speed(field: NDArray[np.float32]) -> NDArray[np.float32]:
    speed: NDArray[np.float32] = np.sqrt(np.sum(field**2, axis=0))
    return speed


def _arrows(axes: Axes, field: NDArray[np.float32], side: float, top: float) -> None:
    """Draw the in-plane velocity at some 20 x 20 cells; ``top`` km/s is 1.8 spacings long."""
    cells = field.shape[-1]
    step = max(1, round(cells / 20))
    at = np.arange(step // 2, cells, step)
    x = (at + 0.5) * side / cells
    u, v = (part[np.ix_(at, at)].T for part in field[:2])
    # Unsmoothed linear theory is wild in clusters: longer arrows would hide their neighbours.
    length = np.maximum(np.hypot(u, v) / (1.5 * top), 1.0)
    spacing = step * side / cells
    axes.quiver(
        x,
        x,
        u / length,
        v / length,
        angles="xy",
        scale_units="xy",
        scale=top / (1.8 * spacing),
        width=0.006,
        headwidth=3.6,
        headlength=3.6,
        headaxislength=3.2,
        color="black",
    )


def slices(comparison: Comparison, folder: Path) -> list[Figure]:
    """Draw velocities and residuals around the strongest infall, like the paper's Figure 3."""
    from matplotlib.colors import LogNorm

    patch, names = comparison.patch, shown_in_slices(comparison)
    cut = {name: patch.cut(comparison.velocity[name]) for name in ("truth", *names)}
    density = patch.cut(comparison.density)
    side, thickness = (float(comparison.metrics["patch"][key]) for key in ("side", "thickness"))
    top = max(float(np.percentile(_speed(cut["truth"]), 98.0)), 1e-3)
    path = folder / "slices.png"
    with _drawing(path, 2.95 * (1 + len(names)) + 1.2) as canvas:
        grid = canvas.subplots(1 + len(names), 2, sharex=True, sharey=True, squeeze=False)
        frame: dict[str, Any] = {"origin": "lower", "extent": (0.0, side, 0.0, side)}
        speeds: dict[str, Any] = {"cmap": "YlGnBu", "vmin": 0.0, "vmax": 1.35 * top, **frame}
        shades = grid[0, 1].imshow(
            np.maximum(density, 0.05).T, cmap="magma", norm=LogNorm(0.05, 50.0), **frame
        )
        grid[0, 1].set_title("density")
        panels = [(grid[0, 0], "true velocity", cut["truth"])]
        for row, name in zip(grid[1:], names, strict=True):
            panels += [
                (row[0], name, cut[name]),
                (row[1], "its residual", cut[name] - cut["truth"]),
            ]
        for axes, title, field in panels:
            image = axes.imshow(_speed(field).T, **speeds)
            _arrows(axes, field, side, top)
            axes.set_title(title)
        for axes in grid[-1]:
            axes.set_xlabel("x [Mpc/h]")
        for axes in grid[:, 0]:
            axes.set_ylabel("y [Mpc/h]")
        bar: dict[str, Any] = {"location": "bottom", "shrink": 0.9, "aspect": 18, "pad": 0.01}
        canvas.colorbar(image, ax=grid[:, 0], label="|v| [km/s]", extend="max", **bar)
        canvas.colorbar(shades, ax=grid[:, 1], label="density / mean", extend="both", **bar)
    caption = (
        f"A slice of {side:.0f} x {side:.0f} x {thickness:.1f} Mpc/h "
        "around the strongest smoothed infall of the box (largest squared divergence), as in the "
        "paper's Figure 3. Colour is the three-dimensional speed, arrows the velocity in the "
        "plane; all panels share colours and arrow lengths, and arrows are cut at 1.5 times the "
        f"98th percentile of the true speed ({top:.0f} km/s). A residual is predicted minus true."
    )
    return [Figure("Velocities around the strongest infall", caption, path)]


def histograms(comparison: Comparison, folder: Path) -> list[Figure]:
    """Draw the distributions of speed, relative residual and angle in the same slice."""
    patch, look = comparison.patch, styles(comparison.methods)
    names = shown_in_slices(comparison)
    truth = patch.cut(comparison.velocity["truth"])
    speed = _speed(truth)
    bins = np.linspace(0.0, max(1.6 * float(np.percentile(speed, 99.0)), 1e-3), 33)
    path = folder / "histograms.png"
    with _drawing(path, 5.6) as canvas:
        grid = canvas.subplots(2, 2)
        fast, ratio, angle, words = grid.flat
        fast.hist(speed.ravel(), bins, color=TRUTH_COLOUR, alpha=0.45, label="truth")
        for name in names:
            field = patch.cut(comparison.velocity[name])
            line: dict[str, Any] = {
                "histtype": "step",
                "color": look[name].colour,
                "linestyle": look[name].dash,
                "linewidth": 1.8,
                "label": name,
            }
            fast.hist(np.minimum(_speed(field), bins[-1]).ravel(), bins, **line)
            relative = _speed(field - truth) / np.maximum(speed, 1e-6)
            ratio.hist(np.minimum(relative, 2.0).ravel(), np.linspace(0.0, 2.0, 33), **line)
            dot = np.sum(field * truth, axis=0)
            cosine = dot / np.maximum(_speed(field) * speed, 1e-6)
            angle.hist(np.clip(cosine, -1.0, 1.0).ravel(), np.linspace(-1.0, 1.0, 33), **line)
        angle.set_yscale("log")
        fast.set_xlabel("|v| [km/s]")
        ratio.set_xlabel("|residual| / |true v|")
        angle.set_xlabel(r"cos(angle to true v)")
        for axes in (fast, angle):
            axes.set_ylabel("cells")
        words.axis("off")
        words.legend(*fast.get_legend_handles_labels(), loc="center", handlelength=2.4)
    caption = (
        "Cells of the slice above: speed, residual over true speed, and cosine of the angle "
        "between predicted and true velocity. The last bins of the first two are open."
    )
    return [Figure("Speeds, residuals and angles in the slice", caption, path)]


def spectra(comparison: Comparison, folder: Path) -> list[Figure]:
    """Draw power, T(k) and r(k) of the paper's four quantities, like its Figure 6."""
    measured = comparison.metrics["spectra"]
    drawn = []
    if measured["subbox"] is not None:
        box = measured["subbox"]
        path = folder / "spectra_subbox.png"
        _draw_spectra(comparison, box["quantities"], path)
        drawn.append(
            Figure(
                "Spectra of the sub-boxes, as in the paper",
                f"Mean over {box['boxes']} sub-box{'es' if box['boxes'] > 1 else ''} of "
                f"({box['side']:.0f} Mpc/h)^3, plain transforms and finite differences, as in the "
                "paper's Figure 6. Below each power: T(k) = P_predicted / P_true, with the "
                "paper's U-net (Tables 1 to 4) as open circles, and the cross-correlation r(k), "
                "which a field that is merely as lively as the truth cannot fake. "
                f"{_POWER_UNITS}",
                path,
            )
        )
    path = folder / "spectra_full.png"
    _draw_spectra(comparison, measured["full"]["quantities"], path)
    caption = (
        "The same quantities in the whole periodic box, without the leakage that the faces of a "
        f"sub-box cause; divergence by spectral derivatives. {_POWER_UNITS}"
    )
    return [*drawn, Figure("Spectra of the periodic box", caption, path)]


def _draw_spectra(comparison: Comparison, quantities: dict[str, Any], path: Path) -> None:
    look = styles(comparison.methods)
    with _drawing(path, 10.4) as canvas:
        blocks = canvas.subfigures(2, 2, squeeze=False)
        for place, (block, (quantity, label)) in enumerate(
            zip(np.ravel(blocks), _FOUR.items(), strict=True)
        ):
            power, ratio, match = block.subplots(
                3, 1, sharex=True, gridspec_kw={"height_ratios": (3, 2, 2)}
            )
            found = quantities[quantity]
            k = _numbers(found["k"])
            power.loglog(k, _numbers(found["truth"]), color=TRUTH_COLOUR, lw=4.0, alpha=0.6)
            for name in comparison.methods:
                curve = found["methods"][name]
                line: dict[str, Any] = {"color": look[name].colour, "ls": look[name].dash}
                power.loglog(k, _numbers(curve["power"]), **line)
                ratio.loglog(k, _numbers(curve["T"]), **line)
                match.semilogx(k, _numbers(curve["r"]), **line)
            paper = paper_tables.TRANSFER[quantity][paper_tables.UNET]
            inside = [i for i, at in enumerate(paper_tables.TABLE_K) if k[0] <= at <= k[-1]]
            ratio.plot(
                [paper_tables.TABLE_K[i] for i in inside],
                [paper[i] for i in inside],
                **_PAPER_MARK,
            )
            power.set_title(label)
            _frame_spectrum(power, ratio, match)
            block.align_ylabels()
            if place % 2 == 0:
                power.set_ylabel("P(k)")
                ratio.set_ylabel("T(k)")
                match.set_ylabel("r(k)")
        _legend(canvas, comparison)


_PAPER_MARK: Final[dict[str, Any]] = {
    "marker": "o",
    "mfc": "white",
    "mec": "black",
    "ms": 5.5,
    "ls": "none",
    "zorder": 5,
}


def _frame_spectrum(power: Axes, ratio: Axes, match: Axes) -> None:
    """Set limits and ticks, so that a baseline gone wild does not squash the rest."""
    from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

    for axes in (ratio, match):
        axes.axhline(1.0, color="black", lw=0.7)
    low, high = ratio.get_ylim()
    low, high = min(max(low, 0.03), 0.27), max(min(high, 120.0), 3.5)
    ratio.set_ylim(low, high)
    match.set_ylim(-0.05, 1.08)
    match.set_xlabel("k [h/Mpc]")
    decades = [0.01, 0.1, 1.0, 10.0, 100.0]
    halves = sorted([*decades, 0.03, 0.3, 3.0, 30.0])
    for axis, ticks in ((match.xaxis, halves), (ratio.yaxis, decades if high > 10.0 else halves)):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    # The truth decides how deep the powers' axis reaches: a smoothed field has none at high k.
    truth = np.asarray(power.lines[0].get_ydata(), dtype=float)
    usable = truth[np.isfinite(truth) & (truth > 0.0)]
    if usable.size:
        power.set_ylim(bottom=0.2 * float(usable.min()))


def _legend(canvas: Canvas, comparison: Comparison) -> None:
    from matplotlib.lines import Line2D

    look = styles(comparison.methods)
    handles = [Line2D([], [], color=TRUTH_COLOUR, lw=4.0, alpha=0.6, label="truth")]
    handles += [
        Line2D([], [], color=look[name].colour, ls=look[name].dash, label=name)
        for name in comparison.methods
    ]
    handles.append(Line2D([], [], label="paper's U-net", **_PAPER_MARK))
    canvas.legend(handles=handles, loc="outside lower center", ncols=2, handlelength=2.6)


def _numbers(values: list[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values])


def whole_box(comparison: Comparison, folder: Path) -> list[Figure]:
    """Draw one velocity component over the whole slice, and what the best methods miss of it."""
    truth = comparison.velocity["truth"][0]
    found = (best_network(comparison), best_baseline(comparison))
    names = [name for name in found if name is not None]
    fields = {name: comparison.velocity[name][0] for name in names}
    panels = [("truth", truth), (names[0], fields[names[0]])]
    panels += [(f"residual: {name}", fields[name] - truth) for name in names]
    top = max(float(np.percentile(np.abs(truth), 99.5)), 1e-3)
    path = folder / "whole_box.png"
    rows = (len(panels) + 1) // 2
    with _drawing(path, 2.95 * rows + 1.0) as canvas:
        grid = canvas.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
        for axes, (title, field) in zip(grid.flat, panels, strict=False):
            image = axes.imshow(
                field.T,
                origin="lower",
                extent=(0.0, comparison.box_size, 0.0, comparison.box_size),
                cmap="RdBu_r",
                vmin=-top,
                vmax=top,
            )
            axes.set_title(title)
        for axes in grid.flat[len(panels) :]:
            axes.axis("off")
        for axes in grid[-1]:
            axes.set_xlabel("x [Mpc/h]")
        for axes in grid[:, 0]:
            axes.set_ylabel("y [Mpc/h]")
        canvas.colorbar(
            image,
            ax=grid,
            location="bottom",
            label=r"$v_x$ [km/s]",
            extend="both",
            shrink=0.7,
            aspect=30,
            pad=0.01,
        )
    caption = (
        "The x component of the velocity in a slice through the whole box, at the height of the "
        "slice above; residuals (predicted minus true) in the same colours."
    )
    return [Figure("One velocity component across the box", caption, path)]


def residual_by_density(comparison: Comparison, folder: Path) -> list[Figure]:
    """Draw the rms residual of every method against the density of the cell."""
    found, look = comparison.metrics["by_density"], styles(comparison.methods)
    edges = _numbers(found["log10_density_edges"])
    centres = 10.0 ** (0.5 * (edges[1:] + edges[:-1]))
    populated = _numbers(found["cells"]) >= 20.0
    path = folder / "residual_by_density.png"
    with _drawing(path, 4.9) as canvas:
        axes = canvas.subplots()

        def draw(values: list[float | None], **line: Any) -> None:
            axes.loglog(centres[populated], _numbers(values)[populated], **line)

        draw(found["truth"], color=TRUTH_COLOUR, lw=4.0, alpha=0.6, label="truth, rms speed")
        for name in comparison.methods:
            line = {"color": look[name].colour, "ls": look[name].dash, "label": name}
            draw(found["methods"][name], marker="o", ms=3.5, **line)
        axes.set_xlabel("density / mean")
        axes.set_ylabel("rms |residual| [km/s]")
        axes.grid(True, which="major", lw=0.5, alpha=0.5)
        canvas.legend(loc="outside lower center", ncols=2, handlelength=2.6)
    caption = (
        "Root mean square residual, over all cells of the box, by the density of the cell; bins "
        "of a quarter of a decade with at least 20 cells, the outermost open."
    )
    return [Figure("Residual against density", caption, path)]
