"""The command `evaluate`: compare predictions with the truth and write a report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cosmoflow.engine import keeping_freed_buffers
from cosmoflow.errors import ConfigError, DataError, OutputExistsError, StorageError
from cosmoflow.events import Message, StageFinished, noting
from cosmoflow.numerics.comparison import Comparison
from cosmoflow.stages.evaluate.inputs import (
    Inputs,
    Origins,
    Predictions,
    check_agreement,
    check_origins,
    open_inputs,
)
from cosmoflow.stages.evaluate.measure import SCRATCH, measure
from cosmoflow.stages.evaluate.plan import EvaluatePlan, plan_work, seconds_for_ray
from cosmoflow.stages.evaluate.report.figures import make_figures
from cosmoflow.stages.evaluate.report.page import write_metrics, write_report
from cosmoflow.stages.evaluate.shipped import PREDICTED, choose_shipped, to_json
from cosmoflow.stages.evaluate.trainings import describe_models
from cosmoflow.stages.evaluate.trust import particles_of
from cosmoflow.stages.inputs.density import check_contents
from cosmoflow.stages.inputs.empty_cells import describe_empty, examine, sampling_with
from cosmoflow.stages.inputs.expansion import growth_rate_hubble
from cosmoflow.stages.inputs.notes import input_notes
from cosmoflow.stages.inputs.paintings import painting_of
from cosmoflow.stages.inputs.readers import VELOCITY_ERROR
from cosmoflow.stages.run import Run, claiming, start_engine
from cosmoflow.storage.claims import Claim
from cosmoflow.storage.curves import write_curves
from cosmoflow.storage.metadata import (
    COMPLETE,
    FORMAT_VERSION,
    INCOMPLETE,
    STATUS,
    attributes_of,
    make_provenance,
)
from cosmoflow.storage.outputs import OUTPUT_MARKS, check_output, check_same_run
from cosmoflow.storage.urls import (
    absolute,
    exists,
    find_bytes,
    has_file,
    holds_only_partial_files,
    join,
    local_path,
    open_group,
    remove,
    storage_errors,
    write_bytes,
)

REPORT = "report.html"
METRICS = "metrics.json"
CURVES = "curves.zarr"
FIGURES = "figures"

_FORMAT = "cosmoflow/report"

_REMEDY = "a smaller evaluate.subbox, fewer predictions at once, or more memory for a worker"


def plan_evaluate(truth: str, predictions: Predictions, run: Run) -> EvaluatePlan:
    """Plan :func:`evaluate`."""
    inputs, _ = _open(truth, predictions, run)
    return plan_work(inputs, run, choose_shipped(inputs, run))


def evaluate(truth: str, predictions: Predictions, out: str, run: Run | None = None) -> Comparison:
    """Compare predictions, and linear theory, with the truth; write a report.

    No store is read whole: tasks add up blocks, sub-boxes and slabs of the stores on the run's
    engine. How a box is cut changes only the last digits of the figures.

    Parameters
    ----------
    truth : str
        URL of a fields store with ``density`` and ``velocity``.
    predictions : str, sequence of str, or mapping of str to str
        URLs of fields stores with ``velocity`` or ``momentum``, each plain or as ``NAME=URL``; or
        a mapping of names to URLs. The default name is that of the model that made the prediction:
        a shipped model's name, or the name of the model's folder. Predictions of equal
        names also get the names of their stores.
    out : str
        Local folder for ``report.html``, ``metrics.json``, ``curves.zarr`` and ``figures/``.
    run : Run, optional
        Settings (section ``evaluate``), engine, what to do with an existing report, progress. A
        resumed report is made again if it was begun with the same settings and stores.

    Returns
    -------
    Comparison
        All figures of the report.

    Raises
    ------
    DataError
        Stores cannot be compared, a prediction was made from another box, or a store is damaged.
        No report is written then, and an older one stays as it was.
    OutputExistsError
        The folder already holds a report, or something else.
    ConfigError
        The report to resume was begun with other settings or stores, or there is too little memory.
    StorageError
        The folder or a store cannot be reached.

    Notes
    -----
    Linear theory is read from the truth if the truth stores it. Otherwise it is made in a scratch
    store inside the folder, 12 bytes a cell for each radius, which is deleted at the end.
    """
    run, warned = run or Run(), list[str]()
    run = replace(run, listener=noting(run.listener, warned))
    out = absolute(out)
    folder = local_path(out)
    if folder is None:
        raise ConfigError(
            "a report is written to a local folder", where="--out", value=out,
            remedy="write it here and copy it",
        )  # fmt: skip
    inputs, origins = _open(truth, predictions, run)
    provenance = _provenance(inputs, run)
    _check_folder(out, inputs, run, provenance)
    shipped = choose_shipped(inputs, run)
    plan = plan_work(inputs, run, shipped)
    if shipped.model is None and run.settings.evaluate.shipped_grid:
        run.listener(Message(plan.shipped))
    # Before any output: a run that is refused must leave an older report as it is. The shipped
    # model is applied in this process, also where the tasks run on Ray.
    seconds = seconds_for_ray(plan.cpu_seconds - shipped.seconds(inputs.true.grid), run)
    engine = start_engine(run, plan, remedy=_REMEDY, cpu_seconds=seconds)
    if engine.name == "serial":
        # Its parts, each of which may be much work, do not choose again.
        run = run.here()
    check_contents(inputs.true, ["density", "velocity"], run)
    for store in inputs.found.values():
        own = [one for one in inputs.methods if one.url == store.url]
        errors = [VELOCITY_ERROR for one in own if one.intervals is not None]
        check_contents(store, [*(one.variable for one in own), *errors], run)
    size, subbox = inputs.box_size, run.settings.evaluate.subbox
    if subbox > size:
        what = f"the box is smaller than evaluate.subbox, {subbox:g} Mpc/h"
        run.listener(Message(f"{what}: one sub-box of {size:g} Mpc/h is measured"))
    provenance["notes"] += examine([inputs.true, *inputs.found.values()], run.listener)
    with _holding(out, run, provenance) as claim:
        # All parts of the work need buffers as large. On Ray this process only adds up.
        with keeping_freed_buffers() if engine.name == "serial" else nullcontext():
            comparison = measure(inputs, out, plan, engine, run, claim)
        check_agreement(comparison.metrics["residual"], origins, run.listener)
        provenance["notes"] = list(dict.fromkeys([*provenance["notes"], *origins.notes, *warned]))
        for store in (inputs.true, *inputs.found.values()):
            store.check_unchanged()
        comparison.metrics["shipped"] = to_json(shipped, inputs)
        _write(comparison, inputs, out, provenance)
    page = folder / REPORT
    run.listener(StageFinished("evaluate", {"out": str(folder), "report": str(page)}))
    return comparison


def _open(truth: str, predictions: Predictions, run: Run) -> tuple[Inputs, Origins]:
    """Open the stores, and refuse those that cannot be compared."""
    config = run.settings.evaluate
    inputs = open_inputs(truth, predictions, config.smoothing)
    # Linear theory needs the growth rate: a box with an unknown one is refused first.
    growth_rate_hubble(inputs.true.metadata)
    return inputs, check_origins(inputs, run.listener, force=config.force)


def _provenance(inputs: Inputs, run: Run) -> dict[str, Any]:
    """Return the provenance of a report: its settings and stores."""
    stores = {name: store.digest for name, store in inputs.found.items()}
    config = run.settings.resolved("evaluate")
    # `force` changes which stores are accepted, and no figure.
    config["evaluate"].pop("force")
    urls = {name: store.url for name, store in inputs.found.items()}
    return make_provenance(
        "evaluate",
        config,
        {"truth": inputs.true.digest, **stores},
        sources={"truth": inputs.true.url, **urls},
        notes=input_notes({"truth": inputs.true, **inputs.found}),
    )


def _check_folder(out: str, inputs: Inputs, run: Run, provenance: dict[str, Any]) -> None:
    """Refuse an existing folder that may not be replaced."""
    stores = [store.url for store in (inputs.true, *inputs.found.values())]
    # Of outputs of other kinds the error is the one below: --overwrite would not help.
    check_output(out, "overwrite" if run.existing == "error" else run.existing, stores)
    # A run that was killed before its first mark leaves an empty folder, or a partial file.
    begun = exists(out) and not (Path(out).is_dir() and holds_only_partial_files(out))
    found = _read_mark(out) if begun else {}
    if begun and found.get("format") != _FORMAT:
        # A report is written into its folder: another output would be left half replaced.
        raise OutputExistsError(
            "what is there is no report, so it is neither resumed nor replaced",
            where=out,
            value=f"format: {found.get('format', 'not said')}",
            limit=f"format: {_FORMAT}",
            remedy="give the report another name",
        )
    check_output(out, run.existing, stores)
    if begun and run.existing == "resume":
        check_same_run(found.get("provenance", {}), provenance, out, "report")


def _read_mark(out: str) -> dict[str, Any]:
    """Return the mark of a folder, or at least its format; empty if it has neither."""
    try:
        content = find_bytes(out, OUTPUT_MARKS[0])
        found = attributes_of(open_group(out)) if content is None else json.loads(content)
    except (DataError, StorageError, ValueError):
        found = {}
    if isinstance(found, dict) and found:
        return found
    # Folders of models are recognised by the names of their files.
    names = [name for name in OUTPUT_MARKS[1:] if has_file(out, name)]
    return {"format": f"that of {' and '.join(names)}"} if names else {}


@contextmanager
def _holding(out: str, run: Run, provenance: dict[str, Any]) -> Iterator[Claim]:
    """Hold the report's folder; if the run fails, remove a folder that it has made."""
    with claiming(out, run) as claim:
        begun_before = exists(out)
        if not begun_before:
            _mark(out, INCOMPLETE, provenance)
        try:
            yield claim
        except BaseException:
            # An error of storage here must not hide the error that ends the run.
            with suppress(StorageError):
                if not begun_before and claim.holds():
                    remove(out)
            raise


