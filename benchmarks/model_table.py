"""Print the tables of docs/benchmarks/fiducial-box.md from the metrics of an evaluation.

Usage: python benchmarks/model_table.py REPORT/metrics.json

The first table has the residuals; the second T(k) and r(k) of the periodic box; the third T(k) of
the sub-boxes beside the values that Wu et al. 2021 published.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from cosmoflow.numerics.comparison import SAMPLED_AT
from cosmoflow.stages.evaluate.report.paper_tables import TABLE_K, TRANSFER, UNET

QUANTITIES = {
    "speed": "speed",
    "divergence": "div v",
    "momentum": "speed times δ",
    "theta_p": "size of curl p",
    "momentum_vector": "p, vector",
    "momentum_curl_vector": "curl p, vector",
}


def row(*cells: str) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def head(*cells: str) -> str:
    """Return the first two lines of a Markdown table."""
    return f"{row(*cells)}\n{row(*['---'] * len(cells))}"


def numbers(values: list[float | None]) -> str:
    """Return some numbers, a dash where there is none."""
    return " ".join("-" if value is None else f"{value:.3f}" for value in values)


def main() -> None:
    """Print three tables."""
    metrics: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())["metrics"]
    print(f"True rms velocity {metrics['truth']['rms']:.1f} km/s.\n")
    print(head("method", "3-D rms residual, km/s", "by mass", "mean cosine"))
    for name, found in sorted(metrics["residual"].items(), key=lambda item: item[1]["rms"]):
        figures = (f"{found['rms']:.1f}", f"{found['mass_weighted_rms']:.1f}")
        print(row(name, *figures, f"{found['mean_cosine']:.3f}"))
    print()
    print(head("quantity", "method", f"T at k = {', '.join(map(str, SAMPLED_AT))}", "r"))
    for quantity, title in QUANTITIES.items():
        methods = metrics["spectra"]["full"]["quantities"][quantity]["methods"]
        for name, found in methods.items():
            print(row(title, name, numbers(found["sampled"]["T"]), numbers(found["sampled"]["r"])))
    print()
    print(head("quantity", "method", f"T at k = {', '.join(map(str, TABLE_K))}"))
    at = [SAMPLED_AT.index(k) for k in TABLE_K]
    for quantity, published in TRANSFER.items():
        methods = metrics["spectra"]["subbox"]["quantities"][quantity]["methods"]
        for name, found in methods.items():
            sampled = [found["sampled"]["T"][index] for index in at]
            print(row(QUANTITIES[quantity], name, numbers(sampled)))
        print(row(QUANTITIES[quantity], "U-net of the paper", numbers(list(published[UNET]))))


if __name__ == "__main__":
    main()
