"""Commands that train networks and predict with them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from cosmoflow.cli.options import Fields, Invocation, JsonDocumentOption, Out, common_options
from cosmoflow.cli.show import show_models, show_store
from cosmoflow.cli.training import show_training, suggest_next
from cosmoflow.cli.verdicts import judge_training


@common_options("train.batch=4", "train", "seed")
def train(
    call: Invocation,
    fields: Annotated[list[str], typer.Argument(metavar="FIELDS...", help="Fields stores.")],
    out: Annotated[str, typer.Option("--out", help="The model folder to write.")],
    model: Annotated[str | None, typer.Option(help="Architecture, see `cosmoflow models`.")] = None,
    target: Annotated[
        Literal["velocity", "momentum"] | None, typer.Option(help="The field to predict.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Model to start from, a name or a folder, to fine-tune it."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    workers: Annotated[int | None, typer.Option(help="Data-parallel workers.")] = None,
) -> None:
    """Train a network that maps density to velocity or momentum."""
    from cosmoflow.stages import train as stage
    from cosmoflow.stages.inputs.boxes import count_boxes
    from cosmoflow.stages.inspect import read_comparison, read_validation

    own = {"model": model, "target": target, "start": start, "steps": steps, "workers": workers}
    with call.run({"train": own}) as run:
        if call.dry_run:
            call.reporter.plan(stage.plan_train(fields, run, out))
            return
        trained = stage.train(fields, out, run)
    spec, begun = trained.spec, run.settings.train.start
    facts: dict[str, Any] = {"out": out, "model": spec.architecture, "target": spec.target}
    facts |= {} if begun is None else {"started from": begun}
    facts["boxes"] = count_boxes(spec.provenance)
    compared = read_comparison(out)
    kept = read_validation(out, spec.provenance)
    verdict = None if compared is None else judge_training(compared, kept, spec.provenance)
    further = suggest_next(fields, out, spec.target, compared, begun)
    call.reporter.result(
        {**facts, "validation": compared, "kept": kept, "verdict": verdict, "next": further},
        lambda console: show_training(console, facts, fields, compared, verdict, further),
    )


@common_options("infer.symmetries=8", "infer")
def infer(
    call: Invocation,
    fields: Fields,
    out: Out,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="A model folder, a pretrained model (see `cosmoflow models`), linear, or linear:R "
            "for linear theory smoothed at R Mpc/h. Repeat to average over several models.",
        ),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            metavar="NAME",
            help="Field to derive in the same pass: momentum, divergence, vorticity, "
            "velocity_shear, count (of particles). Repeat for more fields.",
        ),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            metavar="X0:X1,Y0:Y1,Z0:Z1", help="Part of the box to predict, Mpc/h; by default all."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Inference actors; by default one per GPU, or one per 8 cores."),
    ] = None,
) -> None:
    """Predict the velocity field of a box, or of part of a box, tile by tile."""
    from cosmoflow.model.names import DEFAULT_MODEL
    from cosmoflow.stages import infer as stage

    model = models or [DEFAULT_MODEL]
    own = {"fields": names or None, "region": region}
    with call.run({"infer": own}, workers=workers) as run:
        if call.dry_run:
            call.reporter.plan(stage.plan_infer(fields, model, run), fields, out)
            return
        stage.infer_store(fields, out, model, run)
    show_store(call, "predicted", out)


def models(as_json: JsonDocumentOption = False) -> None:
    """List the architectures: parameters, cells in and out, halo, FLOPs, and which models ship."""
    from cosmoflow.model.names import pretrained_models
    from cosmoflow.stages.models import models as list_models

    found = list_models()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        show_models(Console(highlight=False), found, pretrained_models())
