"""Power, its ratio and the correlation of four quantities: the paper's Figure 6."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cosmoflow.numerics.comparison import Comparison
from cosmoflow.stages.evaluate.report import paper_tables
from cosmoflow.stages.evaluate.report.figures.drawing import (
    Figure,
    Sheet,
    drawing,
    legend_height,
    listed,
    numbers,
)
from cosmoflow.stages.evaluate.report.figures.scales import set_ticks
from cosmoflow.stages.evaluate.report.methods import TRUTH_COLOUR, Style, best_network, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SPEEDS: Final = "(km/s)² (Mpc/h)³"
_SLOPES: Final = "(km/s)² Mpc/h"

_FOUR: Final = {
    "speed": ("|v|", _SPEEDS),
    "divergence": ("θ = ∇·v", _SLOPES),
    "momentum": ("p = |v| δ", _SPEEDS),
    "theta_p": ("Θₚ = |∇×(ρv)|", _SLOPES),
}
"""The quantities of a figure, and the units of their power."""

_DECADES: Final = (0.01, 0.1, 1.0, 10.0, 100.0)
_BETWEEN: Final = (0.03, 0.3, 3.0, 30.0)
"""Ticks of wavenumbers and ratios."""

_PARTS: Final = ((0.585, 1.0), (0.29, 0.565), (0.0, 0.27))
"""Shares of a panel's height that power, ratio and correlation take."""

_PAPER_MARK: Final[dict[str, Any]] = {
    "marker": "o",
    "mfc": "white",
    "mec": "black",
    "ms": 5.5,
    "ls": "none",
    "zorder": 5,
}


def spectra(comparison: Comparison, folder: Path) -> list[Figure]:
    """Draw power, T(k) and r(k) of the paper's four quantities, like its Figure 6."""
    measured = comparison.metrics["spectra"]
    drawn = []
    # A box smaller than a sub-box has none.
    if measured["subbox"] is not None:
        box = measured["subbox"]
        path = folder / "spectra_subbox.png"
        _draw_spectra(comparison, box["quantities"], path)
        bands = (
            " Bands: the error of the mean, by leaving out one sub-box at a time."
            if box["boxes"] > 1
            else ""
        )
        caption = (
            f"Mean over {box['boxes']} sub-box{'es' if box['boxes'] > 1 else ''} of "
            f"({box['side']:.0f} Mpc/h)³, plain transforms and finite differences, as in the "
            "paper's Figure 6. Below each power: T(k) = P_predicted / P_true, with the "
            "paper's U-net (Tables 1 to 4) as open circles, and the cross-correlation r(k), "
            f"which a field that is merely as lively as the truth cannot fake.{bands}"
        )
        title = "Sub-boxes: power, ratio and correlation"
        alt = _seen(comparison, box["quantities"], "the sub-boxes")
        drawn.append(Figure("spectra", title, caption, alt, path, lines=True))
    path = folder / "spectra_full.png"
    quantities = measured["full"]["quantities"]
    _draw_spectra(comparison, quantities, path)
    caption = (
        "The same quantities in the whole periodic box, without the leakage that the faces of a "
        "sub-box cause; divergence by spectral derivatives."
    )
    alt = _seen(comparison, quantities, "the whole box")
    title = "Whole box: power, ratio and correlation"
    return [*drawn, Figure("full", title, caption, alt, path, lines=True)]


def _seen(comparison: Comparison, quantities: dict[str, Any], place: str) -> str:
    """Return what a reader of the curves sees first: where the best network stands."""
    name = best_network(comparison) or comparison.methods[0]
    at = paper_tables.TABLE_K[1]
    parts = []
    for quantity in _FOUR:
        sampled = quantities[quantity]["methods"][name]["sampled"]
        index = list(sampled["k"]).index(at)
        ratio, match = sampled["T"][index], sampled["r"][index]
        if ratio is not None and match is not None:
            parts.append(f"T {ratio:.2f} and r {match:.2f} for {quantity.replace('_', ' ')}")
    curves = f"Power, ratio T and correlation r against wavenumber in {place}, four quantities"
    return f"{curves}; {name} at k = {at:g} h/Mpc: {listed(tuple(parts))}" if parts else curves


