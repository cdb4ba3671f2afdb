"""How often what occurs in the whole box: counts of cells, and the paper's Figure 5."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cosmoflow.numerics.comparison import Comparison
from cosmoflow.stages.evaluate.report.figures.drawing import (
    Figure,
    draw_counts,
    drawing,
    fill_with_legend,
    listed,
)
from cosmoflow.stages.evaluate.report.figures.scales import labels
from cosmoflow.stages.evaluate.report.methods import (
    paper_pair,
    shown_in_slices,
    styles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

_ONE_POINT: Final = {
    "speed": ("speed", "|v| [km/s]"),
    "residual": ("residual", "|residual| [km/s]"),
    "ratio": ("residual over speed", "|residual| / |true v|"),
    "cosine": ("angle", "cos(angle to true v)"),
    "momentum": ("momentum", "|p| [km/s]"),
}
"""Titles and labels of the distributions."""

_JOINT: Final = {
    "density_divergence": ("divergence", "θ / (f a H)"),
    "density_curl": ("curl", "(∇×p)ₓ / (f a H)"),
}

_TICKS: Final = (-1000, -100, -10, -1, 0, 1, 10, 100, 1000)


def _edges(comparison: Comparison, name: str) -> Floats:
    return np.array(comparison.metrics["distributions"]["edges"][name], dtype=np.float64)


def _counts(comparison: Comparison, name: str, method: str) -> Floats:
    found = comparison.metrics["distributions"]
    part = found["truth"] if method == "truth" else found["methods"][method]
    return np.array(part[name], dtype=np.float64)


def _quantile(counts: Floats, edges: Floats, share: float) -> float:
    """Return the value below which ``share`` of the cells are; cells fill their bin evenly."""
    return float(np.interp(share * counts.sum(), np.append(0.0, np.cumsum(counts)), edges))


def distributions(comparison: Comparison, folder: Path) -> list[Figure]:
    """Draw how many of all cells have which speed, residual, angle and momentum."""
    names, look = shown_in_slices(comparison), styles(comparison.methods)
    path = folder / "distributions.png"
    with drawing(path, 3, 2, aspect=0.75, gap=0.85, between=0.55, foot=0.6) as sheet:
        grid = sheet.grid
        words = grid[-1, -1]
        for axes, (name, (title, label)) in zip(grid.flat, _ONE_POINT.items(), strict=False):
            edges = _edges(comparison, name)
            shown = {method: _counts(comparison, name, method) for method in ("truth", *names)}
            if name in {"residual", "ratio", "cosine"}:
                # The truth misses nothing of itself.
                del shown["truth"]
            for method, counts in shown.items():
                draw_counts(axes, counts / max(counts.sum(), 1.0), edges, method, look)
            axes.set(title=title, xlabel=label, ylabel="share of cells")
            axes.set_xlim(edges[0], edges[-1])
            _zoom(axes, name, shown, edges)
        fill_with_legend(words, grid[0, 0])
    typical = {
        name: _quantile(_counts(comparison, "residual", name), _edges(comparison, "residual"), 0.5)
        for name in names
    }
    caption = (
        "All cells of the box. Half of them are off by less than "
        + listed(tuple(f"{value:.0f} km/s ({name})" for name, value in typical.items()))
        + ". Outermost bins are open: they also count all values beyond."
    )
    alt = "Five histograms of all cells: speed, residual, residual over speed, cosine, momentum"
    title = "Speeds, residuals, angles and momenta in the whole box"
    return [Figure("residual", title, caption, alt, path, lines=True)]


def _zoom(axes: Axes, name: str, shown: dict[str, Floats], edges: Floats) -> None:
    """Show where the cells are."""
    if name in {"residual", "ratio", "cosine"}:
        axes.set_yscale("log")
    elif name == "momentum":
        low = min(_quantile(counts, edges, 1e-3) for counts in shown.values())
        axes.set_xscale("log")
        axes.set_xlim(0.5 * low, edges[-1])
    else:
        # The last bin, of all that is faster, would be a spike.
        high = max(_quantile(counts, edges, 0.99) for counts in shown.values())
        axes.set_xlim(0.0, min(1.1 * high, edges[-1]))


def joint_distributions(comparison: Comparison, folder: Path) -> list[Figure]:
    """Draw how divergence and curl go with the density, like the paper's Figure 5."""
    from matplotlib.colors import LogNorm

    columns = ("truth", *paper_pair(comparison))
    path = folder / "joint.png"
    rho = np.log10(_edges(comparison, "density"))
    with drawing(path, 2, len(columns), aspect=1.25, gap=0.18, between=-0.16) as sheet:
        grid = sheet.grid
        cells = float(comparison.metrics["distributions"]["truth"]["cells"])
        norm = LogNorm(1.0 / cells, 0.02)
        for row, (name, (axis, label)) in zip(grid, _JOINT.items(), strict=True):
            other = np.arcsinh(_edges(comparison, axis))
            truth = _counts(comparison, name, "truth") / cells
            level = _level(truth, 0.99)
            for axes, method in zip(row, columns, strict=True):
                share = _counts(comparison, name, method) / cells
                image = axes.pcolormesh(
                    rho, other, np.ma.masked_equal(share, 0.0).T,
                    norm=norm, cmap="viridis", rasterized=True,
                )  # fmt: skip
                axes.contour(
                    0.5 * (rho[1:] + rho[:-1]), 0.5 * (other[1:] + other[:-1]), truth.T,
                    levels=[level], colors="#d1006f", linewidths=1.1,
                )  # fmt: skip
                if axis == "divergence":
                    axes.plot(rho, np.arcsinh(1.0 - 10.0**rho), color="black", ls=":", lw=1.2)
            _scale(row, label, other, name, comparison)
        for axes, method in zip(grid[0], columns, strict=True):
            axes.set_title(method)
        span = _span(rho, [_counts(comparison, "density_divergence", "truth")], 1)
        for axes in grid.flat:
            axes.set_xticks([-1, 0, 1, 2], ["0.1", "1", "10", "100"])
            axes.set_xlim(*span)
        for axes in grid[0]:
            axes.tick_params(labelbottom=False)
        for axes in grid[:, 1:].flat:
            axes.tick_params(labelleft=False)
        for axes in grid[-1]:
            axes.set_xlabel("density / mean")
        sheet.add_bar(image, "share of cells", "min")
    caption = (
        "All cells of the box by density and, above, divergence of the velocity, below, the x "
        "component of the curl of the momentum, as in the paper's Figure 5: finite differences, "
        "in units of f a H, linear around zero and logarithmic beyond. Pink: the contour that "
        "holds 99 % of the truth's cells, in every panel. Dotted: linear theory, θ = -f a H δ."
    )
    alt = f"Maps of cell counts against density for {listed(columns)}, with the truth's contour"
    return [Figure("joint", "Cells by density, truth and prediction", caption, alt, path)]


