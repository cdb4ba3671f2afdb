"""The slice around the strongest infall: the paper's Figures 3 and 4."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cosmoflow.numerics.comparison import Comparison
from cosmoflow.stages.evaluate.report.figures.drawing import (
    NARROW,
    Figure,
    draw_counts,
    drawing,
    fill_with_legend,
    legend_height,
    listed,
    magnitude,
    square,
)
from cosmoflow.stages.evaluate.report.methods import (
    paper_pair,
    shown_in_slices,
    styles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Plane = NDArray[np.float32]


def _arrows(axes: Axes, field: Plane, side: float, top: float) -> None:
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
        # Where nothing moves there is no arrow, nor a dot in its place.
        minlength=0.1,
        color="black",
    )


def velocity_slices(comparison: Comparison, folder: Path) -> list[Figure]:
    """Draw velocities and residuals around the strongest infall, like the paper's Figure 3."""
    from matplotlib.colors import LogNorm

    names, cut = shown_in_slices(comparison), comparison.patch_fields["velocity"]
    density = comparison.patch_fields["density"]["truth"]
    side, thickness = (float(comparison.metrics["patch"][key]) for key in ("side", "thickness"))
    top = max(float(np.percentile(magnitude(cut["truth"]), 98.0)), 1e-3)
    path = folder / "slices.png"
    with drawing(path, 1 + len(names), 2, between=0.06) as sheet:
        grid, frame = sheet.grid, square(side)
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
            image = axes.imshow(magnitude(field).T, **speeds)
            _arrows(axes, field, side, top)
            axes.set_title(title)
        sheet.label_planes()
        sheet.add_bar(image, "|v| [km/s]", "max", slice(0, 1))
        sheet.add_bar(shades, "density / mean", "both", slice(1, 2))
    found = comparison.metrics["patch"]["residual"]
    alt = "Maps with arrows of the true velocity, the density, and the velocity and residual of "
    alt += listed(tuple(f"{name} (off by {found[name]['rms']:.0f} km/s rms)" for name in names))
    caption = (
        f"A slice of {side:.0f} x {side:.0f} x {thickness:.1f} Mpc/h "
        "around the strongest smoothed infall of the box (largest squared divergence), as in the "
        "paper's Figure 3. Colour is the three-dimensional speed, arrows the velocity in the "
        "plane; all panels share colours and arrow lengths, and arrows are cut at 1.5 times the "
        f"98th percentile of the true speed ({top:.0f} km/s). A residual is predicted minus true."
    )
    return [Figure("slice", "Velocities around the strongest infall", caption, alt, path)]


def histograms(comparison: Comparison, folder: Path) -> list[Figure]:
    """Draw the distributions of speed, residuals and angle in the same slice."""
    names, look = shown_in_slices(comparison), styles(comparison.methods)
    fields = comparison.patch_fields["velocity"]
    truth = fields["truth"]
    speed = magnitude(truth)
    bins = np.linspace(0.0, max(1.6 * float(np.percentile(speed, 99.0)), 1e-3), 33)
    path = folder / "histograms.png"
    with drawing(path, 2, 2, aspect=0.85, gap=0.85, between=0.52, foot=0.55) as sheet:
        fast, ratio, angle, words = sheet.grid.flat

        def draw(axes: Axes, values: NDArray[Any], edges: NDArray[Any], method: str) -> None:
            counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
            draw_counts(axes, counts, edges, method, look)

        draw(fast, speed, bins, "truth")
        for name in names:
            field = fields[name]
            draw(fast, magnitude(field), bins, name)
            relative = magnitude(field - truth) / np.maximum(speed, 1e-6)
            draw(ratio, relative, np.linspace(0.0, 2.0, 33), name)
            dot = np.sum(field * truth, axis=0)
            cosine = dot / np.maximum(magnitude(field) * speed, 1e-6)
            draw(angle, cosine, np.linspace(-1.0, 1.0, 33), name)
        for axes in (fast, ratio):
            axes.set_xlim(left=0.0)
        angle.set_yscale("log")
        fast.set_xlabel("|v| [km/s]")
        ratio.set_xlabel("|residual| / |true v|")
        angle.set_xlabel("cos(angle to true v)")
        angle.set_ylim(bottom=0.7)
        for axes, title in ((fast, "speed"), (ratio, "residual over speed"), (angle, "angle")):
            axes.set(title=title, ylabel="number of cells")
        fill_with_legend(words, fast)
    caption = (
        "Cells of the same slice: speed, residual over true speed, and cosine of the angle "
        "between predicted and true velocity. The last bins of the first two are open."
    )
    cosines = comparison.metrics["patch"]["residual"]
    alt = "Three histograms; the mean cosine is "
    alt += listed(tuple(f"{cosines[name]['mean_cosine'] or 0.0:.2f} for {name}" for name in names))
    title = "Speeds, residuals and angles in the slice"
    return [Figure("slice", title, caption, alt, path, lines=True)]


