"""The commands, their help and their exit codes."""

from __future__ import annotations

import logging
import sys
import warnings
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from cosmoflow import __version__
from cosmoflow.cli.console import Reporter
from cosmoflow.cli.options import Invocation, SetOption, common_options
from cosmoflow.cli.show import show_comparison, show_facts, show_models
from cosmoflow.errors import CosmoflowError

INTERRUPTED = 130

app = typer.Typer(
    name="cosmoflow",
    help="Peculiar-velocity fields from N-body particles, on a laptop or a Ray cluster.",
    epilog="Start with: cosmoflow demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Particles = Annotated[
    str,
    typer.Argument(metavar="PARTICLES", help="A particle store, or a snapshot of another code."),
]
Fields = Annotated[str, typer.Argument(metavar="FIELDS", help="A fields store.")]
Truth = Annotated[str, typer.Argument(metavar="TRUTH", help="Fields with density and velocity.")]
Predictions = Annotated[
    list[str],
    typer.Argument(metavar="PREDICTION...", help="Fields from `infer`, or NAME=FIELDS."),
]
Url = Annotated[str, typer.Argument(metavar="URL", help="Any store, model or snapshot.")]
Out = Annotated[
    str, typer.Argument(metavar="OUT", help="The output: a path, s3://, gs:// or file://.")
]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"cosmoflow {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: cosmoflow simulate box.zarr --box 256 --particles 128 --seed 7")
@common_options
def simulate(
    call: Invocation,
    out: Out,
    box: Annotated[float | None, typer.Option(help="Side of the box, Mpc/h.")] = None,
    particles: Annotated[int | None, typer.Option(help="Particles per axis.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the initial conditions.")] = None,
    method: Annotated[
        Literal["cola", "2lpt"] | None, typer.Option(help="How particles are moved.")
    ] = None,
    redshift: Annotated[
        str | None, typer.Option(help="Redshift of the snapshot, or of several: 1,0.5,0.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="COLA time steps.")] = None,
    count: Annotated[
        int | None, typer.Option(help="Boxes, seeded SEED, SEED + 1, ...; OUT is then a folder.")
    ] = None,
    mesh_factor: Annotated[
        int | None, typer.Option(help="Cells of the force mesh per particle and axis, 1 to 4.")
    ] = None,
) -> None:
    """Simulate boxes of dark matter with COLA (or 2LPT) and write their particles."""
    from cosmoflow.stages.simulate import plan_simulate
    from cosmoflow.stages.simulate import simulate as run_simulate

    own = {
        "box_size": box,
        "particles": particles,
        "method": method,
        "redshift": redshift,
        "steps": steps,
        "count": count,
        "mesh_factor": mesh_factor,
    }
    settings = call.settings({"seed": seed, "simulate": own})
    with call.session(settings) as session:
        run = call.run(settings, session)
        if call.dry_run:
            call.reporter.plan(plan_simulate(run))
            return
        stores = run_simulate(out, run)
    urls = [store.url for store in stores]
    facts = {"out": urls[0] if len(urls) == 1 else out, "boxes": settings.simulate.count}
    facts["particles"] = stores[0].count
    call.reporter.result(
        {**facts, "stores": urls}, lambda console: show_facts(console, "simulated", facts)
    )


@app.command(epilog="Example: cosmoflow convert snapdir_099 particles.zarr")
@common_options
def convert(
    call: Invocation,
    snapshot: Annotated[
        str, typer.Argument(metavar="SNAPSHOT", help="A file, folder or glob, see docs/snapshots.")
    ],
    out: Out,
) -> None:
    """Write a snapshot of another code as a particle store; paint takes snapshots as they are."""
    from cosmoflow.stages.convert import convert as run_convert
    from cosmoflow.stages.convert import plan_convert

    settings = call.settings({})
    with call.session(settings) as session:
        run = call.run(settings, session)
        if call.dry_run:
            call.reporter.plan(plan_convert(snapshot, run))
            return
        store = run_convert(snapshot, out, run)
    facts = {"out": store.url, "particles": store.count}
    call.reporter.result(facts, lambda console: show_facts(console, "converted", facts))


@app.command(epilog="Example: cosmoflow paint box.zarr fields.zarr --grid 128")
@common_options
def paint(
    call: Invocation,
    particles: Particles,
    out: Out,
    grid: Annotated[int | None, typer.Option(help="Cells per axis.")] = None,
    scheme: Annotated[
        Literal["ngp", "cic", "tsc", "pcs"] | None, typer.Option(help="Mass assignment.")
    ] = None,
) -> None:
    """Paint particles onto a grid: density, momentum and velocity."""
    from cosmoflow.stages.paint import paint as run_paint
    from cosmoflow.stages.paint import plan_paint

    settings = call.settings({"paint": {"grid": grid, "scheme": scheme}})
    with call.session(settings) as session:
        run = call.run(settings, session)
        if call.dry_run:
            call.reporter.plan(plan_paint(particles, run))
            return
        dataset = run_paint(particles, out, run)
    _show_dataset(call, "painted", out, dataset)


@app.command(epilog="Example: cosmoflow derive fields.zarr web.zarr --field velocity_shear")
@common_options
def derive(
    call: Invocation,
    fields: Fields,
    out: Out,
    names: Annotated[
        list[str],
        typer.Option(
            "--field",
            metavar="NAME",
            help="velocity, momentum, divergence, vorticity, velocity_shear, or smoothed_ and the "
            "name of any field. Give it again for more.",
        ),
    ],
    method: Annotated[
        Literal["difference", "spectral"] | None,
        typer.Option(help="Differences, shard by shard, or FFTs of the box in memory."),
    ] = None,
    smoothing: Annotated[
        float | None, typer.Option(help="Radius of the Gaussian of smoothed_ fields, Mpc/h.")
    ] = None,
) -> None:
    """Derive fields from fields: divergence, vorticity, shear, smoothed versions, velocity."""
    from cosmoflow.stages.derive import derive as run_derive
    from cosmoflow.stages.derive import plan_derive

    settings = call.settings({"derive": {"method": method, "smoothing": smoothing}})
    with call.session(settings) as session:
        run = call.run(settings, session)
        if call.dry_run:
            call.reporter.plan(plan_derive(fields, names, run))
            return
        dataset = run_derive(fields, out, names, run)
    _show_dataset(call, "derived", out, dataset)


@app.command(epilog="Example: cosmoflow train a.zarr b.zarr --out model --set train.steps=2000")
@common_options
def train(
    call: Invocation,
    fields: Annotated[list[str], typer.Argument(metavar="FIELDS...", help="Fields stores.")],
    out: Annotated[str, typer.Option("--out", help="The model folder to write.")],
    model: Annotated[str | None, typer.Option(help="See `cosmoflow models`.")] = None,
    target: Annotated[
        Literal["velocity", "momentum"] | None, typer.Option(help="The field to predict.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    workers: Annotated[int | None, typer.Option(help="Data-parallel workers.")] = None,
) -> None:
    """Train a network that maps density to velocity or momentum."""
    from cosmoflow.stages.train import plan_train
    from cosmoflow.stages.train import train as run_train

    own = {"model": model, "target": target, "steps": steps, "workers": workers}
    settings = call.settings({"train": own})
    with call.session(settings) as session:
        run = call.run(settings, session)
        if call.dry_run:
            call.reporter.plan(plan_train(fields, run))
            return
        trained = run_train(fields, out, run)
    facts = {"out": out, "model": trained.spec.architecture, "target": trained.spec.target}
    call.reporter.result(facts, lambda console: show_facts(console, "trained", facts))


@app.command(epilog="Example: cosmoflow infer fields.zarr velocity.zarr")
@common_options
def infer(
    call: Invocation,
    fields: Fields,
    out: Out,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="A model folder, the name of one that ships (see `cosmoflow models`), linear, or "
            "linear:R for linear theory smoothed at R Mpc/h. Give it again to average over more.",
        ),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            metavar="NAME",
            help="What to derive in the same pass: momentum, divergence, vorticity, "
            "velocity_shear. Give it again for more.",
        ),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            metavar="X0:X1,Y0:Y1,Z0:Z1", help="The part of the box to predict, Mpc/h; all if none."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Actors; one a GPU, or one for 8 cores, if none.")
    ] = None,
) -> None:
    """Predict the velocity field of a box, or of a part of it, tile by tile."""
    from cosmoflow.stages.infer import infer as run_infer
    from cosmoflow.stages.infer import plan_infer
    from cosmoflow.stages.models import DEFAULT_MODEL

    model = models or [DEFAULT_MODEL]
    own = {"fields": names or None, "region": region}
    settings = call.settings({"infer": own}, workers=workers)
    with call.session(settings) as session:
        run = call.run(settings, session)
        if call.dry_run:
            call.reporter.plan(plan_infer(fields, model, run))
            return
        dataset = run_infer(fields, out, model, run)
    _show_dataset(call, "predicted", out, dataset)


@app.command(epilog="Example: cosmoflow evaluate fields.zarr velocity.zarr --out report")
@common_options
def evaluate(
    call: Invocation,
    truth: Truth,
    predictions: Predictions,
    out: Annotated[str, typer.Option("--out", help="Folder for the report.")],
) -> None:
    """Compare predictions and linear theory with the truth; write a report to open."""
    from cosmoflow.stages.evaluate import METRICS, REPORT, plan_evaluate
    from cosmoflow.stages.evaluate import evaluate as run_evaluate

    settings = call.settings({})
    with call.session(settings) as session:
        run = call.run(settings, session)
        if call.dry_run:
            call.reporter.plan(plan_evaluate(truth, predictions, run))
            return
        comparison = run_evaluate(truth, predictions, out, run)
    paths = {"report": f"{out}/{REPORT}", "metrics": f"{out}/{METRICS}"}
    call.reporter.result(
        {**paths, "residual": comparison.metrics["residual"]},
        lambda console: show_comparison(console, comparison, paths),
    )


@app.command(epilog="Example: cosmoflow spectra fields.zarr --field density --out power.zarr")
@common_options
def spectra(
    call: Invocation,
    fields: Fields,
    out: Annotated[str, typer.Option("--out", help="zarr, or netCDF if it ends in .nc.")],
    field: Annotated[str, typer.Option("--field", help="A variable of the store.")],
    cross: Annotated[str | None, typer.Option(help="A second one.")] = None,
    compensate: Annotated[
        Literal["auto", "none"], typer.Option(help="Divide out the mass-assignment window.")
    ] = "auto",
) -> None:
    """Measure the power spectrum of a field, or the cross spectrum of two."""
    from cosmoflow.stages.spectra import plan_spectra
    from cosmoflow.stages.spectra import spectra as run_spectra

    settings = call.settings({})
    with call.session(settings) as session:
        if call.dry_run:
            call.reporter.plan(plan_spectra(fields, field, cross))
            return
        run = call.run(settings, session)
        dataset = run_spectra(fields, out, field, run, cross=cross, compensate=compensate)
    facts = {"out": out, "bins": dataset.sizes["k"], "field": field, "cross": cross or field}
    call.reporter.result(facts, lambda console: show_facts(console, "measured", facts))


@app.command(epilog="Example: cosmoflow models --json")
def models(
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON document.")] = False,
) -> None:
    """List the architectures (parameters, cells in and out, halo, FLOPs) and what ships."""
    from cosmoflow.model.registry import ARCHITECTURES, summarise
    from cosmoflow.stages.models import pretrained_models

    summaries, ships = [summarise(name) for name in ARCHITECTURES], pretrained_models()
    if as_json:
        import json

        rows = [asdict(one) | {"ships": one.name in ships} for one in summaries]
        typer.echo(json.dumps(rows, indent=2))
    else:
        show_models(Console(highlight=False), summaries, ships)


@app.command(epilog="Example: cosmoflow info fields.zarr")
def info(
    url: Url,
    overrides: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON document.")] = False,
) -> None:
    """Say what a store, a model or a snapshot of another code is."""
    from cosmoflow.config import load_settings
    from cosmoflow.stages.inspect import inspect

    content = inspect(url, load_settings(overrides=overrides or ()).snapshot)
    if as_json:
        import json

        typer.echo(json.dumps(content, indent=2, default=str))
    else:
        show_facts(Console(highlight=False), url, content)


@app.command(epilog="Example: cosmoflow demo --out demo-output")
@common_options
def demo(
    call: Invocation,
    out: Annotated[str, typer.Option("--out", help="Folder for everything.")] = "demo-output",
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
) -> None:
    """Run the whole chain on two small boxes and write a report: minutes."""
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


def _show_dataset(call: Invocation, what: str, out: str, dataset: Any) -> None:
    facts = {
        "out": out,
        "variables": ", ".join(sorted(dataset.data_vars)),
        "grid": dataset.sizes["x"],
        "open": f"xarray.open_zarr({out!r}, consolidated=False)",
    }
    call.reporter.result(facts, lambda console: show_facts(console, what, facts))


def run_app(arguments: list[str]) -> int:
    """Run one command and return its exit code.

    A person never sees a traceback for something that they can mend; a bug shows its own.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    logging.getLogger("ray").setLevel(logging.ERROR)
    as_json = "--json" in arguments
    try:
        app(args=arguments)
    except CosmoflowError as error:
        Reporter(as_json=as_json, verbosity=0).error(error)
        return error.exit_code
    except KeyboardInterrupt:
        code: object = INTERRUPTED
    except SystemExit as ended:
        code = ended.code
    if code == INTERRUPTED:
        sys.stderr.write("interrupted; run the same command with --resume to go on\n")
    return code if isinstance(code, int) else 0


def main() -> None:
    """Run ``cosmoflow`` and exit with its documented code."""
    sys.exit(run_app(sys.argv[1:]))
