"""How good a prediction is: figures, spectra, a report."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cosmoflow.engine import available_memory
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.events import Message, StageFinished
from cosmoflow.numerics.comparison import Comparison, compare
from cosmoflow.numerics.fourier import linear_velocity
from cosmoflow.numerics.painting import divide_momentum
from cosmoflow.stages.linear import growth_rate_hubble
from cosmoflow.stages.report.figures import make_figures
from cosmoflow.stages.report.page import write_metrics, write_report
from cosmoflow.stages.run import Plan, Progress, Run, require_memory
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.metadata import make_provenance
from cosmoflow.storage.outputs import check_output, mark_folder
from cosmoflow.storage.urls import exists, local_path, remove, storage_errors

REPORT = "report.html"
METRICS = "metrics.json"
_STEPS = ("read", "linear theory", "statistics", "figures", "report")


def plan_evaluate(truth: str, prediction: str, run: Run) -> Plan:
    """Say what :func:`evaluate` would do."""
    true, found = _open(truth, prediction)
    methods = 1 + len(run.settings.evaluate.smoothing)
    cells = true.grid**3
    return Plan(
        stage="evaluate",
        tasks=len(_STEPS),
        unit="steps",
        # Density, truth and every method's velocity, and the float64 modes of one quantity.
        worker_memory=cells * (4 + 12 * (1 + methods) + 60),
        read=cells * 28,
        written=8 << 20,
        cpu_seconds=cells * methods * 1e-6 + 20.0,
        details={"grid": true.grid, "methods": methods, "prediction": found.url},
    )


def _open(truth: str, prediction: str) -> tuple[FieldStore, FieldStore]:
    """Open both stores and refuse a pair that cannot be compared."""
    true, found = FieldStore(truth), FieldStore(prediction)
    true.require("density", "velocity")
    pairs = {
        "grid": (found.grid, true.grid),
        "box_size": (found.metadata.box_size, true.metadata.box_size),
        "redshift": (found.metadata.redshift, true.metadata.redshift),
    }
    for name, (value, expected) in pairs.items():
        if value != expected:
            raise DataError(
                f"truth and prediction differ in {name}",
                where=prediction,
                value=value,
                limit=f"{expected} as in {truth}",
            )
    return true, found


def _predicted_velocity(store: FieldStore, density: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a prediction's velocity; that of a momentum follows from the density."""
    if "velocity" in store.variables:
        return store.read("velocity")
    if "momentum" not in store.variables:
        raise DataError(
            "the prediction holds neither velocity nor momentum",
            where=store.url,
            value=", ".join(store.variables),
        )
    momentum = store.read("momentum")
    mean = momentum.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)
    return divide_momentum(momentum, density, mean)


def evaluate(truth: str, prediction: str, out: str, run: Run | None = None) -> Comparison:
    """Compare a prediction, and linear theory, with the truth; write a report.

    Parameters
    ----------
    truth : str
        URL of a fields store with ``density`` and ``velocity``.
    prediction : str
        URL of a fields store with ``velocity`` or ``momentum``.
    out : str
        Local folder for ``report.html``, ``metrics.json`` and ``figures/``.
    run : Run, optional
        Settings (section ``evaluate``), progress.

    Returns
    -------
    Comparison
        Every number of the report.

    Raises
    ------
    DataError
        The two cannot be compared.
    OutputExistsError, StorageError, ConfigError
    """
    run = run or Run()
    config = run.settings.evaluate
    folder = local_path(out)
    if folder is None:
        raise ConfigError(
            "a report is written to a local folder", where="--out", value=out,
            remedy="write it here and copy it",
        )  # fmt: skip
    check_output(out, run.existing, [truth, prediction])
    true, found = _open(truth, prediction)
    require_memory(
        run, plan_evaluate(truth, prediction, run), available_memory(),
        remedy="a machine with more memory, or a coarser grid",
    )  # fmt: skip
    if run.existing == "overwrite" and exists(out):
        remove(out)
    mark_folder(out, "report")
    progress = Progress(run.listener, "evaluate", len(_STEPS), "steps")
    density, velocity = true.read("density"), true.read("velocity")
    predictions = {"network": _predicted_velocity(found, density)}
    progress.advance(note=_STEPS[1])
    rate = growth_rate_hubble(true.metadata)
    contrast = torch.from_numpy(density)
    for radius in config.smoothing:
        predictions[linear_name(radius)] = linear_velocity(
            contrast, true.metadata.box_size, rate, radius
        ).numpy()
    progress.advance(note=_STEPS[2])
    subbox = min(config.subbox, true.metadata.box_size)
    if subbox < config.subbox:
        run.listener(Message(f"sub-boxes are {subbox:g} Mpc/h: the box has no more"))
    comparison = compare(density, velocity, predictions, true.metadata.box_size, subbox)
    progress.advance(note=_STEPS[3])
    context = _context(true, found, run)
    with storage_errors(out):
        figures = make_figures(comparison, _made(folder / "figures"))
        progress.advance(note=_STEPS[4])
        write_metrics(comparison, context, folder / METRICS)
        page = write_report(comparison, figures, context, folder)
    progress.advance(note=str(page))
    run.listener(StageFinished("evaluate", {"out": out, "report": str(page)}))
    return comparison


def linear_name(radius: float) -> str:
    """Return what the report calls linear theory with some smoothing."""
    return "linear theory" if radius == 0.0 else f"linear theory {radius:g} Mpc/h"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _context(true: FieldStore, found: FieldStore, run: Run) -> dict[str, Any]:
    metadata = true.metadata
    return {
        "truth": true.url,
        "prediction": found.url,
        "box_size": metadata.box_size,
        "cells": true.grid,
        "cell_size": true.cell_size,
        "redshift": metadata.redshift,
        "cosmology": metadata.cosmology.model_dump(mode="json"),
        "prediction_provenance": found.metadata.provenance,
        "provenance": make_provenance(
            "evaluate",
            run.settings.resolved("evaluate"),
            {"truth": true.digest, "prediction": found.digest},
        ),
    }


def residual_rows(comparison: Comparison) -> list[tuple[str, float, float, float]]:
    """Return method, 3-D rms residual (km/s), mean cosine and rms over that of the truth."""
    figures = comparison.metrics["residual"]
    rows = [
        (name, found["rms"], found["mean_cosine"], found["relative"])
        for name, found in figures.items()
    ]
    return sorted(rows, key=lambda row: math.inf if row[1] is None else row[1])
