"""The sections of the report page: tables of what was measured, beside what was published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from cosmoflow.numerics.comparison import SAMPLED_AT, Comparison
from cosmoflow.stages.evaluate.report import markup, paper_tables
from cosmoflow.stages.evaluate.report.figures import Figure
from cosmoflow.stages.evaluate.report.figures.drawing import magnitude, numbers
from cosmoflow.stages.evaluate.report.markup import NONE, number, ratio, row, table
from cosmoflow.stages.evaluate.report.methods import best_baseline, best_network, ranked, styles
from cosmoflow.stages.inputs.empty_cells import MOST_EMPTY

NAMES: Final = {
    "speed": "Speed |v|",
    "momentum": "Momentum |v| δ, a scalar",
    "divergence": "Divergence of the velocity",
    "vorticity": "Vorticity, the curl of the velocity",
    "theta_p": "Curl of the momentum, its magnitude",
    "momentum_vector": "Momentum as a vector",
    "momentum_curl_vector": "Curl of the momentum as a vector",
}


def residuals(comparison: Comparison, figures: Sequence[Figure]) -> Iterator[str]:
    """Yield the residual of every method over all cells of the box."""
    metrics, look = comparison.metrics, styles(comparison.methods)
    found = {name: metrics["residual"][name] for name in ranked(comparison)}
    top = max([*(one["rms"] for one in found.values()), 1e-30])
    # The truth's velocity in empty cells is nothing that a method could know.
    empty = metrics["truth"]["empty_share"] > MOST_EMPTY
    rows = [
        row(
            name,
            number(one["rms"], 1),
            markup.bar(one["rms"] / top, look[name].colour),
            markup.percent(one["relative"]),
            number(one["mass_weighted_rms"], 1),
            *([number(one["rms_with_mass"], 1)] if empty else []),
            look=look,
        )
        for name, one in found.items()
    ]
    caption = (
        "Root mean square over all cells of the difference between predicted and true velocity, "
        f"in three dimensions, km/s; best first. The truth: {number(metrics['truth']['rms'], 1)}, "
        f"mass-weighted {number(metrics['truth']['mass_weighted_rms'], 1)}."
    )
    head = ("method", "rms", "", "of truth", "by mass")
    tables = table(caption, (*head, "where there is mass") if empty else head, rows)
    rows = [
        row(
            name,
            markup.spread(one, "residual", 0),
            markup.spread(one, "cosine", 2),
            number(one["correlation"], 3),
            number(one["slope"], 3),
            look=look,
        )
        for name, one in found.items()
    ]
    head = ("method", "|residual|", "cosine", "correlation", "slope")
    tables += table("All cells: mean ± scatter over cells, |residual| in km/s", head, rows)
    tables += markup.note(
        "Cosine: of the angle to the true velocity. Correlation and slope: of predicted on true "
        "velocity, all components together."
    )
    yield markup.beside(tables, *markup.plates(figures, "residual"))


def the_slice(comparison: Comparison, figures: Sequence[Figure]) -> Iterator[str]:
    """Yield the slice around the strongest infall, beside the paper's figures of its own."""
    look, patch = styles(comparison.methods), comparison.metrics["patch"]
    momentum = {
        name: magnitude(field).astype(np.float64)
        for name, field in comparison.patch_fields["momentum"].items()
    }

    def last(name: str) -> str:
        return markup.plus_minus(momentum[name].mean(), momentum[name].std(), 0)

    rows = [row("truth", markup.spread(patch["truth"], "speed", 0), NONE, NONE, last("truth"))]
    rows += [
        row(
            name,
            markup.spread(patch["residual"][name], "speed", 0),
            markup.spread(patch["residual"][name], "residual", 0),
            markup.spread(patch["residual"][name], "cosine", 2),
            last(name),
            look=look,
        )
        for name in ranked(comparison)
    ]
    head = ("method", "|v|", "|residual|", "cosine", "|p|")
    caption = "The slice: mean ± scatter over its cells; |v|, |residual| and momentum |p| in km/s"
    numbers_of = table(caption, head, [*rows, *_published_slices()])
    numbers_of += markup.note(
        "The paper's slices were chosen by its authors, are 40 Mpc/h wide and come from other "
        "boxes: they set the scale, no more. Its |p| of linear theory contradicts its own Table 2."
    )
    first, *others = markup.plates(figures, "slice")
    yield markup.beside(first, "".join([*others, numbers_of]))


def derived(figures: Sequence[Figure]) -> Iterator[str]:
    """Yield momentum, its curl and the divergence in the slice."""
    yield markup.beside(*markup.plates(figures, "momentum"), kind="three")


def joint(figures: Sequence[Figure]) -> Iterator[str]:
    """Yield divergence and curl against density."""
    yield from markup.plates(figures, "joint")


def _published_slices() -> Iterator[str]:
    pair = markup.plus_minus
    for method, speeds in paper_tables.SLICE_SPEED.items():
        for at, speed in enumerate(speeds):
            other = [NONE, NONE]
            if method in paper_tables.SLICE_RESIDUAL:
                other = [
                    pair(*paper_tables.SLICE_RESIDUAL[method][at], 0),
                    pair(*paper_tables.SLICE_COSINE[method][at], 2),
                ]
            yield row(f"paper {at + 1}: {method}", pair(*speed, 0), *other, NONE, published=True)
    for method, momentum in paper_tables.SLICE_MOMENTUM.items():
        name = f"paper, Figure 4: {method}"
        yield row(name, NONE, NONE, NONE, pair(*momentum, 0), published=True)