def _level(share: Floats, inside: float) -> float:
    """Return the share of a bin such that the bins above it hold ``inside`` of all."""
    falling = np.sort(share.ravel())[::-1]
    at = int(np.searchsorted(np.cumsum(falling), inside * falling.sum()))
    return float(max(falling[min(at, len(falling) - 1)], 1e-300))


def _span(edges: Floats, counts: list[Floats], axis: int) -> tuple[float, float]:
    """Return the edges that enclose all cells, summed over an axis of the counts."""
    full = np.flatnonzero(sum(part.sum(axis=axis) for part in counts))
    return float(edges[full[0]]), float(edges[full[-1] + 1])


def _scale(row: NDArray[Any], label: str, other: Floats, name: str, comparison: Comparison) -> None:
    """Mark round values on axes that hold their inverse hyperbolic sine."""
    columns = ("truth", *paper_pair(comparison))
    low, high = _span(other, [_counts(comparison, name, method) for method in columns], 0)
    ticks = [tick for tick in _TICKS if low <= np.arcsinh(tick) <= high]
    if np.arcsinh(_TICKS[-2]) < high:
        # Where the axis is long, those around zero would run into each other.
        ticks = [tick for tick in ticks if abs(tick) != 1]
    for axes in row:
        axes.set_yticks(np.arcsinh(ticks), labels(ticks))
        axes.set_ylim(low, high)
    row[0].set_ylabel(label)
