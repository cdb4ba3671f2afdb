"""The report as one HTML page that loads nothing, and its numbers as JSON."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from cosmoflow.numerics.comparison import SAMPLED_AT, Comparison
from cosmoflow.stages.evaluate.report import formats, head, paper_tables
from cosmoflow.stages.evaluate.report.figures import Figure
from cosmoflow.stages.evaluate.report.figures.drawing import magnitude, numbers
from cosmoflow.stages.evaluate.report.methods import (
    PAPER_BASELINE,
    best_baseline,
    best_network,
    has_filter,
    judge_beside_shipped,
    leading,
    ranked,
    styles,
)
from cosmoflow.stages.inputs.empty_cells import MOST_EMPTY

RIGHT_COVERAGE: Final = 2.0
"""Percentage points by which a coverage may miss the expected one and be called right."""


LARGEST_SIZES: Final = 0.01
"""Share of the components, those of the largest expected sizes, that may rule an rms."""


RULED: Final = 0.8
"""Share of an rms that is left without the components that rule it, at most."""


BESIDE_SHIPPED: Final = {
    "better": "better than the shipped model",
    "same": "as good as the shipped model",
    "worse": "worse than the shipped model",
}
"""What a headline adds about the shipped model."""


class Verdict(NamedTuple):
    """How well the best network does.

    Attributes
    ----------
    grade : {'good', 'bad', 'plain'}
        Whether it beats the best baseline; plain where there is no such pair, or if it beats the
        baseline but not the shipped model.
    headline, sentence : str
        In a few words, and in numbers.
    """

    grade: str
    headline: str
    sentence: str


def verdict(comparison: Comparison) -> Verdict:
    """Return what says how well the best network does, beside the shipped model too."""
    found, beside = _judge(comparison), judge_beside_shipped(comparison)
    if beside is None:
        return found
    plain = found.grade == "good" and beside.outcome != "better"
    return Verdict(
        "plain" if plain else found.grade,
        f"{found.headline}, {BESIDE_SHIPPED[beside.outcome]}",
        f"{found.sentence} {beside.sentence}",
    )


def _judge(comparison: Comparison) -> Verdict:
    """Return the sentence that compares the best network with the best baseline."""
    residual, truth = comparison.metrics["residual"], comparison.metrics["truth"]["rms"]
    network, baseline = best_network(comparison), best_baseline(comparison)
    where = f"In this box of {comparison.box_size:g} Mpc/h, whose velocity is {truth:.0f} km/s rms"
    if network is None or baseline is None:
        name = network or baseline or comparison.methods[0]
        off = f"{name} is off by {residual[name]['rms']:.1f} km/s rms in three dimensions."
        return Verdict("plain", "Nothing to compare with", f"{where}, {off}")
    mine, other = float(residual[network]["rms"]), float(residual[baseline]["rms"])
    start = (
        f"{where}, {network} is off by {mine:.1f} km/s rms in three dimensions against "
        f"{other:.1f} km/s for {baseline}"
    )
    every, best = "every baseline", "the best baseline"
    if not has_filter(comparison):
        every = best = "linear theory"
    if mine == 0.0:
        return Verdict("good", "Exact", f"{start}: it is exact.")
    if mine <= other:
        closer = f"{start}: {other / mine:.2f} times closer to the truth."
        return Verdict("good", f"Better than {every}", closer)
    farther = f"{start}: {mine / max(other, 1e-30):.2f} times farther from the truth."
    return Verdict("bad", f"Worse than {best}", farther)


def judge_errors(found: Mapping[str, Any]) -> str:
    """Return in words what the coverage of a method says about its expected errors."""
    pairs = zip((found["coverage_68"], found["coverage_95"]), found["expected"], strict=True)
    off = [100.0 * (share - expected) for share, expected in pairs]
    low, high = min(off) < -RIGHT_COVERAGE, max(off) > RIGHT_COVERAGE
    if low and high:
        return "the errors have another distribution than the model expects"
    if low:
        return "the true errors are larger than the model expects"
    if high:
        return "the true errors are smaller than the model expects"
    return f"both shares are right within {RIGHT_COVERAGE:g} points"


def worst_quarter(found: Mapping[str, Any]) -> float:
    """Return by how many percentage points a share in a quarter of the cells is off at most."""
    off: list[float] = [
        100.0 * abs(share - expected)
        for key, expected in zip(("coverage_68", "coverage_95"), found["expected"], strict=True)
        for share in found["quartiles"][key]
        if share is not None
    ]
    return max(off)


def without_largest(found: Mapping[str, Any]) -> dict[str, float] | None:
    """Return residual and expected size, rms, without the components of the largest sizes.

    Whole bins of the reliability curve are left out, of 1 % of the components at most; ``share`` is
    their share. None is returned if they do not rule the rms of the sizes.
    """
    curve = found["reliability"]
    counts = np.array(curve["components"])
    kept = np.cumsum(counts[::-1])[::-1] > LARGEST_SIZES * counts.sum()
    total, left = int(counts.sum()), int(counts[kept].sum())
    squares = {
        name: np.nansum((counts * numbers(curve[key]) ** 2)[kept])
        for name, key in (("rms", "rms"), ("expected_rms", "expected"))
    }
    rms = {name: float(np.sqrt(one / left)) for name, one in squares.items()}
    ruled = rms["expected_rms"] < RULED * found["expected_rms"]
    return {"share": 1.0 - left / total, **rms} if ruled else None


def tabulate_coverage(errors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of coverages, of all cells and by quarters of the cells by density."""
    quarters = [one["quartiles"] for one in errors.values()]
    if not quarters:
        return {}
    # All methods have the cells of the truth.
    edges = [f"{10.0**edge:.2g}" for edge in quarters[0]["log10_density_edges"]]
    inner = [f"{low} to {high}" for low, high in itertools.pairwise(edges)]
    keys = ("coverage_68", "coverage_95")
    rows = [
        {
            "name": "all cells",
            "cells": 1.0,
            "shares": [one[key] for one in errors.values() for key in keys],
        }
    ]
    rows += [
        {
            "name": name,
            "cells": quarters[0]["cell_share"][place],
            "shares": [one[key][place] for one in quarters for key in keys],
        }
        for place, name in enumerate([f"below {edges[0]}", *inner, f"above {edges[-1]}"])
    ]
    head = ["density", "cells"] + [text for name in errors for text in (f"{name}, 68 %", "95 %")]
    return {"head": head, "rows": rows}


