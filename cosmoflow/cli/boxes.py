"""Commands that make particles and fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from cosmoflow.cli.options import Fields, Invocation, Out, Particles, common_options
from cosmoflow.cli.show import show_facts, show_store


@common_options("simulate.start_redshift=19", "seed", "cosmology", "simulate")
def simulate(
    call: Invocation,
    out: Out,
    box: Annotated[float | None, typer.Option(help="Side of the box, Mpc/h.")] = None,
    particles: Annotated[int | None, typer.Option(help="Particles per axis.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the initial conditions.")] = None,
    method: Annotated[Literal["cola", "2lpt"] | None, typer.Option(help="Integrator.")] = None,
    redshift: Annotated[
        str | None, typer.Option(help="Redshift of the snapshot, or several: 1,0.5,0.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="COLA time steps.")] = None,
    count: Annotated[
        int | None,
        typer.Option(
            help="Number of boxes, with seeds SEED, SEED + 1, ...; if several, OUT is a folder."
        ),
    ] = None,
    mesh_factor: Annotated[
        int | None, typer.Option(help="Force-mesh cells per particle along each axis, 1 to 4.")
    ] = None,
) -> None:
    """Simulate boxes of dark matter with COLA (or 2LPT) and write their particles."""
    from cosmoflow.stages import simulate as stage

    own = {
        "box_size": box,
        "particles": particles,
        "method": method,
        "redshift": redshift,
        "steps": steps,
        "count": count,
        "mesh_factor": mesh_factor,
    }
    with call.run({"seed": seed, "simulate": own}) as run:
        if call.dry_run:
            call.reporter.plan(stage.plan_simulate(run))
            return
        stores = stage.simulate(out, run)
    urls = [store.url for store in stores]
    facts: dict[str, Any] = {"out": out, "boxes": run.settings.simulate.count}
    facts["particles"] = stores[0].count
    call.reporter.result(
        {**facts, "stores": urls}, lambda console: show_facts(console, "simulated", facts)
    )


@common_options("snapshot.length_unit=kpc/h", "snapshot")
def convert(
    call: Invocation,
    snapshot: Annotated[
        str, typer.Argument(metavar="SNAPSHOT", help="A file, folder, glob or common base name.")
    ],
    out: Out,
) -> None:
    """Convert a snapshot of another code to a particle store. paint also reads snapshots."""
    from cosmoflow.stages import convert as stage

    with call.run({}) as run:
        if call.dry_run:
            call.reporter.plan(stage.plan_convert(snapshot, run))
            return
        store = stage.convert(snapshot, out, run)
    facts = {"out": out, "particles": store.count}
    call.reporter.result(facts, lambda console: show_facts(console, "converted", facts))


@common_options("paint.fill=nearest", "paint", "snapshot")
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
    from cosmoflow.stages import paint as stage

    with call.run({"paint": {"grid": grid, "scheme": scheme}}) as run:
        if call.dry_run:
            call.reporter.plan(stage.plan_paint(particles, run), particles, out)
            return
        stage.paint(particles, out, run)
    show_store(call, "painted", out)


@common_options("cosmology.h=0.7", "cosmology", "paint.shard", "paint.chunk")
def import_(
    call: Invocation,
    cube: Annotated[
        str,
        typer.Argument(
            metavar="CUBE", help="An .npy, .npz, HDF5, FITS or netCDF file, or FILE::NAME."
        ),
    ],
    out: Out,
    box: Annotated[float, typer.Option(help="Side of the box, Mpc/h.")],
    redshift: Annotated[float, typer.Option(help="Redshift of the density.")],
    quantity: Annotated[
        Literal["density", "delta", "counts"] | None,
        typer.Option(
            help="density is 1 + delta; counts is proportional to mass. By default inferred from "
            "the values."
        ),
    ] = None,
    velocity: Annotated[
        str | None, typer.Option(metavar="FILE", help="Velocity on the same grid, km/s.")
    ] = None,
    momentum: Annotated[
        str | None, typer.Option(metavar="FILE", help="Momentum (1 + delta) v, km/s.")
    ] = None,
    order: Annotated[
        Literal["C", "F"] | None,
        typer.Option(
            help="Slowest axis of the array in NumPy: x for C, z for F (files of Fortran or IDL)."
        ),
    ] = None,
) -> None:
    """Import a density cube as a fields store; set its cosmology, e.g. --set cosmology.h=0.7."""
    from cosmoflow.stages import imports as stage

    files = {"density": cube, "velocity": velocity, "momentum": momentum}
    with call.run({}) as run:
        request = stage.open_request(
            files, box_size=box, redshift=redshift, quantity=quantity, order=order
        )
        if call.dry_run:
            call.reporter.plan(stage.plan_import(request, run))
            return
        stage.import_request(request, out, run)
    show_store(call, "imported", out)


@common_options("derive.smoothing=4", "derive")
def derive(
    call: Invocation,
    fields: Fields,
    out: Out,
    names: Annotated[
        list[str],
        typer.Option(
            "--field",
            metavar="NAME",
            help="velocity, momentum, divergence, vorticity, velocity_shear, count (of "
            "particles), or smoothed_NAME for any field NAME. Repeat for more fields.",
        ),
    ],
    method: Annotated[
        Literal["difference", "spectral"] | None,
        typer.Option(help="Finite differences in each shard, or FFTs of the whole box."),
    ] = None,
    smoothing: Annotated[
        float | None, typer.Option(help="Gaussian radius of the smoothed fields, Mpc/h.")
    ] = None,
) -> None:
    """Derive fields from others: divergence, vorticity, shear, smoothed fields, velocity."""
    from cosmoflow.stages import derive as stage

    with call.run({"derive": {"method": method, "smoothing": smoothing}}) as run:
        if call.dry_run:
            call.reporter.plan(stage.plan_derive(fields, names, run), fields, out)
            return
        stage.derive(fields, out, names, run)
    show_store(call, "derived", out)
