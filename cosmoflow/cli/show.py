"""Results as human-readable tables."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cosmoflow.cli.cards import describe_rms, describe_sampling
from cosmoflow.model.names import DEFAULT_MODEL
from cosmoflow.tables import WIDTH, shorten
from cosmoflow.units import LENGTH

if TYPE_CHECKING:
    import xarray as xr

    from cosmoflow.cli.options import Invocation
    from cosmoflow.config.reference import SettingRow
    from cosmoflow.numerics.comparison import Comparison

LONGEST_NAME = 48
"""Characters of a method's name in a table."""


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


def show_settings(console: Console, rows: Sequence[SettingRow]) -> None:
    """Print each setting and its default, with the type at the right, and its meaning below."""
    width = min(console.width, WIDTH)
    for row in rows:
        first = f"{row.key} = {row.default_text}"
        kind = ", ".join(part for part in (row.type, row.limits, row.unit) if part)
        gap = width - len(first) - len(kind)
        lines = textwrap.wrap(
            row.meaning if gap > 1 else f"{row.meaning} ({kind})",
            width,
            initial_indent="    ",
            subsequent_indent="    ",
        )
        console.print(
            "\n".join([f"{first}{' ' * gap}{kind}" if gap > 1 else first, *lines]),
            markup=False,
            soft_wrap=True,
        )


def show_models(
    console: Console, models: Sequence[Mapping[str, Any]], ships: Sequence[str]
) -> None:
    """Print the architectures and the pretrained models."""
    table = Table(box=None, pad_edge=False)
    headings = ("model", "ships", "parameters", "in", "out", "halo", "stride", "kFLOP/cell")
    for heading in headings:
        words = heading in ("model", "ships")
        table.add_column(heading, justify="left" if words else "right", no_wrap=True)
    for one in models:
        table.add_row(
            one["name"],
            "default" if one["default"] else "yes" if one["ships"] else "",
            f"{one['parameters']:,}",
            f"{one['input_cells']}^3",
            f"{one['output_cells']}^3",
            str(one["halo"]),
            str(one["stride"]),
            f"{one['flops_per_output_cell'] / 1e3:,.0f}",
        )
    console.print(table)
    for one in models:
        console.print(f"{one['name']}: {one['summary']}", soft_wrap=True)
    names = (f"{name} (the default)" if name == DEFAULT_MODEL else name for name in ships)
    console.print(f"these ship, for `cosmoflow infer --model NAME`: {', '.join(names)}")


def _number(value: float | None, digits: int) -> str:
    """Format a number, or a dash if it is undefined (the cosine of a fluid at rest)."""
    return "-" if value is None else f"{value:.{digits}f}"


def _name(text: str) -> str:
    """Return the name of a method, short enough for two lines of a table of 80 columns."""
    return escape(shorten(text, LONGEST_NAME))


