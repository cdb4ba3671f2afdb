"""Commands that describe data and settings."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Literal

import typer
from rich.console import Console

from cosmoflow.cli.cards import make_card
from cosmoflow.cli.options import (
    JsonDocumentOption,
    OverwriteOption,
    SetOption,
    VerboseOption,
    set_example,
)
from cosmoflow.cli.show import show_facts, show_settings, show_slice
from cosmoflow.config.folders import expand_home


@set_example("snapshot.h=0.7")
def info(
    url: Annotated[str, typer.Argument(metavar="URL", help="A store, model or snapshot.")],
    overrides: SetOption = None,
    as_json: JsonDocumentOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Describe a store, a model or a snapshot of another code."""
    from cosmoflow.config import load_settings
    from cosmoflow.stages.inspect import inspect

    content = inspect(url, load_settings(overrides=overrides or ()).snapshot)
    if as_json:
        typer.echo(json.dumps(content, indent=2, default=str))
    else:
        show_facts(Console(highlight=False), url, content if verbose else make_card(content))


def view(
    url: Annotated[str, typer.Argument(metavar="URL", help="A fields store.")],
    field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A variable; by default the density, or the velocity where there is none.",
        ),
    ] = None,
    axis: Annotated[
        Literal["x", "y", "z"], typer.Option(help="Axis perpendicular to the slice.")
    ] = "z",
    position: Annotated[
        float | None,
        typer.Option(metavar="MPC", help="Place along the axis, Mpc/h; by default the middle."),
    ] = None,
    component: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="x, y, z or norm (the default) of a vector; 1, 2 or 3 of a shear."
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="A PNG file; by default the terminal.")
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonDocumentOption = False,
) -> None:
    """Show a slice of a field, in the terminal or as a PNG file."""
    from cosmoflow.stages.view import title_of
    from cosmoflow.stages.view import view as read_slice

    out = out and expand_home(out)
    found = read_slice(
        url, field, axis=axis, position=position, component=component, out=out, overwrite=overwrite
    )
    values = found.to_numpy()
    facts = {
        "out": out,
        "field": found.name,
        "component": found.attrs.get("component"),
        "axis": axis,
        "position": float(found[axis]),
        "cells": list(values.shape),
        "units": found.attrs["units"],
        "min": float(values.min()),
        "max": float(values.max()),
        "mean": float(values.mean(dtype="f8")),
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    elif out is not None:
        show_facts(Console(highlight=False), title_of(found), {"out": out})
    else:
        show_slice(Console(highlight=False), found)


def settings(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="SECTION or KEY", help="A section, e.g. paint, or a key, e.g. paint.grid."
        ),
    ] = None,
    as_json: JsonDocumentOption = False,
) -> None:
    """List the settings with their types, defaults, units and meanings."""
    from cosmoflow.config.reference import find_settings

    rows = find_settings(name)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        show_settings(Console(highlight=False), rows)
