"""Results as human-readable tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from cosmoflow.cli.options import Invocation
    from cosmoflow.model.registry import ArchitectureSummary
    from cosmoflow.numerics.comparison import Comparison


def show_facts(console: Console, title: str, facts: Mapping[str, Any]) -> None:
    """Print names and values, with dotted names for nested mappings."""
    console.print(f"{title}:", markup=False, soft_wrap=True)
    for name, value in _flatten(facts):
        console.print(f"  {name}: {value}", markup=False, soft_wrap=True)


def _flatten(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{name}.")
        elif name == "notes" and isinstance(value, list | tuple):
            # Print one note per line. Skip nested notes: provenance repeats those of the top level.
            rows += [(f"{prefix}note", note) for note in value] if not prefix else []
        else:
            rows.append((f"{prefix}{name}", value))
    return rows


def show_models(
    console: Console, summaries: Sequence[ArchitectureSummary], ships: Sequence[str]
) -> None:
    """Print the architectures and the pretrained models."""
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
    console.print(f"pretrained, for `cosmoflow infer --model NAME`: {', '.join(ships)}")


def _number(value: float | None, digits: int) -> str:
    """Format a number, or a dash if it is undefined (the cosine of a fluid at rest)."""
    return "-" if value is None else f"{value:.{digits}f}"


def show_comparison(console: Console, comparison: Comparison, facts: Mapping[str, Any]) -> None:
    """Print the residuals of every method, best first, the spectra and the report's location."""
    from cosmoflow.stages.inputs.empty_cells import MOST_EMPTY, format_share

    true = comparison.metrics["truth"]["rms"]
    table = Table(
        title=f"velocity residual (true rms {_number(true, 1)} km/s)", title_justify="left"
    )
    table.add_column("method")
    for heading in ("rms, km/s", "rms / true rms", "mean cosine"):
        table.add_column(heading, justify="right")
    for name, rms, cosine, relative in comparison.residual_rows():
        table.add_row(escape(name), _number(rms, 1), _number(relative, 3), _number(cosine, 3))
    console.print(table)
    if (empty := comparison.metrics["truth"]["empty_share"]) > MOST_EMPTY:
        found = comparison.metrics["residual"].items()
        rest = ", ".join(f"{name} {_number(one['rms_with_mass'], 1)}" for name, one in found)
        console.print(
            f"{format_share(empty)} of the cells hold no mass; rms over the others: {rest} km/s",
            markup=False,
            soft_wrap=True,
        )
    console.print(_paper_table(comparison))
    for name, value in _flatten(facts):
        console.print(f"{name}: {value}", markup=False, soft_wrap=True)


def _paper_table(comparison: Comparison) -> Table:
    """Return T(k) and r(k) at the wavenumbers of the paper's Tables 1 to 4, with its values."""
    from cosmoflow.numerics.comparison import SAMPLED_AT
    from cosmoflow.stages.evaluate import paper_tables

    measured = comparison.metrics["spectra"]
    box = measured["subbox"]
    where = "the box" if box is None else f"{box['boxes']} sub-boxes of {box['side']:g} Mpc/h"
    table = Table(
        title=f"predicted over true power, T(k), and correlation, r(k), of {where}; k in h/Mpc",
        title_justify="left",
    )
    table.add_column("table")
    table.add_column("method")
    at = [SAMPLED_AT.index(k) for k in paper_tables.TABLE_K]
    for key in "Tr":
        for k in paper_tables.TABLE_K:
            table.add_column(f"{key}({k:g})", justify="right")
    for quantity, number in paper_tables.TABLE_NUMBER.items():
        methods = (box or measured["full"])["quantities"][quantity]["methods"]
        name = f"{number}: {quantity}"
        for method, found in methods.items():
            values = [_number(found["sampled"][key][i], 3) for key in "Tr" for i in at]
            table.add_row(name, escape(method), *values)
            name = ""
        for method, ratios in paper_tables.TRANSFER[quantity].items():
            row = ("", f"paper: {method}", *(f"{t:.3f}" for t in ratios), *"---")
            table.add_row(*row, style="dim")
        table.add_section()
    return table


def show_dataset(call: Invocation, what: str, out: str, dataset: Any) -> None:
    """Print the contents of a new fields store, and how to open it."""
    facts = {
        "out": out,
        "variables": ", ".join(sorted(dataset.data_vars)),
        "grid": dataset.sizes["x"],
        "open": f"xarray.open_zarr({out!r}, consolidated=False)",
    }
    if "sampling" in dataset.attrs:
        facts["sampling"] = dataset.attrs["sampling"]
    call.reporter.result(facts, lambda console: show_facts(console, what, facts))