def _mark(out: str, status: str, provenance: dict[str, Any]) -> None:
    """Mark a folder as a report, which ``--overwrite`` may replace, with status and provenance."""
    content = {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        STATUS: status,
        "provenance": provenance,
    }
    write_bytes(out, OUTPUT_MARKS[0], f"{json.dumps(content)}\n".encode())


def _write(comparison: Comparison, inputs: Inputs, out: str, provenance: dict[str, Any]) -> None:
    """Write all parts of a report in place of an older one, the page last."""
    _mark(out, INCOMPLETE, provenance)
    folder = Path(out)
    for name in (REPORT, METRICS, CURVES, FIGURES, SCRATCH, PREDICTED):
        if exists(join(out, name)):
            remove(join(out, name))
    context = _context(comparison, inputs, provenance)
    with storage_errors(out):
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        figures = make_figures(comparison, folder / FIGURES)
        write_curves(comparison, join(out, CURVES), inputs.true.metadata, provenance)
        write_metrics(comparison, context, folder / METRICS)
        write_report(comparison, figures, context, folder)
    _mark(out, COMPLETE, provenance)


def _context(comparison: Comparison, inputs: Inputs, provenance: dict[str, Any]) -> dict[str, Any]:
    """Return the facts about the run that the report shows."""
    true, metadata, found = inputs.true, inputs.true.metadata, inputs.found
    sampling = sampling_with(true, comparison.metrics["truth"]["empty_share"])
    return {
        # First, because it matters for all other figures.
        "empty_cells": describe_empty(sampling, true.grid),
        "truth": true.url,
        "predictions": {name: store.url for name, store in found.items()},
        "shipped_model": comparison.metrics["shipped"],
        "box_size": metadata.box_size,
        "cells": true.grid,
        "cell_size": true.cell_size,
        "redshift": metadata.redshift,
        "particles_per_cell": particles_of(true),
        "scheme": painting_of(true).scheme,
        "models": {name: describe_models(store) for name, store in found.items()},
        "cosmology": metadata.cosmology.model_dump(mode="json"),
        "prediction_provenance": {name: store.metadata.provenance for name, store in found.items()},
        "provenance": provenance,
    }
