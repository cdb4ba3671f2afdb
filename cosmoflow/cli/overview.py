"""Commands that describe data and run the whole chain."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from cosmoflow.cli.arguments import Url
from cosmoflow.cli.options import Invocation, SetOption, common_options
from cosmoflow.cli.show import show_comparison, show_facts


def info(
    url: Url,
    overrides: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Describe a store, a model or a snapshot of another code."""
    from cosmoflow.config import load_settings
    from cosmoflow.stages.inspect import inspect

    content = inspect(url, load_settings(overrides=overrides or ()).snapshot)
    if as_json:
        import json

        typer.echo(json.dumps(content, indent=2, default=str))
    else:
        show_facts(Console(highlight=False), url, content)


@common_options
def demo(
    call: Invocation,
    out: Annotated[str, typer.Option("--out", help="Folder for all outputs.")] = "demo-output",
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
) -> None:
    """Run the whole chain on two small boxes and write a report; takes minutes."""
    from cosmoflow.stages.demo import PRESET, plan_demo
    from cosmoflow.stages.demo import demo as run_demo

    settings = call.settings({"seed": seed}, preset=PRESET)
    with call.session(settings) as session:
        run = call.run(settings, session)
        if call.dry_run:
            call.reporter.plan(plan_demo(run))
            return
        comparison, summary = run_demo(out, run)
    call.reporter.result(
        {**summary, "residual": comparison.metrics["residual"]},
        lambda console: show_comparison(console, comparison, summary),
    )
