"""How good a prediction is: figures, spectra, a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
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
from cosmoflow.stages.flows import growth_rate_hubble
from cosmoflow.stages.report.figures import make_figures
from cosmoflow.stages.report.page import write_metrics, write_report
from cosmoflow.stages.run import Plan, Progress, Run, require_memory
from cosmoflow.storage.fields import RESTORED, FieldStore
from cosmoflow.storage.metadata import make_provenance
from cosmoflow.storage.outputs import check_output, mark_folder
from cosmoflow.storage.urls import exists, local_path, remove, storage_errors

REPORT = "report.html"
METRICS = "metrics.json"
_STEPS = ("read", "linear theory", "statistics", "figures", "report")


Predictions = str | Sequence[str]
"""URLs of fields stores, each by itself or as ``NAME=URL``."""


def plan_evaluate(truth: str, predictions: Predictions, run: Run) -> Plan:
    """Say what :func:`evaluate` would do."""
    true, found = _open(truth, predictions)
    restored = sum(RESTORED in store.variables for store in found.values())
    methods = len(found) + restored + len(run.settings.evaluate.smoothing)
    cells = true.grid**3
    return Plan(
        stage="evaluate",
        tasks=len(_STEPS),
        unit="steps",
        # Density, truth and every method's velocity, and the float64 modes of one quantity.
        worker_memory=cells * (4 + 12 * (1 + methods) + 60),
        read=cells * (16 + 12 * len(found)),
        written=8 << 20,
        cpu_seconds=cells * methods * 1e-6 + 20.0,
        details={
            "grid": true.grid,
            "methods": methods,
            "predictions": {name: store.url for name, store in found.items()},
        },
    )


def _open(truth: str, predictions: Predictions) -> tuple[FieldStore, dict[str, FieldStore]]:
    """Open all stores and refuse those that cannot be compared."""
    true = FieldStore(truth)
    true.require("density", "velocity")
    found: dict[str, FieldStore] = {}
    for given in [predictions] if isinstance(predictions, str) else predictions:
        label, store = _open_prediction(given)
        if label in found:
            raise ConfigError(
                "two predictions have one name",
                where="PREDICTION", value=f"{found[label].url} and {store.url}, both {label!r}",
                remedy="name them: first=URL second=URL",
            )  # fmt: skip
        _check_comparable(true, store)
        found[label] = store
    if not found:
        raise ConfigError("there is nothing to compare", remedy="name a prediction")
    return true, found


def _open_prediction(given: str) -> tuple[str, FieldStore]:
    """Open ``URL`` or ``NAME=URL``; a store without a name has that of its model, else its own."""
    label, equals, url = given.partition("=")
    if not equals or "/" in label:
        label, url = "", given
    store = FieldStore(url)
    config = store.metadata.provenance.get("config")
    models = config.get("models") if isinstance(config, dict) else None
    return label or " + ".join(models or [PurePosixPath(url).stem]), store


def _check_comparable(true: FieldStore, found: FieldStore) -> None:
    pairs = {
        "grid": (found.grid, true.grid),
        "box_size": (found.metadata.box_size, true.metadata.box_size),
        "redshift": (found.metadata.redshift, true.metadata.redshift),
    }
    for name, (value, expected) in pairs.items():
        if value != expected:
            raise DataError(
                f"truth and prediction differ in {name}",
                where=found.url,
                value=value,
                limit=f"{expected} as in {true.url}",
            )


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


def evaluate(truth: str, predictions: Predictions, out: str, run: Run | None = None) -> Comparison:
    """Compare predictions, and linear theory, with the truth; write a report.

    Parameters
    ----------
    truth : str
        URL of a fields store with ``density`` and ``velocity``.
    predictions : str or sequence of str
        URLs of fields stores with ``velocity`` or ``momentum``, or ``NAME=URL``; without a name
        the report calls a prediction by its model.
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
        They cannot be compared.
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
    true, found = _open(truth, predictions)
    check_output(out, run.existing, [truth, *(store.url for store in found.values())])
    require_memory(
        run, plan_evaluate(truth, predictions, run), available_memory(),
        remedy="a machine with more memory, or a coarser grid",
    )  # fmt: skip
    if run.existing == "overwrite" and exists(out):
        remove(out)
    mark_folder(out, "report")
    progress = Progress(run.listener, "evaluate", len(_STEPS), "steps")
    density, velocity = true.read("density"), true.read("velocity")
    fields: dict[str, NDArray[np.float32]] = {}
    for name, store in found.items():
        fields[name] = _predicted_velocity(store, density)
        if RESTORED in store.variables:
            fields[f"{name}, power restored"] = store.read(RESTORED)
    progress.advance(note=_STEPS[1])
    rate = growth_rate_hubble(true.metadata)
    contrast = torch.from_numpy(density)
    for radius in config.smoothing:
        fields[linear_name(radius)] = linear_velocity(
            contrast, true.metadata.box_size, rate, radius
        ).numpy()
    progress.advance(note=_STEPS[2])
    subbox = min(config.subbox, true.metadata.box_size)
    if subbox < config.subbox:
        run.listener(Message(f"sub-boxes are {subbox:g} Mpc/h: the box has no more"))
    comparison = compare(density, velocity, fields, true.metadata.box_size, subbox)
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


def _context(true: FieldStore, found: dict[str, FieldStore], run: Run) -> dict[str, Any]:
    metadata = true.metadata
    return {
        "truth": true.url,
        "predictions": {name: store.url for name, store in found.items()},
        "box_size": metadata.box_size,
        "cells": true.grid,
        "cell_size": true.cell_size,
        "redshift": metadata.redshift,
        "cosmology": metadata.cosmology.model_dump(mode="json"),
        "prediction_provenance": {name: store.metadata.provenance for name, store in found.items()},
        "provenance": make_provenance(
            "evaluate",
            run.settings.resolved("evaluate"),
            {"truth": true.digest, **{name: store.digest for name, store in found.items()}},
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