def _draw_spectra(comparison: Comparison, quantities: dict[str, Any], path: Path) -> None:
    look = styles(comparison.methods)
    foot = 0.6 + legend_height(len(comparison.methods) + 2)
    frame: dict[str, Any] = {"aspect": 1.65, "gap": 0.6, "between": 0.52, "foot": foot}
    with drawing(path, 2, 2, **frame, parts=_PARTS) as sheet:
        for place, (quantity, (label, unit)) in zip(np.ndindex(2, 2), _FOUR.items(), strict=True):
            power, ratio, match = sheet.grid[place]
            found = quantities[quantity]
            k = numbers(found["k"])
            power.loglog(k, numbers(found["truth"]), color=TRUTH_COLOUR, lw=4.0, alpha=0.6)
            for part in (ratio, match):
                part.set_xscale("log")
            ratio.set_yscale("log")
            for name in comparison.methods:
                curve = found["methods"][name]
                for part, key in ((power, "power"), (ratio, "T"), (match, "r")):
                    _line(part, k, curve, key, look[name])
            paper = paper_tables.TRANSFER[quantity][paper_tables.UNET]
            inside = [i for i, at in enumerate(paper_tables.TABLE_K) if k[0] <= at <= k[-1]]
            ratio.plot(
                [paper_tables.TABLE_K[i] for i in inside],
                [paper[i] for i in inside],
                **_PAPER_MARK,
            )
            power.set_title(label)
            # Along the axis there is no room for it.
            power.text(0.04, 0.05, f"P in {unit}", transform=power.transAxes, fontsize="small")
            _frame_spectrum(power, ratio, match)
            if place[1] == 0:
                for part, name in ((power, "P(k)"), (ratio, "T(k)"), (match, "r(k)")):
                    part.set_ylabel(name)
        _legend(sheet, comparison)


def _line(axes: Axes, k: Any, curve: dict[str, Any], key: str, style: Style) -> None:
    """Draw a curve and, where it was measured in several boxes, the band of its error."""
    values = numbers(curve[key])
    axes.plot(k, values, **style.line)
    if curve.get(f"{key}_error") is not None:
        error = numbers(curve[f"{key}_error"])
        band: dict[str, Any] = {"color": style.colour, "alpha": 0.25, "lw": 0.0}
        axes.fill_between(k, values - error, values + error, **band)


def _frame_spectrum(power: Axes, ratio: Axes, match: Axes) -> None:
    """Set limits and ticks, so that a baseline gone wild does not squash the rest."""
    for axes in (ratio, match):
        axes.axhline(1.0, color="black", lw=0.7)
    curves = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ratio.lines])
    curves = curves[np.isfinite(curves) & (curves > 0.0)]
    low, high = min(max(curves.min(), 0.03), 0.27), max(min(1.1 * curves.max(), 120.0), 3.5)
    ratio.set_ylim(low, high)
    match.set_ylim(-0.05, 1.08)
    match.set_xlabel("k [h/Mpc]")
    first, last = match.get_xlim()
    for axes in (power, ratio, match):
        axes.set_xlim(first, last)
        set_ticks(axes.xaxis, [k for k in (*_DECADES, *_BETWEEN) if first <= k <= last])
        axes.tick_params(labelbottom=axes is match)
    values = _DECADES if high > 10.0 else (*_DECADES, *_BETWEEN)
    set_ticks(ratio.yaxis, [value for value in values if low <= value <= high])
    # The truth decides how deep the powers' axis reaches: a smoothed field has none at high k.
    truth = np.asarray(power.lines[0].get_ydata(), dtype=float)
    usable = truth[np.isfinite(truth) & (truth > 0.0)]
    if usable.size:
        power.set_ylim(bottom=0.2 * float(usable.min()))


def _legend(sheet: Sheet, comparison: Comparison) -> None:
    from matplotlib.lines import Line2D

    look = styles(comparison.methods)
    handles = [Line2D([], [], color=TRUTH_COLOUR, lw=4.0, alpha=0.6)]
    handles += [Line2D([], [], **look[name].line) for name in comparison.methods]
    handles.append(Line2D([], [], **_PAPER_MARK))
    sheet.add_legend(handles, ["truth", *comparison.methods, "paper's U-net"])
