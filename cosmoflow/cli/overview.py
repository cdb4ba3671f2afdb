"""Commands that describe data and run the whole chain."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from cosmoflow.cli.options import Invocation, JsonDocumentOption, SetOption, common_options
from cosmoflow.cli.show import show_comparison, show_facts


def info(
    url: Annotated[str, typer.Argument(metavar="URL", help="A store, model or snapshot.")],
    overrides: SetOption = None,
    as_json: JsonDocumentOption = False,
) -> None:
    """Describe a store, a model or a snapshot of another code."""
    from cosmoflow.config import load_settings
    from cosmoflow.stages.inspect import inspect

    content = inspect(url, load_settings(overrides=overrides or ()).snapshot)
    if as_json:
        typer.echo(json.dumps(content, indent=2, default=str))
    else:
        show_facts(Console(highlight=False), url, content)


@common_options
def demo(
    call: Invocation,
    out: Annotated[str, typer.Option("--out", help="Folder for all outputs.")] = "demo-output",
    seed: Annotated[int | None, typer.Option(help="Seed of all random numbers.")] = None,
) -> None:
    """Run the whole chain on two small boxes and write a report; takes minutes."""
    from cosmoflow.stages import demo as stage

    with call.run({"seed": seed}, preset=stage.PRESET) as run:
        if call.dry_run:
            call.reporter.plan(stage.plan_demo(run))
            return
        comparison, summary = stage.demo(out, run)
    call.reporter.result(
        {**summary, "residual": comparison.metrics["residual"]},
        lambda console: show_comparison(console, comparison, summary),
    )
