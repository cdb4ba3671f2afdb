"""Expected errors against the true residual: coverage by density, and the reliability curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cosmoflow.numerics.calibration import EXPECTED
from cosmoflow.numerics.comparison import Comparison
from cosmoflow.stages.evaluate.report.figures.drawing import (
    Figure,
    drawing,
    legend_height,
    listed,
    numbers,
)
from cosmoflow.stages.evaluate.report.methods import TRUTH_COLOUR, styles

_FEWEST = 60
"""Components of a bin that is drawn: 20 cells."""


def expected_errors(comparison: Comparison, folder: Path) -> list[Figure]:
    """Draw how often the residual is within the expected errors, and how large it is in truth."""
    errors, look = comparison.metrics["errors"], styles(comparison.methods)
    if not errors:
        return []
    path = folder / "expected_errors.png"
    foot = 0.6 + legend_height(len(errors) + 1)
    with drawing(path, 1, 2, aspect=0.95, gap=0.85, foot=foot) as sheet:
        coverage, reliability = sheet.grid[0]
        right = {"color": TRUTH_COLOUR, "ls": ":", "lw": 1.6, "zorder": 3}
        for share in EXPECTED:
            coverage.axhline(100.0 * share, **right)
        ends = []
        for name, found in errors.items():
            density = found["by_density"]
            edges = numbers(density["log10_density_edges"])
            drawn = 3.0 * numbers(density["cells"]) >= _FEWEST
            for key, marker in (("coverage_68", "o"), ("coverage_95", "s")):
                coverage.semilogx(
                    10.0 ** (0.5 * (edges[1:] + edges[:-1]))[drawn],
                    100.0 * numbers(density[key])[drawn],
                    marker=marker,
                    ms=3.5,
                    **look[name].line,
                )
            curve = found["reliability"]
            drawn = numbers(curve["components"]) >= _FEWEST
            expected, rms = numbers(curve["expected"])[drawn], numbers(curve["rms"])[drawn]
            reliability.loglog(expected, rms, marker="o", ms=3.5, label=name, **look[name].line)
            ends += [*expected, *rms]
        spans = [value for value in ends if value > 0.0]
        if spans:
            line = np.array([0.8 * min(spans), 1.25 * max(spans)])
            reliability.plot(line, line, label="if the errors are right", **right)
        coverage.set_ylim(top=101.0)
        coverage.set_xlabel("density / mean")
        coverage.set_ylabel("in the interval [%]")
        reliability.set_xlabel("expected error [km/s]")
        reliability.set_ylabel("rms residual [km/s]")
        for axes in (coverage, reliability):
            axes.grid(True, which="major", lw=0.5, alpha=0.5)
        sheet.add_legend(*reliability.get_legend_handles_labels())
    caption = (
        "Left: share of the components of the residual in the intervals that should hold 68.27 % "
        "(circles) and 95 % of them (squares), by the density of the cell. Right: rms of the "
        "components of the residual by the error that the model expects of them; "
        "above the dotted line the true errors are larger. Bins of a quarter and an eighth of a "
        f"decade with at least {_FEWEST} components."
    )
    alt = "Curves of the coverage against density, and of the residual against expected errors of "
    alt += listed(tuple(errors))
    return [Figure("errors", "Are the expected errors right?", caption, alt, path, lines=True)]
