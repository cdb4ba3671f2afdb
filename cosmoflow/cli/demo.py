"""The command that runs the whole chain, and what it says at its end."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cosmoflow.cli.options import Invocation, common_options
from cosmoflow.cli.show import show_comparison

if TYPE_CHECKING:
    from cosmoflow.numerics.comparison import Comparison

LONGER = 300
"""Steps of a longer training, to suggest."""


@common_options(
    "train.crop=32", "seed", "cosmology", "simulate", "paint", "train", "infer", "evaluate"
)
def demo(
    call: Invocation,
    out: Annotated[str, typer.Option("--out", help="Folder for all outputs.")] = "demo-output",
    seed: Annotated[int | None, typer.Option(help="Seed of all random numbers.")] = None,
    steps: Annotated[
        int | None, typer.Option("--train-steps", help="Steps of the training that is shown.")
    ] = None,
) -> None:
    """Run the whole chain on two small boxes and write a report; takes minutes."""
    from cosmoflow.stages import demo as stage

    own = {"seed": seed, "train": {"steps": steps}}
    with call.run(own, preset=stage.PRESET) as run:
        if call.dry_run:
            call.reporter.plan(stage.plan_demo(run))
            return
        comparison, summary = stage.demo(out, run)
    summary["next"] = _suggest_next(out, summary)
    call.reporter.result(
        {**summary, "residual": comparison.metrics["residual"]},
        lambda console: _show(console, comparison, summary, verbose=call.reporter.verbosity > 0),
    )


def _suggest_next(out: str, summary: Mapping[str, Any]) -> dict[str, str]:
    """Return commands to type after the demo, and what they do."""
    truth, predicted = summary["truth"], summary["prediction"]
    place = os.path.relpath(predicted or truth)
    commands = {
        ("info", place): "what a store holds, and how it was made",
        ("view", place, "--field", "velocity"): "a slice, in the terminal",
        ("infer", "FIELDS", "velocity.zarr"): "the velocity of your own box; from a density cube "
        "or a snapshot, `cosmoflow import` or `cosmoflow paint` makes FIELDS",
    }
    if summary["training_steps"] < LONGER:
        longer = ("demo", "--out", out, "--resume", "--train-steps", str(LONGER))
        commands[longer] = "train for longer; the rest is kept"
    program = _program()
    return {shlex.join([program, *words]): what for words, what in commands.items()}


def _program() -> str:
    """Return what to type for ``cosmoflow``: its path where the shell does not find it."""
    called = sys.argv[0]
    if Path(called).name == "cosmoflow" and shutil.which("cosmoflow") is None:
        return os.path.relpath(called)
    return "cosmoflow"


def _show(
    console: Console, comparison: Comparison, summary: Mapping[str, Any], *, verbose: bool
) -> None:
    """Print how good the predictions are, what was made, and what to do next."""

    def write(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    show_comparison(console, comparison, summary, verbose=verbose)
    best, rms, _, _ = comparison.residual_rows()[0]
    true = comparison.metrics["truth"]["rms"]
    write(f"\nclosest: {best}, {rms:.0f} km/s from true velocities of {true:.0f} km/s")
    write(f"made in {sum(summary['seconds'].values()):.0f} s:")
    verb = "trained" if summary["training_starts_from"] is None else "tuned"
    for place, what in (
        (summary["truth"], "density and true velocity of a held-out box"),
        (summary["prediction"], "its velocity, predicted by the network that ships"),
        (summary["model"], f"a network {verb} here, for {summary['training_steps']} steps"),
        (summary["report"], "figures and tables: open it in a browser"),
    ):
        if place is not None:
            write(f"  {os.path.relpath(place)}: {what}")
    write("next:")
    for command, what in summary["next"].items():
        write(f"  {command}\n      {what}")
