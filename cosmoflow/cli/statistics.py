"""Commands that measure statistics."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from cosmoflow.cli.options import Fields, Invocation, common_options
from cosmoflow.cli.show import show_comparison, show_facts


@common_options("evaluate.subbox=64", "evaluate")
def evaluate(
    call: Invocation,
    truth: Annotated[
        str, typer.Argument(metavar="TRUTH", help="Fields with density and velocity.")
    ],
    predictions: Annotated[
        list[str],
        typer.Argument(metavar="PREDICTION...", help="Fields from `infer`, or NAME=FIELDS."),
    ],
    out: Annotated[str, typer.Option("--out", help="Folder for the report.")],
) -> None:
    """Compare predictions and linear theory with the truth, and write a report."""
    from cosmoflow.stages import evaluate as stage

    with call.run({}) as run:
        if call.dry_run:
            call.reporter.plan(stage.plan_evaluate(truth, predictions, run), truth)
            return
        comparison = stage.evaluate(truth, predictions, out, run)
    paths = {"report": f"{out}/{stage.REPORT}", "metrics": f"{out}/{stage.METRICS}"}
    call.reporter.result(
        {**paths, **{name: comparison.metrics[name] for name in ("residual", "shipped")}},
        lambda console: show_comparison(
            console, comparison, paths, verbose=call.reporter.verbosity > 0
        ),
    )


@common_options("spectra.per_decade=10", "spectra")
def spectra(
    call: Invocation,
    fields: Fields,
    out: Annotated[
        str, typer.Option("--out", help="Output: zarr, or netCDF if the name ends in .nc.")
    ],
    field: Annotated[
        str,
        typer.Option(
            "--field",
            metavar="NAME",
            help="A variable of the store; or speed, momentum_speed, theta_p, divergence, "
            "vorticity, momentum_curl, computed from its density and velocity.",
        ),
    ],
    cross: Annotated[
        str | None, typer.Option(metavar="NAME", help="Second field, for the cross spectrum.")
    ] = None,
    cross_fields: Annotated[
        str | None,
        typer.Option(
            metavar="FIELDS",
            help="Store with the second field, of the same box; by default FIELDS.",
        ),
    ] = None,
    compensate: Annotated[
        Literal["auto", "none"], typer.Option(help="Divide out the mass-assignment window.")
    ] = "auto",
    bins: Annotated[
        Literal["linear", "log"] | None, typer.Option(help="Spacing of bins in k.")
    ] = None,
    multipoles: Annotated[
        Literal["x", "y", "z"] | None,
        typer.Option(help="Measure multipoles 0, 2, 4 about this axis."),
    ] = None,
    subbox: Annotated[
        float | None,
        typer.Option(
            help="Side of sub-boxes, Mpc/h, to measure their mean and its jackknife error."
        ),
    ] = None,
) -> None:
    """Measure the power spectrum of a field, or the cross spectrum of two."""
    from cosmoflow.stages import spectra as stage

    own = {"bins": bins, "multipoles": multipoles, "subbox": subbox}
    chosen: dict[str, Any] = {
        "cross": cross,
        "cross_fields": cross_fields,
        "compensate": compensate,
    }
    with call.run({"spectra": own}) as run:
        if call.dry_run:
            request = stage.request_spectra(fields, field, run, **chosen)
            call.reporter.plan(stage.plan_spectra(request, run), fields, out)
            return
        dataset = stage.spectra(fields, out, field, run, **chosen)
    facts = {"out": out, "bins": dataset.sizes["k"], "field": field}
    if cross is not None:
        facts["cross"] = cross
    call.reporter.result(facts, lambda console: show_facts(console, "measured", facts))
