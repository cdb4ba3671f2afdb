"""Results as tables for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from cosmoflow.model.registry import ArchitectureSummary
    from cosmoflow.numerics.comparison import Comparison


def show_facts(console: Console, title: str, facts: Mapping[str, Any]) -> None:
    """Print names and values; nested mappings with dotted names."""
    console.print(f"{title}:", markup=False)
    for name, value in _flatten(facts):
        console.print(f"  {name}: {value}", markup=False, soft_wrap=True)


def _flatten(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows


def show_models(
    console: Console, summaries: Sequence[ArchitectureSummary], ships: Sequence[str]
) -> None:
    """Print the architectures, and those of which a trained model ships."""
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "parameters", "in", "out", "halo", "stride", "kFLOP/cell"):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=True)
    for one in summaries:
        table.add_row(
            one.name,
            f"{one.parameters:,}",
            f"{one.input_cells}^3",
            f"{one.output_cells}^3",
            str(one.halo),
            str(one.stride),
            f"{one.flops_per_output_cell / 1e3:,.0f}",
        )
    console.print(table)
    for one in summaries:
        console.print(f"{one.name}: {one.summary}")
    console.print(f"trained, for `cosmoflow infer --model NAME`: {', '.join(ships)}")


def _number(value: float | None, digits: int) -> str:
    """Return a figure, or a dash where there is none (the cosine of a fluid at rest)."""
    return "-" if value is None else f"{value:.{digits}f}"


def show_comparison(console: Console, comparison: Comparison, facts: Mapping[str, Any]) -> None:
    """Print the residuals of every method, best first, and where the report is."""
    from cosmoflow.stages.evaluate import residual_rows

    true = comparison.metrics["truth"]["rms"]
    table = Table(
        title=f"velocity residual (true rms {_number(true, 1)} km/s)", title_justify="left"
    )
    table.add_column("method")
    for heading in ("rms, km/s", "rms / true rms", "mean cosine"):
        table.add_column(heading, justify="right")
    for name, rms, cosine, relative in residual_rows(comparison):
        table.add_row(name, _number(rms, 1), _number(relative, 3), _number(cosine, 3))
    console.print(table)
    for name, value in _flatten(facts):
        console.print(f"{name}: {value}", markup=False, soft_wrap=True)