def where(comparison: Comparison, figures: Sequence[Figure]) -> Iterator[str]:
    """Yield where in the box, and at which density, the best methods are farthest off."""
    yield markup.beside(*markup.plates(figures, "where"), kind="three")
    tables = []
    for name in (best_network(comparison), best_baseline(comparison)):
        if name is None:
            continue
        rows = [
            row(
                f"{place}: at {', '.join(f'{x:.0f}' for x in found['centre'])}",
                number(found["rms"], 0),
                number(found["truth_rms"], 0),
                number(found["density"], 2),
            )
            for place, found in enumerate(comparison.metrics["largest_residuals"][name], start=1)
        ]
        caption = f"Where {name} is farthest off: means over coarse cells, Mpc/h and km/s"
        tables.append(table(caption, ("place", "residual", "truth", "density"), rows))
    yield markup.beside(*tables)


def beside_the_paper(comparison: Comparison, figures: Sequence[Figure]) -> Iterator[str]:
    """Yield spectra as the paper has them, and its Tables 1 to 4."""
    measured, look = comparison.metrics["spectra"], styles(comparison.methods)
    box = measured["subbox"]
    if box is None:
        yield markup.note(
            "The box is smaller than the paper's sub-boxes: whole box shown. Bold: closer to 1 "
            "than the paper's U-net."
        )
    else:
        several = box["boxes"] > 1
        boxes = f"{box['boxes']} sub-boxes" if several else "one sub-box"
        errors = ", errors from leaving out one box at a time" if several else ""
        yield markup.note(
            f"Mean over {boxes} of ({box['side']:g} Mpc/h)³, measured as in the paper{errors}. T "
            "is predicted over true power; r the cross-correlation coefficient, which the paper "
            "does not give. Bold: closer to 1 than the paper's U-net."
        )
    quantities = (box or measured["full"])["quantities"]
    head = ("method", *(f"T({k:g})" for k in paper_tables.TABLE_K))
    head += tuple(f"r({k:g})" for k in paper_tables.TABLE_K)
    tables = []
    for quantity, at in paper_tables.TABLE_NUMBER.items():
        found = quantities[quantity]
        rows = [
            row(name, *_sampled(found, name, quantity), look=look) for name in ranked(comparison)
        ]
        rows += [
            row(f"paper: {name}", *(ratio(t) for t in ratios), *[NONE] * 3, published=True)
            for name, ratios in paper_tables.TRANSFER[quantity].items()
        ]
        caption = f"{NAMES[quantity]}, beside the paper's Table {at}; k in h/Mpc"
        tables.append(table(caption, head, rows, "dense") + _worst(found["methods"], quantity))
    # The figure is as tall as two of the tables.
    yield markup.beside("".join(markup.plates(figures, "spectra")), "".join(tables[:2]))
    yield markup.beside(*tables[2:])


def _sampled(found: Mapping[str, Any], name: str, quantity: str) -> Iterator[markup.Html]:
    curve = found["methods"][name]
    k = numbers(found["k"])
    for key in "Tr":
        errors = curve.get(f"{key}_error")
        for place, at in enumerate(paper_tables.TABLE_K):
            value = curve["sampled"][key][SAMPLED_AT.index(at)]
            error = None
            if errors is not None and value is not None:
                between = float(np.interp(at, k, numbers(errors)))
                error = between if np.isfinite(between) else None
            cell = markup.with_error(value, error)
            published = paper_tables.TRANSFER[quantity][paper_tables.UNET][place]
            if key == "T" and value is not None and paper_tables.is_closer(value, published):
                cell = markup.Html(f'<span class="better">{cell}</span>')
            yield cell


def _worst(methods: Mapping[str, Any], quantity: str) -> str:
    k, published = paper_tables.WORST[quantity]
    found = [
        f"{name} {ratio(m['worst']['T'])} at {m['worst']['k']:.2f}"
        for name, m in methods.items()
        if m["worst"] is not None
    ]
    listed = "; ".join([*found, f"the paper's U-net {published:.3f} at {k:.2f}"])
    return markup.note(f"T farthest from 1 in 0.2 < k < 1.4: {listed}.")


def full_box(comparison: Comparison, figures: Sequence[Figure]) -> Iterator[str]:
    """Yield the spectra of the whole periodic box."""
    full, look = comparison.metrics["spectra"]["full"], styles(comparison.methods)
    window = full["scheme"]
    corrected = (
        f"the vectors corrected for the {window} window" if window else "no window corrected"
    )
    yield markup.note(
        f"One transform of the whole box, {corrected}. Values are linear in k between bins one "
        "fundamental mode wide; a dash where the box has no such mode."
    )
    yield from markup.plates(figures, "full")
    yield "<details><summary>All numbers of the periodic box</summary>"
    tables = []
    for quantity, title in NAMES.items():
        found = full["quantities"][quantity]
        methods = found["methods"]
        for key, label in (("T", "T(k), predicted over true power"), ("r", "r(k), correlation")):
            rows = [
                row(name, *(ratio(v) for v in methods[name]["sampled"][key]), look=look)
                for name in ranked(comparison)
            ]
            caption = f"{title}: {label}, of {found['definition']}"
            tables.append(table(caption, ("k [h/Mpc]", *(f"{k:g}" for k in SAMPLED_AT)), rows))
    yield f"{markup.beside(*tables)}</details>"


def provenance(comparison: Comparison, context: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was compared, with what."""
    facts = {
        "box size": f"{comparison.box_size:g} Mpc/h",
        "cells per axis": comparison.metrics["cells"],
        **dict(markup.flatten(context)),
    }
    yield "<details><summary>Inputs, settings and versions</summary>"
    yield table("What was compared", ("item", "value"), [row(*i) for i in facts.items()], "facts")
    yield "</details>"
