"""Training of a model on fields stores."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from cosmoflow.config.settings import Settings
from cosmoflow.engine import Engine, available_memory
from cosmoflow.errors import ConfigError, DataError, IncompleteError, SupersededError
from cosmoflow.events import Message, StageFinished, caution, noting
from cosmoflow.model.error_fitting import fit_errors
from cosmoflow.model.family import ModelFamily
from cosmoflow.model.fitting import make_loop
from cosmoflow.model.folder import Model
from cosmoflow.model.names import COMPARISON, DESCRIPTION, HISTORY, RUN, WEIGHTS
from cosmoflow.model.precision import best_device
from cosmoflow.model.registry import find_architecture, geometry_of
from cosmoflow.model.starting import make_model
from cosmoflow.model.training_job import Metrics, TrainingJob
from cosmoflow.stages.inputs.boxes import count_validation
from cosmoflow.stages.inputs.density import check_contents
from cosmoflow.stages.inputs.empty_cells import examine
from cosmoflow.stages.inputs.paintings import check_painted_alike
from cosmoflow.stages.models import load_model, save_model, warn_of_namesake
from cosmoflow.stages.run import Plan, Run, claiming, require_memory, start_engine
from cosmoflow.stages.train.basis import (
    FILTER,
    Basis,
    Start,
    begin_training,
    differences,
    find_basis,
    fits_filter,
    needs_family,
    settle,
)
from cosmoflow.stages.train.comparison import keep_comparison
from cosmoflow.stages.train.data import Split, choose_split, make_job
from cosmoflow.stages.train.family import widen_range
from cosmoflow.stages.train.gains import (
    add_gain,
    gain_fits,
    has_gain,
    measures_gain,
    warn_without_gain,
)
from cosmoflow.stages.train.plan import TrainPlan, plan_training
from cosmoflow.stages.train.progress import (
    ERROR_SIZES,
    GAIN,
    TrainingProgress,
    WorkNotes,
    WorkProgress,
)
from cosmoflow.stages.train.relatives import warn_of_relatives
from cosmoflow.storage.checkpoints import CheckpointFolder
from cosmoflow.storage.claims import Claim
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.files import remove_file
from cosmoflow.storage.metadata import make_provenance
from cosmoflow.storage.outputs import check_output, check_same_run
from cosmoflow.storage.urls import absolute, exists, has_file, join, read_bytes, remove, write_bytes
from cosmoflow.units import format_count

FILTER_BYTES = 72
"""Bytes per cell in memory while a filter is fitted: density, velocity and its modes, modes of four
fields, float64 products of two."""

_NO_MATTER = {
    "checkpoint_every",
    "keep_checkpoints",
    "workers",
    "prefetch",
    "tensorboard",
    "compare",
}
"""Settings that do not affect the model: a run may be resumed with other values."""


def plan_train(fields: str | Sequence[str], run: Run, out: str | None = None) -> TrainPlan:
    """Plan :func:`train`, and warn of boxes that train as well as validate.

    With ``out``, refuse to resume the training of other settings.
    """
    start = Start.find(run.settings.train)
    config = settle(run.settings.train, None if start is None else start.load())
    run = replace(run, settings=run.settings.model_copy(update={"train": config}))
    stores = [_open(url, config.target) for url in _urls(fields)]
    if out is not None:
        _can_resume(absolute(out), _identify(stores, start, run.settings), run)
    validation = count_validation(len(stores), config.validation_fraction)
    warn_of_relatives(stores, validation, run.listener)
    return plan_training([store.grid for store in stores], run)


def _urls(fields: str | Sequence[str]) -> list[str]:
    """Return the URLs of one or several stores."""
    return [absolute(url) for url in ([fields] if isinstance(fields, str) else fields)]


def _open(url: str, target: str) -> FieldStore:
    store = FieldStore(url)
    store.require("density", target)
    return store


def train(fields: str | Sequence[str], out: str, run: Run | None = None) -> Model:
    """Train a network.

    Parameters
    ----------
    fields : str or sequence of str
        URLs of fields stores, or of one. If they differ in redshift, cosmology or cell size, a
        residual network learns to be one model for all of them. The last eighth of the stores (at
        least one) is used for validation, or a slab if there is only one box.
    out : str
        URL of the model folder to write.
    run : Run, optional
        Settings (sections ``train`` and ``seed``), engine, progress.

    Returns
    -------
    VelocityModel or ModelFamily
        The saved model, with averaged weights: of one condition, or a family for many.

    Raises
    ------
    DataError
        The fields do not belong together or are too small, or the loss is no longer finite.
    BusyError
        Another training writes to the folder.
    OutputExistsError, StorageError, ConfigError
    """
    run, warned = run or Run(), list[str]()
    start = Start.find(run.settings.train)
    loaded = None if start is None else start.load()
    config = settle(run.settings.train, loaded)
    settings = run.settings.model_copy(update={"train": config})
    run = replace(run, settings=settings, listener=noting(run.listener, warned))
    if start is not None:
        warn_of_namesake(start.name, run.listener)
    if not fields:
        raise ConfigError("there is nothing to train on", remedy="name fields stores")
    fields, out = _urls(fields), absolute(out)
    check_output(out, run.existing, [*fields, *(() if start is None else start.folders)])
    stores = [_open(url, config.target) for url in fields]
    architecture = find_architecture(config.model)
    many = needs_family(stores, architecture, loaded)
    _check_stores(stores, run, many=many)
    painting = check_painted_alike(stores, run.listener)
    geometry = geometry_of(architecture.build())
    plan = plan_training([store.grid for store in stores], run)
    split = choose_split(fields, stores[0].grid, config.validation_fraction, plan.crop, geometry)
    warn_of_relatives(stores, split.validation, run.listener)
    provenance = _identify(
        stores,
        start,
        settings,
        # Empty cells matter to velocities only: the momentum of such a cell is zero.
        notes=[*examine(stores if config.target == "velocity" else (), run.listener), *warned],
        facts=painting.as_facts(),
    )
    engine = start_engine(
        run, plan, remedy="a smaller train.batch or train.crop", workers=config.workers
    )
    if fits_filter(architecture, loaded, many=many):
        _require_memory_for_filter(max(store.grid for store in stores), run)
    with claiming(out, run) as held:
        # Another run may have written it since.
        check_output(out, run.existing)
        resumed = _can_resume(out, provenance, run)
        done = _trained(out, provenance["digest"], split, run) if resumed else None
        if done is not None:
            run.listener(Message(f"{out} is already trained"))
            return done
        basis = find_basis(out, resumed, split, stores, loaded, run, many=many)
        basis = replace(basis, spec=replace(basis.spec, provenance=provenance))
        # Only now, so that a refused run leaves an older output unchanged.
        if not resumed:
            _begin(out, provenance, basis)
        if not architecture.learns:
            for store in stores:
                store.check_unchanged()
            _finish_baseline(out, basis, start, run, plan.crop)
            run.listener(StageFinished("train", {"out": out, **plan.details}))
            return load_model(out)
        _learn(out, basis, start, run, plan, engine, held, resumed=resumed)
        # Flows of fields in memory were checked when they were read; the gain reads them again.
        reads_on = plan.data == "streamed" or (config.measure_gain and basis.split.validation)
        _check_fields(stores, basis.split if reads_on else None, out)
        warn_without_gain(model := load_model(out), config, basis.split.validation, run.listener)
        run.listener(StageFinished("train", {"out": out, **plan.details}))
        return model


def _learn(
    out: str,
    basis: Basis,
    start: Start | None,
    run: Run,
    plan: TrainPlan,
    engine: Engine,
    held: Claim,
    *,
    resumed: bool,
) -> None:
    """Train the network of a run that has begun, and finish its model."""
    config = run.settings.train
    on_report = TrainingProgress(out, config, basis.split.validation, run)
    checkpoints = CheckpointFolder(join(out, "checkpoints"), config.keep_checkpoints)
    if resumed:
        _announce_checkpoint(checkpoints, run)
    loop = make_loop(
        partial(begin_training, basis, start, config.layers),
        partial(make_job, basis.split, run.settings, plan.crop),
        checkpoints,
        partial(_write_history, out),
        partial(_finish, out, basis, start),
    )
    if engine.name == "ray":
        workers = format_count(config.workers, "training worker")
        run.listener(Message(f"starting {workers} on Ray"))

    def report(metrics: Metrics) -> None:
        on_report(metrics)
        # Ray reports in another thread, where an error would be lost.
        if engine.name == "serial":
            held.check()

    engine.train(loop, workers=config.workers, on_report=report)
    held.check()


def _identify(
    stores: Sequence[FieldStore], start: Start | None, settings: Settings, **said: Any
) -> dict[str, Any]:
    """Return the provenance of a training, with the notes and facts that are given."""
    config = settings.train.model_dump(mode="json", exclude=_NO_MATTER)
    inputs = {f"fields {index}": store for index, store in enumerate(stores)}
    begun = {} if start is None else {"start": start}
    return make_provenance(
        "train",
        {"seed": settings.seed, "train": config},
        {role: store.digest for role, store in inputs.items()}
        | {role: one.digest for role, one in begun.items()},
        sources={role: store.url for role, store in inputs.items()}
        | {role: one.name for role, one in begun.items()},
        **said,
    )


def _check_stores(stores: Sequence[FieldStore], run: Run, *, many: bool) -> None:
    """Refuse stores that differ, unless for a family of models."""
    for store in stores:
        check_contents(store, ["density", run.settings.train.target], run)
    if many:
        return
    for store in stores[1:]:
        for name, value, expected in differences(store, stores[0]):
            raise DataError(
                f"the training fields differ in {name}",
                where=store.url,
                value=value,
                limit=f"{expected} as in {stores[0].url}",
                remedy=f"{run.settings.train.model} learns one condition: train on boxes that are "
                "alike, or train a residual network, which learns many (--model residual-small)",
            )


def _check_fields(stores: Sequence[FieldStore], split: Split | None, out: str) -> None:
    """Refuse fields, and flows of a split, that changed during the training.

    The model and its checkpoints are then deleted, since they depend on both states of the fields:
    a resumed run starts at step 0. If the fields cannot be read, nothing is deleted.
    """
    try:
        for store in stores:
            store.check_unchanged()
        if split is not None:
            split.check_flows()
    except (DataError, IncompleteError):
        remove_file(out, DESCRIPTION)
        remove_file(out, COMPARISON)
        remove(join(out, "checkpoints"))
        raise


def _can_resume(out: str, provenance: dict[str, Any], run: Run) -> bool:
    """Return whether there is a model folder to resume; refuse the folder of another run."""
    if run.existing != "resume" or not exists(out):
        return False
    check_same_run(_begun(out), provenance, out, "model")
    return True


def _trained(out: str, digest: str, split: Split, run: Run) -> Model | None:
    """Return the model of a run that has nothing left to do, not even its comparison or gain."""
    config = run.settings.train
    if not (has_file(out, DESCRIPTION) and has_file(out, WEIGHTS)):
        return None
    if config.compare and not has_file(out, COMPARISON):
        return None
    try:
        model = load_model(out)
    except DataError as error:
        caution(run.listener, f"{error.what}: the model is written again from its last checkpoint")
        return None
    if model.spec.provenance.get("digest") != digest:
        return None
    due = measures_gain(config, split.validation) and gain_fits(split)
    return None if due and not has_gain(model) else model


def _begun(out: str) -> dict[str, Any]:
    """Return the provenance of the run that began a model folder, or of old folders the digest."""
    if not has_file(out, RUN):
        return {}
    content = read_bytes(out, RUN).decode("utf-8", "backslashreplace").strip()
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"digest": content}


def _begin(out: str, provenance: dict[str, Any], basis: Basis) -> None:
    """Create the model folder, replacing an older one."""
    if exists(out):
        remove(out)
    write_bytes(out, RUN, f"{json.dumps(provenance)}\n".encode())
    if basis.kept is not None:
        write_bytes(out, FILTER, json.dumps(asdict(basis.kept)).encode())


def _require_memory_for_filter(grid: int, run: Run) -> None:
    """Refuse boxes whose transforms do not fit into the memory of this process."""
    cells = grid**3
    plan = Plan("fitting the Wiener filter", 1, "box", FILTER_BYTES * cells, 16 * cells, 0, 0.0)
    remedy = "train on smaller boxes: a model serves boxes of any size"
    require_memory(run, plan, available_memory(), remedy=remedy)


def _announce_checkpoint(checkpoints: CheckpointFolder, run: Run) -> None:
    """Report the checkpoint that a resumed run continues from, and damaged ones that it skips."""
    damaged: list[str] = []
    found = replace(checkpoints, on_damage=damaged.append).newest()
    for name in damaged:
        caution(run.listener, f"skipping a damaged checkpoint: {name}")
    text = "starting again: no valid checkpoint" if found is None else "continuing a checkpoint"
    run.listener(Message(f"{text} in {checkpoints.url}"))


def _finish(
    out: str,
    basis: Basis,
    start: Start | None,
    model: Model,
    job: TrainingJob,
    note: Callable[[Metrics], None],
) -> None:
    """Save the model with its errors, compare it, add its gains; runs in the worker of rank 0.

    Raises
    ------
    SupersededError
        Another run has begun in this folder. The driver slept and lost its claim.
    """
    if (found := _begun(out).get("digest")) != (digest := basis.spec.provenance["digest"]):
        raise SupersededError(
            "this training has lost its folder to another one",
            where=out,
            value=f"run {found}",
            limit=f"run {digest}",
            remedy="let the other training finish, and train into another folder",
        )
    # A family that started from a model of one condition has a range of its own.
    tuned = start is not None and basis.condition is None
    if isinstance(model, ModelFamily) and tuned and _has_learned(out):
        widen_range(model, basis.split)
    if steps := job.config.error_steps:
        model = fit_errors(model, job, best_device(), WorkNotes(ERROR_SIZES, steps, note))
    save_model(out, model)
    if job.config.compare:
        keep_comparison(out, model, job, basis, start, note)
    boxes = basis.split.validation
    if measures_gain(job.config, boxes) and gain_fits(basis.split):
        notes = WorkNotes(GAIN, boxes, note)
        add_gain(model, basis.split, job.config.measure_gain, notes)
        save_model(out, model)


def _has_learned(out: str) -> bool:
    """Return whether a step of a tuning was better than its start; else the start was kept."""
    rows = list(csv.DictReader(read_bytes(out, HISTORY).decode().splitlines()))
    best = min(rows, key=lambda row: float(row["validation_rms"]))
    return float(best["step"]) > 0.0


def _finish_baseline(out: str, basis: Basis, start: Start | None, run: Run, crop: int) -> None:
    """Save a filter, which has no network to train, and compare it."""
    save_model(out, model := make_model(basis.spec))
    if run.settings.train.compare:
        job = make_job(basis.split, run.settings, crop)
        keep_comparison(out, model, job, basis, start, WorkProgress(run.listener))


def _write_history(out: str, history: list[Metrics]) -> None:
    """Write the history so far; runs in the worker of rank 0."""
    buffer = io.StringIO()
    # Step 0 of a tuning has a validation, but no loss.
    writer = csv.DictWriter(buffer, fieldnames=list(history[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_bytes(out, HISTORY, buffer.getvalue().encode())