class _Derived(NamedTuple):
    """One of the paper's derived fields and how it is drawn."""

    title: str
    label: str
    vector: bool
    words: str


_DERIVED: Final = {
    "momentum": _Derived(
        "Momentum",
        "|p| [km/s]",
        True,
        "the length of p = (1 + δ) v, in logarithmic colours",
    ),
    "momentum_curl": _Derived(
        "Curl of the momentum",
        "|∇×p| [km/s/(Mpc/h)]",
        True,
        "the length of the curl, by finite differences, in logarithmic colours",
    ),
    "divergence": _Derived(
        "Divergence of the velocity",
        "θ [km/s/(Mpc/h)]",
        False,
        "by finite differences, in colours that are linear around zero and logarithmic beyond",
    ),
}


def derived_slices(comparison: Comparison, folder: Path) -> list[Figure]:
    """Draw momentum, its curl and the divergence in the slice, like the paper's Figure 4."""
    return [_derived(comparison, folder, quantity) for quantity in _DERIVED]


def _derived(comparison: Comparison, folder: Path, quantity: str) -> Figure:
    from matplotlib.colors import LogNorm, SymLogNorm

    names, how = paper_pair(comparison), _DERIVED[quantity]
    fields = comparison.patch_fields[quantity]
    shown = magnitude if how.vector else np.asarray
    truth = shown(fields["truth"])
    top = max(float(np.percentile(np.abs(truth), 99.5)), 1e-3)
    # Two and a half decades: what is slower by more than that carries nothing.
    floor = top / 300.0
    norm, colours = (
        (LogNorm(floor, top), "viridis")
        if how.vector
        else (SymLogNorm(top / 30.0, vmin=-top, vmax=top), "RdBu_r")
    )
    plane: dict[str, Any] = {
        "norm": norm,
        "cmap": colours,
        **square(float(comparison.metrics["patch"]["side"])),
    }
    path = folder / f"slice_{quantity}.png"
    # In the middle column of three, a legend of several names has a line for each.
    space = legend_height(1 + len(names), 1)
    frame: dict[str, Any] = {"gap": 0.42, "between": 0.42, "foot": 1.25 + space}
    with drawing(path, 1 + len(names), 2, paper=NARROW, **frame) as sheet:
        grid = sheet.grid
        image = grid[0, 0].imshow(_lifted(truth, floor, how.vector).T, **plane)
        grid[0, 0].set_title("truth")
        for row, name in zip(grid[1:], names, strict=True):
            missed = fields[name] - fields["truth"]
            for axes, title, field in (
                (row[0], name, shown(fields[name])),
                (row[1], "its residual", shown(missed)),
            ):
                axes.imshow(_lifted(field, floor, how.vector).T, **plane)
                axes.set_title(title)
        sheet.label_planes()
        _derived_histogram(comparison, grid[0, 1], quantity, top)
        sheet.add_bar(image, how.label, "both", above=space - 0.1)
        handles, labels = grid[0, 1].get_legend_handles_labels()
        sheet.add_legend(handles, labels, columns=1)
    spread = {
        name: float(np.sqrt(np.mean((fields[name] - fields["truth"]).astype(np.float64) ** 2)))
        for name in names
    }
    rms = float(np.sqrt(np.mean(fields["truth"].astype(np.float64) ** 2)))
    alt = f"{how.title} in maps of the truth ({rms:.3g} rms per component), of "
    alt += listed(tuple(f"{name} (off by {value:.3g})" for name, value in spread.items()))
    alt += ", of their residuals, and a histogram of all"
    caption = (
        f"The same slice, as in the paper's Figure 4: {how.words}; residuals (predicted minus "
        "true) in the same colours. Top right: how many cells of the slice have which value."
    )
    return Figure("momentum", f"{how.title} in the slice", caption, alt, path)


def _lifted(field: Plane, floor: float, vector: bool) -> Plane:
    """Return a field without zeros, where its colours are logarithmic."""
    return np.maximum(field, floor * 0.5) if vector else field


def _derived_histogram(comparison: Comparison, axes: Axes, quantity: str, top: float) -> None:
    how, look = _DERIVED[quantity], styles(comparison.methods)
    fields = comparison.patch_fields[quantity]
    truth = magnitude(fields["truth"]) if how.vector else fields["truth"]
    low, high = (float(edge) for edge in np.percentile(truth, (2.0, 99.9)))
    if how.vector:
        low = max(low, 1e-4 * top)
        bins = np.geomspace(low, max(3.0 * high, 2.0 * low), 31)
        axes.set_xscale("log")
    else:
        bins = np.linspace(-top, max(1.5 * high, -0.5 * top), 31)
    axes.tick_params(labelbottom=True, labelleft=True)
    for name in ("truth", *paper_pair(comparison)):
        field = magnitude(fields[name]) if how.vector else fields[name]
        counts = np.histogram(np.clip(field, bins[0], bins[-1]), bins)[0]
        draw_counts(axes, counts, bins, name, look)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.set_title("number of cells")
    axes.set_xlabel(how.label)