def show_comparison(
    console: Console, comparison: Comparison, facts: Mapping[str, Any], *, verbose: bool = False
) -> None:
    """Print the residuals of every method, best first, the verdict, and the report's location.

    Parameters
    ----------
    facts : mapping
        Outputs by name; ``report`` is the location of the report.
    verbose : bool
        Also print the residuals without empty cells, the spectra, and all outputs.
    """
    from cosmoflow.stages.evaluate import judge_beside_shipped
    from cosmoflow.stages.inputs.empty_cells import MOST_EMPTY, format_share

    true = comparison.metrics["truth"]["rms"]
    table = _comparison_table(f"velocity residual (true rms {_number(true, 1)} km/s)")
    for heading in ("rms, km/s", "rms / true rms", "mean cosine"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, rms, cosine, relative in comparison.residual_rows():
        table.add_row(_name(name), _number(rms, 1), _number(relative, 3), _number(cosine, 3))
    console.print(table)
    if (beside := judge_beside_shipped(comparison)) is not None:
        console.print(beside.sentence, markup=False, soft_wrap=True)
    if not verbose:
        console.print(f"report: {facts['report']}", markup=False, soft_wrap=True)
        return
    if (empty := comparison.metrics["truth"]["empty_share"]) > MOST_EMPTY:
        found = comparison.metrics["residual"].items()
        rest = ", ".join(f"{name} {_number(one['rms_with_mass'], 1)}" for name, one in found)
        console.print(
            f"{format_share(empty)} of the cells hold no mass; rms over the others: {rest} km/s",
            markup=False,
            soft_wrap=True,
        )
    _show_spectra(console, comparison)
    for name, value in _flatten(facts):
        console.print(f"{name}: {value}", markup=False, soft_wrap=True)


def _comparison_table(title: str) -> Table:
    """Return a table whose first column is the name of the method."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("method", overflow="fold")
    return table


def _show_spectra(console: Console, comparison: Comparison) -> None:
    """Print T(k) and r(k) at the wavenumbers of the paper's Tables 1 to 4, with its values."""
    from cosmoflow.numerics.comparison import SAMPLED_AT
    from cosmoflow.stages.evaluate import paper_tables

    measured = comparison.metrics["spectra"]
    box = measured["subbox"]
    count = 0 if box is None else box["boxes"]
    boxes = f"{count} sub-boxes" if count > 1 else "one sub-box"
    where = "the box" if box is None else f"{boxes} of {box['side']:g} Mpc/h"
    console.print(
        f"\npredicted over true power, T(k), and correlation, r(k), of {where}; k in h/Mpc"
    )
    at = [SAMPLED_AT.index(k) for k in paper_tables.TABLE_K]
    for quantity, number in paper_tables.TABLE_NUMBER.items():
        table = _comparison_table(f"{quantity} (the paper's Table {number})")
        for key in "Tr":
            for k in paper_tables.TABLE_K:
                table.add_column(f"{key}({k:g})", justify="right", no_wrap=True)
        methods = (box or measured["full"])["quantities"][quantity]["methods"]
        for method, found in methods.items():
            values = [_number(found["sampled"][key][i], 3) for key in "Tr" for i in at]
            table.add_row(_name(method), *values)
        for method, ratios in paper_tables.TRANSFER[quantity].items():
            row = (f"paper: {method}", *(f"{t:.3f}" for t in ratios), *"---")
            table.add_row(*row, style="dim")
        console.print(table)


def show_slice(console: Console, found: xr.DataArray) -> None:
    """Print a slice as a picture, with its first axis to the right and its second axis up."""
    from cosmoflow.cli.picture import pixels, resample, show_picture
    from cosmoflow.stages.view import ColourScale, title_of

    values = found.to_numpy()
    scale = ColourScale.of(str(found.name), values)
    picture = resample(values.T[::-1], *pixels(console, *values.shape))
    console.print(title_of(found), markup=False, soft_wrap=True)
    show_picture(console, scale.levels(picture), signed=scale.kind == "signed")
    horizontal, vertical = found.dims
    console.print(
        f"{horizontal} to the right, {vertical} up; {values.min():.4g} to {values.max():.4g}, "
        f"colours {scale.low:.3g} to {scale.high:.3g}{' (log)' * (scale.kind == 'log')}",
        markup=False,
        soft_wrap=True,
    )


def show_store(call: Invocation, what: str, out: str) -> None:
    """Print the contents of a new fields store, and how to open it."""
    # Imported here, as is zarr by it: `cosmoflow --help` avoids both.
    from cosmoflow.storage.fields import FieldStore

    store = FieldStore(out)
    facts: dict[str, Any] = {
        "out": out,
        "variables": ", ".join(store.variables),
        "grid": store.grid,
    }
    if store.region is not None:
        facts["region"] = list(store.region.shape)
    cells = f"{store.grid}^3 cells of {store.cell_size:.4g} {LENGTH}"
    facts["open"] = f"xarray.open_zarr({out!r}, consolidated=False)"
    found = store.metadata.sampling
    sampling = {} if found is None else found.to_attribute()
    shown = facts | describe_sampling(sampling, has_density="density" in store.variables)
    shown["rms velocity"] = describe_rms(store.velocity_rms)
    shown = {name: value for name, value in shown.items() if value is not None} | {"grid": cells}
    if "region" in shown:
        shown["region"] = f"{' x '.join(map(str, facts['region']))} cells"
    if store.velocity_rms is not None:
        facts["velocity_rms"] = store.velocity_rms
    if sampling:
        facts["sampling"] = json.dumps(sampling)
    call.reporter.result(facts, lambda console: show_facts(console, what, shown))