def tabulate_particles(comparison: Comparison, names: Sequence[str]) -> dict[str, Any] | None:
    """Return the table of residuals by the number of particles; None if that is not known."""
    found = comparison.metrics["by_particles"]
    if found is None:
        return None
    ends, cells = found["particles"], comparison.metrics["cells"] ** 3
    inner = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(ends[1:])]
    methods = {name: found["methods"][name] for name in names}
    rows = [
        {
            "name": name,
            "cells": found["cells"][place] / cells,
            "truth": found["truth"][place],
            "methods": [(one["residual"][place], one["share"][place]) for one in methods.values()],
        }
        for place, name in enumerate(["none", *inner, f"{ends[-1]:g} or more"])
    ]
    below_one = [place for place, low in enumerate(ends) if low < 1.0]
    return {
        "head": ["particles", "cells", "truth"] + [t for n in names for t in (n, "share")],
        "rows": rows,
        "few": sum(found["cells"][place] for place in below_one) / cells,
        # The share of a residual of zero is None.
        "shares": {
            name: sum(one["share"][place] or 0.0 for place in below_one)
            for name, one in methods.items()
        },
        "mean": found["particles_per_cell"],
    }


def write_report(
    comparison: Comparison,
    figures: Sequence[Figure],
    context: Mapping[str, Any],
    out_dir: Path,
) -> Path:
    """Write ``report.html``, which holds its images and loads nothing.

    Parameters
    ----------
    comparison : Comparison
        The measurements.
    figures : sequence of Figure
        Drawn PNG files, in the order to show them.
    context : mapping
        Facts of the run: config digest, versions, inputs, cells, redshift, cosmology and the like;
        shown as it is, nested mappings with dotted keys.
    out_dir : Path
        Folder to write to; made if it is not there.

    Returns
    -------
    Path
        The page.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / "report.html"
    path.write_text(render(comparison, figures, context), encoding="utf-8")
    return path


def write_metrics(comparison: Comparison, context: Mapping[str, Any], path: Path) -> Path:
    """Write every number of the comparison and the run's context as strict JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"context": context, "metrics": comparison.to_json()}
    text = json.dumps(content, indent=1, allow_nan=False, default=str)
    # A line for every number of a list would be a hundred thousand lines. A string holds neither
    # line breaks nor bare quotes, so that what is matched is a list of numbers.
    text = re.sub(r'\[\n[^\[\]{}"]*\]', lambda found: re.sub(r"\s+", " ", found[0]), text)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def templates() -> Environment:
    """Return the templates of the page, which escape every value."""
    found = Environment(
        loader=PackageLoader("cosmoflow.stages.evaluate.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for write in (formats.number, formats.percent, formats.ratio, formats.png):
        found.filters[write.__name__] = write
    return found


def render(comparison: Comparison, figures: Sequence[Figure], context: Mapping[str, Any]) -> str:
    """Return the HTML of the page."""
    metrics, best_first = comparison.metrics, ranked(comparison)
    spectra = metrics["spectra"]
    quantities = (spectra["subbox"] or spectra["full"])["quantities"]
    best = leading(comparison)
    shown = (*best, *comparison.methods)[0]
    momentum = {
        name: magnitude(field).astype(np.float64)
        for name, field in comparison.patch_fields["momentum"].items()
    }
    facts = {
        "box size": f"{comparison.box_size:g} Mpc/h",
        "cells per axis": metrics["cells"],
        **dict(formats.flatten(context)),
    }
    has_empty_cells = metrics["truth"]["empty_share"] > MOST_EMPTY
    template = templates().get_template("report.html")
    return template.render(
        verdict=verdict(comparison),
        metrics=metrics,
        figures=figures,
        styles=styles(comparison.methods),
        ranked=best_first,
        largest_rms=max(metrics["residual"][best_first[-1]]["rms"], 1e-30),
        shown=shown,
        leading=best,
        score=paper_tables.score(quantities, shown),
        slice_momentum={name: (field.mean(), field.std()) for name, field in momentum.items()},
        paper=paper_tables,
        beside_paper={
            quantity: {
                name: _beside_paper(quantities[quantity], quantity, name)
                for name in comparison.methods
            }
            for quantity in paper_tables.TABLE_NUMBER
        },
        paper_columns=[f"{key}({k:g})" for key in "Tr" for k in paper_tables.TABLE_K],
        sampled_columns=sampled_columns(spectra["full"]["quantities"]),
        linear=any(name.startswith(PAPER_BASELINE) for name in comparison.methods),
        has_empty_cells=has_empty_cells,
        empty_cells=context.get("empty_cells"),
        judge_errors=judge_errors,
        worst_quarter=worst_quarter,
        without_largest=without_largest,
        coverage=tabulate_coverage(metrics["errors"]),
        particles=tabulate_particles(comparison, best),
        notes=head.gather_notes(
            context.get("provenance", {}).get("notes", ()),
            ["fields", "truth", str(context.get("truth")), *_flat(context.get("predictions", {}))],
            without=context.get("empty_cells") if has_empty_cells else None,
        ),
        made_on=head.made_on(),
        head=head.list_facts(comparison, context),
        facts=facts,
    )


def sampled_columns(quantities: Mapping[str, Any]) -> dict[int, str]:
    """Return the places in :data:`SAMPLED_AT` that a box has modes for, and their headings."""
    k = numbers(next(iter(quantities.values()))["k"])
    return {place: f"{at:g}" for place, at in enumerate(SAMPLED_AT) if k[0] <= at <= k[-1]}


def _flat(predictions: Mapping[str, str]) -> list[str]:
    """Return names and URLs of the predictions."""
    return [*predictions, *predictions.values()]


def _beside_paper(found: Mapping[str, Any], quantity: str, name: str) -> dict[str, Any]:
    """Return T and r of a method where the paper's tables have T, and its worst T."""
    curve, k = found["methods"][name], numbers(found["k"])
    cells = []
    for key in "Tr":
        errors = curve.get(f"{key}_error")
        published = paper_tables.TRANSFER[quantity][paper_tables.UNET]
        for at, unet in zip(paper_tables.TABLE_K, published, strict=True):
            value, error = curve["sampled"][key][SAMPLED_AT.index(at)], None
            if errors is not None and value is not None:
                between = float(np.interp(at, k, numbers(errors)))
                error = between if np.isfinite(between) else None
            closer = key == "T" and value is not None and paper_tables.is_closer(value, unet)
            cells.append({"value": value, "error": error, "closer": closer})
    return {"cells": cells, "worst": curve["worst"]}
