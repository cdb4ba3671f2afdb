"""Hold the core-seconds that stages predict against those that they take.

Usage: python benchmarks/predictions.py FOLDER [--grid 256 ...] [--stages ...] [--engine ray]

For each grid: N^3 particles on N^3 cells of 2 Mpc/h, painted, their spectrum measured, their
Wiener-filtered flow made in memory and in slabs, their velocity predicted with the network that
ships, and the prediction compared with the truth. Each stage runs in a process of its own, in that
process, after a small box that loads libraries and kernels. What is measured is CPU time, user and
system, of the process and its children: other work on the machine changes it by some 20 %, and wall
time by much more. With --engine ray tasks hand on through Ray; what they take beyond the prediction
is what the planner of clusters adds for every byte of it.

512^3 needs 16 GB of disk and 12 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import psutil
from _boxes import open_shipped
from paint_scale import write_box

from cosmoflow.config import load_settings
from cosmoflow.config.settings import EngineConfig
from cosmoflow.engine import Session
from cosmoflow.numerics.wiener import WienerFilter
from cosmoflow.stages import costs
from cosmoflow.stages import run as stages_run
from cosmoflow.stages.evaluate import evaluate, plan_evaluate
from cosmoflow.stages.flows import ensure_flows
from cosmoflow.stages.flows.plan import plan_flow
from cosmoflow.stages.infer import infer, plan_infer
from cosmoflow.stages.paint import paint, plan_paint
from cosmoflow.stages.run import Run
from cosmoflow.stages.slabs.plan import Grid
from cosmoflow.stages.spectra import plan_spectra, request_spectra, spectra
from cosmoflow.storage.fields import FieldStore

STAGES = ("paint", "spectra", "flow", "flow in slabs", "infer", "evaluate")
MODEL = "residual-small"
SMALL = 64
"""Cells per axis of the box that warms a process up."""


def run_stage(
    name: str, folder: Path, grid: int, session: Session
) -> tuple[Callable[[], float], Callable[[], None]]:
    """Return what predicts the core-seconds of a stage, and what does the work."""
    particles, fields = f"{folder}/particles-{grid}.zarr", f"{folder}/fields-{grid}.zarr"
    settings = load_settings(None, [f"paint.grid={grid}"])
    run = Run(settings, session, "overwrite", _ignore)

    def wiener() -> WienerFilter:
        found = open_shipped(MODEL, fields).spec.filter
        assert found is not None
        return found

    def flow() -> None:
        shutil.rmtree(f"{fields}/wiener_velocity", ignore_errors=True)
        ensure_flows(fields, (), wiener(), run, model=MODEL)

    if name == "paint":
        return (
            lambda: plan_paint(particles, run).cpu_seconds,
            lambda: _ignore(paint(particles, fields, run)),
        )
    if name == "spectra":
        return (
            lambda: plan_spectra(request_spectra(fields, "density", run), run).cpu_seconds,
            lambda: _ignore(spectra(fields, f"{folder}/spectra.zarr", "density", run)),
        )
    if name == "flow":
        return lambda: grid**3 * costs.FLOW_CELL, flow
    if name == "flow in slabs":
        # No box fits into a share of nothing.
        stages_run.FREE_SHARE = 0.0  # type: ignore[misc]
        names = wiener().fields
        return lambda: plan_flow(Grid.of(FieldStore(fields)), names, run).cpu_seconds, flow
    # It takes a flow that is there already: what makes one is a stage of its own here.
    ensure_flows(fields, (), wiener(), run, model=MODEL)
    predicted = f"{folder}/predicted-{grid}.zarr"
    if name == "evaluate":
        if not Path(predicted).exists():
            infer(fields, predicted, MODEL, run)
        return (
            lambda: plan_evaluate(fields, predicted, run).cpu_seconds,
            lambda: _ignore(evaluate(fields, predicted, f"{folder}/report-{grid}", run)),
        )
    return (
        lambda: plan_infer(fields, MODEL, run).cpu_seconds,
        lambda: _ignore(infer(fields, predicted, MODEL, run)),
    )


def _ignore(result: object) -> None:
    del result


def cpu_seconds() -> float:
    """Return the CPU time so far of this process and of all that descend from it."""
    own = psutil.Process()
    return sum(sum(one.cpu_times()[:4]) for one in (own, *own.children(recursive=True)))


def measure(
    name: str, folder: Path, grid: int, engine: Literal["serial", "ray"]
) -> dict[str, float]:
    """Warm up, then run a stage: predicted and measured core-seconds."""
    with Session(EngineConfig(choice=engine)) as session:
        run_stage(name, folder, SMALL, session)[1]()
        predict, work = run_stage(name, folder, grid, session)
        predicted = predict()
        begun = cpu_seconds()
        work()
        return {"predicted": predicted, "measured": cpu_seconds() - begun}


def main() -> None:
    """Run the stages and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--grid", type=int, nargs="+", default=[256])
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--keep", action="store_true", help="leave the stores where they are")
    parser.add_argument("--engine", choices=("serial", "ray"), default="serial")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    folder, stages = asked.folder, asked.stages.split(",")
    if asked.job:
        print(json.dumps(measure(asked.job, folder, asked.grid[0], asked.engine)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    print("| stage | box | predicted, core-s | measured, core-s | ratio |", flush=True)
    print("| --- | --- | --- | --- | --- |", flush=True)
    for grid in asked.grid:
        for side in (SMALL, grid):
            if not (folder / f"particles-{side}.zarr").exists():
                write_box(f"{folder}/particles-{side}.zarr", side)
            if not (folder / f"fields-{side}.zarr").exists():
                with Session(EngineConfig(choice="serial")) as session:
                    run_stage("paint", folder, side, session)[1]()
        for name in stages:
            own = [str(folder), "--grid", str(grid), "--engine", asked.engine, "--job", name]
            done = subprocess.run(
                [sys.executable, __file__, *own], stdout=subprocess.PIPE, text=True, check=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            ratio = found["predicted"] / found["measured"]
            print(
                f"| `{name}` | {grid}³ | {found['predicted']:.1f} | {found['measured']:.1f} "
                f"| {ratio:.2f} |",
                flush=True,
            )
    if not asked.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
