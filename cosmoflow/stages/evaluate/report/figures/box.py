"""The whole box: one component of the velocity, where the residual is, and at which density."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cosmoflow.numerics.comparison import Comparison
from cosmoflow.stages.evaluate.report.figures.drawing import (
    Figure,
    drawing,
    legend_height,
    listed,
    numbers,
    square,
)
from cosmoflow.stages.evaluate.report.methods import (
    TRUTH_COLOUR,
    leading,
    styles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def whole_box(comparison: Comparison, folder: Path) -> list[Figure]:
    """Draw one velocity component over the whole slice, and the residuals of the best methods."""
    truth, names = comparison.velocity["truth"][0], leading(comparison)
    fields = {name: comparison.velocity[name][0] for name in names}
    panels = [("truth", truth), (names[0], fields[names[0]])]
    panels += [(f"residual: {name}", fields[name] - truth) for name in names]
    top = max(float(np.percentile(np.abs(truth), 99.5)), 1e-3)
    path = folder / "whole_box.png"
    rows = (len(panels) + 1) // 2
    with drawing(path, rows, 2) as sheet:
        for axes, (title, field) in zip(sheet.grid.flat, panels, strict=False):
            image = axes.imshow(
                field.T, cmap="RdBu_r", vmin=-top, vmax=top, **square(comparison.box_size)
            )
            axes.set_title(title)
        _outline_patch(comparison, sheet.grid[0, 0])
        sheet.label_planes()
        for axes in sheet.grid.flat[len(panels) :]:
            axes.axis("off")
        sheet.add_bar(image, "vₓ [km/s]", "both")
    caption = (
        "The x component of the velocity in a slice through the whole box, at the height of the "
        "slice above, which the square marks; residuals (predicted minus true) in the same "
        "colours."
    )
    off = {name: float(np.sqrt(np.mean((fields[name] - truth) ** 2))) for name in names}
    alt = "Maps of the truth, of the prediction and of the residuals of "
    alt += listed(tuple(f"{name} ({value:.0f} km/s rms)" for name, value in off.items()))
    title = "One velocity component across the box"
    return [Figure("where", title, caption, alt, path)]


def _outline_patch(comparison: Comparison, axes: Axes) -> None:
    """Mark the slice of the other figures; it wraps around the box, and so does its outline."""
    from matplotlib.patches import Rectangle

    patch, side = comparison.metrics["patch"], comparison.box_size
    for x in (0.0, side):
        for y in (0.0, side):
            corner = (patch["corner"][0] - x, patch["corner"][1] - y)
            outline = Rectangle(corner, patch["side"], patch["side"], fill=False, lw=1.2)
            axes.add_patch(outline)


def residual_map(comparison: Comparison, folder: Path) -> list[Figure]:
    """Draw the residual of the best methods along the line of sight, with the worst places."""
    names = leading(comparison)
    maps = {name: comparison.residual_map[name] for name in names}
    worst = comparison.metrics["largest_residuals"]
    top = max(float(np.percentile(np.stack(list(maps.values())), 99.5)), 1e-3)
    path = folder / "residual_map.png"
    with drawing(path, 1, 2) as sheet:
        for axes, (name, field) in zip(sheet.grid.flat, maps.items(), strict=False):
            image = axes.imshow(
                field.T, cmap="magma", vmin=0.0, vmax=top, **square(comparison.box_size)
            )
            _circle(axes, [place["centre"] for place in worst[name]], comparison.box_size)
            axes.set_title(name)
        sheet.label_planes()
        for axes in sheet.grid.flat[len(names) :]:
            axes.axis("off")
        sheet.add_bar(image, "rms residual [km/s]", "max")
    caption = (
        "Root mean square residual of all cells along z, seen from above. Circles: the five "
        "places where the method is farthest off, in the order of the table."
    )
    alt = "Maps of the residual seen along z; the largest is at "
    alt += listed(tuple(_placed(name, worst[name][0]) for name in names))
    return [Figure("where", "Where the residual is", caption, alt, path)]


def _circle(axes: Axes, places: list[list[float]], side: float) -> None:
    """Circle places of the box and number them; those close together share a label."""
    from matplotlib.patheffects import withStroke

    edge = [withStroke(linewidth=3.0, foreground="black")]
    labels: dict[tuple[float, float], list[str]] = {}
    for number, (x, y, _) in enumerate(places, start=1):
        ring: dict[str, Any] = {"ms": 10.0, "mfc": "none", "mec": "#7fdcff", "mew": 1.5}
        axes.plot(x, y, "o", path_effects=edge, **ring)
        near = (at for at in labels if max(abs(at[0] - x), abs(at[1] - y)) < 0.08 * side)
        labels.setdefault(next(near, (x, y)), []).append(str(number))
    for (x, y), numbered in labels.items():
        # Towards the middle of the box, so that no label is outside of it.
        right, low = x < 0.75 * side, y < 0.9 * side
        axes.annotate(
            ", ".join(numbered),
            (x, y),
            (8.0 if right else -8.0, 5.0 if low else -14.0),
            textcoords="offset points",
            ha="left" if right else "right",
            color="#7fdcff",
            fontsize=11.0,
            fontweight="bold",
            path_effects=edge,
        )


def _placed(name: str, place: dict[str, Any]) -> str:
    at = ", ".join(f"{value:.0f}" for value in place["centre"])
    return f"({at}) Mpc/h for {name} ({place['rms']:.0f} km/s)"


def residual_by_density(comparison: Comparison, folder: Path) -> list[Figure]:
    """Draw the rms residual of every method against the density of the cell."""
    found, look = comparison.metrics["by_density"], styles(comparison.methods)
    edges = numbers(found["log10_density_edges"])
    centres = 10.0 ** (0.5 * (edges[1:] + edges[:-1]))
    populated = numbers(found["cells"]) >= 20.0
    path = folder / "residual_by_density.png"
    foot = 0.6 + legend_height(len(comparison.methods) + 1)
    with drawing(path, 1, 1, aspect=0.6, foot=foot) as sheet:
        axes = sheet.grid[0, 0]

        def draw(values: list[float | None], **line: Any) -> None:
            axes.loglog(centres[populated], numbers(values)[populated], **line)

        draw(found["truth"], color=TRUTH_COLOUR, lw=4.0, alpha=0.6, label="truth, rms speed")
        for name in comparison.methods:
            draw(found["methods"][name], marker="o", ms=3.5, label=name, **look[name].line)
        axes.set_xlabel("density / mean")
        axes.set_ylabel("rms |residual| [km/s]")
        axes.grid(True, which="major", lw=0.5, alpha=0.5)
        sheet.add_legend(*axes.get_legend_handles_labels())
    caption = (
        "Root mean square residual, over all cells of the box, by the density of the cell; bins "
        "of a quarter of a decade with at least 20 cells, the outermost open."
    )
    alt = "Curves of the residual against density, and of the true speed above them"
    return [Figure("joint", "Residual against density", caption, alt, path, lines=True)]
