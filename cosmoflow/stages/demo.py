"""The whole chain on two small boxes: one for training, one held out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from cosmoflow.config import load_settings
from cosmoflow.errors import ConfigError
from cosmoflow.model.family import ModelFamily
from cosmoflow.model.names import DEFAULT_MODEL, model_folder
from cosmoflow.numerics.comparison import Comparison
from cosmoflow.stages import costs
from cosmoflow.stages.evaluate import METRICS, REPORT, evaluate
from cosmoflow.stages.infer import infer_store
from cosmoflow.stages.models import has_cells, load_model
from cosmoflow.stages.paint import paint
from cosmoflow.stages.run import Run
from cosmoflow.stages.simulate import SimulatePlan, plan_simulate, simulate
from cosmoflow.stages.train import train
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.outputs import check_output, mark_folder
from cosmoflow.storage.urls import absolute, exists, local_path, remove

PRESET = "quickstart"
SHIPPED = {DEFAULT_MODEL: "network that ships", "wiener": "wiener filter that ships"}
HELD_OUT_SEED_OFFSET = 1000
"""Difference between the seeds of the held-out box and of the training box."""


@dataclass(frozen=True, kw_only=True)
class DemoPlan(SimulatePlan):
    """Plan of `demo`: its simulations and the stages after them.

    Parameters
    ----------
    grid : int
        Cells per axis of the painted fields.
    model : str
        Architecture to train.
    training_steps : int
        Number of training steps.
    """

    grid: int
    model: str
    training_steps: int


def plan_demo(run: Run) -> DemoPlan:
    """Plan :func:`demo`."""
    plan = plan_simulate(run)
    config = run.settings
    return DemoPlan(
        **plan.details,
        stage="demo",
        tasks=7,
        unit="stages",
        worker_memory=plan.worker_memory,
        read=0,
        written=2 * (plan.written + config.paint.grid**3 * 52),
        cpu_seconds=costs.DEMO_SECONDS,
        grid=config.paint.grid,
        model=config.train.model,
        training_steps=config.train.steps,
    )


def demo(out: str, run: Run) -> tuple[Comparison, dict[str, Any]]:
    """Simulate, paint, train, predict the held-out box, and evaluate the predictions.

    The names of what the trained network makes contain its steps, so that a demo that is resumed
    with more steps trains, predicts and reports again, and keeps the rest.

    Parameters
    ----------
    out : str
        Local folder. A resumed demo skips stages whose output is complete.
    run : Run
        Settings (the preset ``quickstart``), engine, progress.

    Returns
    -------
    comparison : Comparison
        Comparison of the held-out box.
    summary : dict
        Paths, the steps of the training, and the seconds of each stage.
    """
    out = absolute(out)
    folder = local_path(out)
    if folder is None:
        raise ConfigError("the demo writes to a local folder", where="--out", value=out)
    check_output(out, run.existing)
    if run.existing == "overwrite" and exists(out):
        remove(out)
    mark_folder(out, "demo")
    # Every stage resumes the output that an interrupted demo left in the folder.
    run = replace(run, existing="resume")
    train_fields, test_fields = (str(folder / f"{role}-fields.zarr") for role in ("train", "test"))
    steps = run.settings.train.steps
    model_path = str(folder / f"model-{steps}-steps")
    seconds: dict[str, float] = {}
    for role, fields, offset in (
        ("train", train_fields, 0),
        ("test", test_fields, HELD_OUT_SEED_OFFSET),
    ):
        seed = run.settings.seed + offset
        seeded = replace(run, settings=run.settings.model_copy(update={"seed": seed}))
        particles = str(folder / f"{role}-particles.zarr")
        with _timed(seconds, f"simulate {role}"):
            simulate(particles, seeded)
        with _timed(seconds, f"paint {role}"):
            paint(particles, fields, run)
    with _timed(seconds, "train"):
        train([train_fields], model_path, run)
    made: dict[str, str] = {}
    verb = "trained" if run.settings.train.start is None else "tuned"
    models = _models(test_fields) | {f"{verb} here, {steps} steps": model_path}
    with _timed(seconds, "infer"):
        for name, model in models.items():
            label = model if model in SHIPPED else f"{steps}-steps"
            made[name] = str(folder / f"prediction-{label}.zarr")
            infer_store(test_fields, made[name], model, run)
    report = folder / "report"
    with _timed(seconds, "evaluate"):
        # The report of an earlier run may be of fewer steps.
        comparison = evaluate(
            test_fields,
            [f"{name}={prediction}" for name, prediction in made.items()],
            str(report),
            replace(run, existing="overwrite"),
        )
    summary = {
        "out": out,
        "truth": test_fields,
        "prediction": made.get(SHIPPED[DEFAULT_MODEL]),
        "model": model_path,
        "training_steps": steps,
        "training_starts_from": run.settings.train.start,
        "report": str((report / REPORT).resolve()),
        "metrics": str((report / METRICS).resolve()),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    return comparison, summary


def run_demo(out: str = "demo-output", run: Run | None = None) -> Comparison:
    """Run the whole chain on two small boxes and write a report; this takes minutes.

    The demo simulates and paints two boxes, goes on training the shipped network on one for a few
    steps, predicts the other with both, and evaluates the predictions.

    Parameters
    ----------
    out : str
        Local folder; the page to open is ``report/report.html`` in it.
    run : Run, optional
        Settings (by default the preset ``quickstart``), engine, progress.

    Returns
    -------
    Comparison
        Comparison of the box that the network was not trained on.

    Raises
    ------
    OutputExistsError, StorageError, ConfigError
    """
    return demo(out, run or Run(load_settings(PRESET)))[0]


def _models(fields: str) -> dict[str, str]:
    """Return the shipped models to compare, by their names in the report.

    Models that were trained on cells of another size are left out.
    """
    models = dict[str, str]()
    store = FieldStore(fields)
    for name, label in SHIPPED.items():
        shipped = load_model(model_folder(name))
        if isinstance(shipped, ModelFamily) or has_cells(store.cell_size, shipped.spec.cell_size):
            models[label] = name
    return models


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Record the duration of a block under a name."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
