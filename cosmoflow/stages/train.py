"""From fields to a model."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from cosmoflow.config.settings import Settings
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.events import Message, StageFinished
from cosmoflow.model.fitting import Metrics, TrainingJob, make_loop
from cosmoflow.model.folder import DESCRIPTION, WEIGHTS
from cosmoflow.model.geometry import Geometry
from cosmoflow.model.registry import count_flops, count_parameters, find_architecture, geometry_of
from cosmoflow.model.samples import (
    FieldSource,
    MemoryFields,
    TrainingBox,
    measure_normalisation,
    split_lone_box,
    validation_blocks,
)
from cosmoflow.model.velocity import ModelSpec, Normalisation, VelocityModel
from cosmoflow.numerics.painting import Block
from cosmoflow.stages.linear import ensure_linear_velocity
from cosmoflow.stages.models import RUN, load_model, save_model
from cosmoflow.stages.run import Plan, Progress, Run, start_engine
from cosmoflow.storage.checkpoints import CheckpointFolder
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.metadata import make_provenance
from cosmoflow.storage.outputs import check_output
from cosmoflow.storage.urls import absolute, exists, has_file, join, read_bytes, remove, write_bytes

HISTORY = "history.csv"
VALIDATION_BLOCKS = 8
MEMORY_SHARE = 0.25
"""Fields up to this share of the free memory are held in it; larger ones are read crop by crop."""

_FLOPS_PER_SECOND = 1.5e11
_DEFAULT_CROP = 48


@dataclass(frozen=True, slots=True)
class _Split:
    """Which cells of which stores are learned from, and which are not."""

    fields: tuple[str, ...]
    scales: tuple[tuple[int, ...], ...]
    validation: int
    slab: int

    def training(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return the stores to learn from, with the indices of their smoothing scales."""
        every = list(zip(self.fields, self.scales, strict=True))
        return every[: len(every) - self.validation]


def _crop_cells(settings: Settings, geometry: Geometry) -> int:
    crop = settings.train.crop or geometry.fixed_output or _DEFAULT_CROP
    return geometry.check_output(crop, "train.crop")


def plan_train(fields: Sequence[str], run: Run) -> Plan:
    """Say what :func:`train` would do."""
    config = run.settings.train
    architecture = find_architecture(config.model)
    network = architecture.build()
    geometry = geometry_of(network)
    crop = _crop_cells(run.settings, geometry)
    stores = [_open(url, config.target) for url in fields]
    flops = 3.0 * count_flops(config.model, crop) * config.batch * config.steps
    cells = geometry.input_cells(crop) ** 3
    held = sum(store.grid**3 * 4 * (4 + 3 * len(architecture.smoothing)) for store in stores)
    parameters, _ = count_parameters(network)
    widest = max(p.shape[0] for p in network.parameters() if p.dim() == 5)
    return Plan(
        stage="train",
        tasks=config.steps,
        unit="steps",
        # Fields held in memory; weights, gradients, average and two moments; activations, of which
        # backpropagation keeps about a dozen of the widest at full resolution.
        worker_memory=held + 20 * parameters + 12 * 4 * min(widest, 64) * cells * config.batch,
        read=held,
        written=4 * parameters * (1 + 4 * config.keep_checkpoints),
        cpu_seconds=flops / _FLOPS_PER_SECOND,
        details={
            "model": config.model,
            "target": config.target,
            "crop": crop,
            "batch": config.batch,
            "samples": config.batch * config.steps * config.workers,
            "workers": config.workers,
            "flops": flops * config.workers,
        },
    )


def _open(url: str, target: str) -> FieldStore:
    store = FieldStore(url)
    store.require("density", target)
    return store


def train(fields: Sequence[str], out: str, run: Run | None = None) -> VelocityModel:
    """Train a network.

    Parameters
    ----------
    fields : sequence of str
        URLs of fields stores of one cell size and redshift. Of several boxes the last eighth (at
        least one) validates; of a lone box a slab does.
    out : str
        URL of the model folder to write.
    run : Run, optional
        Settings (sections ``train`` and ``seed``), engine, progress.

    Returns
    -------
    VelocityModel
        With averaged weights, as saved.

    Raises
    ------
    DataError
        The fields do not belong together or are too small.
    DataError
        The loss is no longer finite.
    OutputExistsError, StorageError, ConfigError
    """
    run = run or Run()
    settings, config = run.settings, run.settings.train
    if not fields:
        raise ConfigError("there is nothing to train on", remedy="name fields stores")
    fields, out = [absolute(url) for url in fields], absolute(out)
    check_output(out, run.existing, fields)
    stores = [_open(url, config.target) for url in fields]
    _check_alike(stores)
    architecture = find_architecture(config.model)
    geometry = geometry_of(architecture.build())
    crop = _crop_cells(settings, geometry)
    for store in stores:
        if store.grid < crop:
            raise DataError(
                "the box is smaller than a crop",
                where=store.url,
                value=f"{store.grid} cells per axis",
                limit=f"train.crop {crop}",
                remedy="a smaller train.crop",
            )
    validation = 0 if len(stores) == 1 else max(1, round(len(stores) * config.validation_fraction))
    slab = 0
    if validation == 0:
        slab = split_lone_box(stores[0].grid, config.validation_fraction, crop, geometry)
    provenance = make_provenance(
        "train",
        {
            "seed": settings.seed,
            "train": config.model_dump(
                mode="json", exclude={"checkpoint_every", "keep_checkpoints"}
            ),
        },
        {f"fields {index}": store.digest for index, store in enumerate(stores)},
    )
    plan = plan_train(fields, run)
    split = _Split(
        tuple(fields),
        tuple(ensure_linear_velocity(url, architecture.smoothing, run.listener) for url in fields),
        validation,
        slab,
    )
    spec = ModelSpec(
        architecture=architecture.name,
        target=config.target,
        cell_size=stores[0].cell_size,
        redshift=stores[0].metadata.redshift,
        cosmology=stores[0].metadata.cosmology.model_dump(mode="json"),
        normalisation=_normalise(split, settings, architecture.offset),
        provenance=provenance,
    )
    engine = start_engine(
        run, plan, remedy="a smaller train.batch or train.crop", workers=config.workers
    )
    resumed = _begin(out, provenance["digest"], run)
    if resumed and has_file(out, DESCRIPTION) and has_file(out, WEIGHTS):
        run.listener(Message(f"{out} is trained already"))
        return load_model(out)
    progress = Progress(run.listener, "train", config.steps, "steps")
    done = 0

    def on_report(metrics: Metrics) -> None:
        nonlocal done
        step = int(metrics["step"])
        note = f"validation residual {metrics['validation_rms']:.1f} km/s"
        progress.advance(step - done, note)
        done = step

    checkpoints = CheckpointFolder(join(out, "checkpoints"), config.keep_checkpoints)
    if resumed:
        _announce_checkpoint(checkpoints, run)
    loop = make_loop(
        partial(VelocityModel, spec),
        partial(_make_job, split, settings, crop),
        checkpoints,
        partial(_finish, out),
    )
    engine.train(loop, workers=config.workers, on_report=on_report)
    run.listener(StageFinished("train", {"out": out, **plan.details}))
    return load_model(out)


def _check_alike(stores: list[FieldStore]) -> None:
    first = stores[0]
    for store in stores[1:]:
        for name, value, expected in (
            ("cell size", store.cell_size, first.cell_size),
            ("redshift", store.metadata.redshift, first.metadata.redshift),
            ("Omega_m", store.metadata.cosmology.Omega_m, first.metadata.cosmology.Omega_m),
            ("sigma8", store.metadata.cosmology.sigma8, first.metadata.cosmology.sigma8),
        ):
            if abs(value - expected) > 1e-6 * max(1.0, abs(expected)):
                raise DataError(
                    f"the training fields differ in {name}",
                    where=store.url,
                    value=value,
                    limit=f"{expected} as in {first.url}",
                )


def _begin(out: str, digest: str, run: Run) -> bool:
    """Start the model folder, or check that the one there belongs to the same run."""
    if run.existing == "resume" and exists(out):
        found = read_bytes(out, RUN).decode().strip() if has_file(out, RUN) else "none"
        if found != digest:
            raise ConfigError(
                "the model was begun with other settings or fields",
                where=out,
                value=f"digest {found}",
                limit=f"digest {digest}",
                remedy="resume with the settings it was begun with, or --overwrite it",
            )
        return True
    if exists(out):
        remove(out)
    write_bytes(out, RUN, f"{digest}\n".encode())
    return False


def _announce_checkpoint(checkpoints: CheckpointFolder, run: Run) -> None:
    """Say where a resumed run goes on, and which checkpoints it has to pass over."""
    damaged: list[str] = []
    found = replace(checkpoints, on_damage=damaged.append).newest()
    for name in damaged:
        run.listener(Message(f"passing over a damaged checkpoint: {name}", "warning"))
    text = "starting anew: no whole checkpoint" if found is None else "going on from a checkpoint"
    run.listener(Message(f"{text} in {checkpoints.url}"))


def _normalise(split: _Split, settings: Settings, offset: float) -> Normalisation:
    boxes = [_training_box(FieldStore(url), scales, split.slab) for url, scales in split.training()]
    return measure_normalisation(boxes, settings.train.target, offset)


def _training_box(source: FieldSource, scales: tuple[int, ...], slab: int) -> TrainingBox:
    return TrainingBox(source, scales, 0, source.grid - slab)


def _make_job(split: _Split, settings: Settings, crop: int) -> TrainingJob:
    """Open the fields, in the worker that learns from them."""
    config = settings.train
    geometry = geometry_of(find_architecture(config.model).build())
    boxes = [
        TrainingBox(_source(url, config.target, scales), scales, 0, FieldStore(url).grid)
        for url, scales in zip(split.fields, split.scales, strict=True)
    ]
    validation: list[tuple[TrainingBox, Block]] = []
    if split.slab:
        box = boxes[0]
        first = box.source.grid - split.slab
        blocks = validation_blocks(
            box.source.grid, first, split.slab, crop, geometry, VALIDATION_BLOCKS
        )
        validation = [(box, block) for block in blocks]
        boxes = [_training_box(box.source, box.scales, split.slab)]
    else:
        held_out = boxes[len(boxes) - split.validation :]
        boxes = boxes[: len(boxes) - split.validation]
        for box in held_out:
            grid = box.source.grid
            share = max(1, VALIDATION_BLOCKS // len(held_out))
            blocks = validation_blocks(grid, 0, grid, crop, geometry, share)
            validation += [(box, block) for block in blocks]
    return TrainingJob(config, settings.seed, crop, boxes, validation)


def _source(url: str, target: str, scales: tuple[int, ...]) -> FieldSource:
    """Hold a box's fields in memory when they fit, else read each crop from the store."""
    import psutil

    store = FieldStore(url)
    size = store.grid**3 * 4 * (4 + 3 * len(store.smoothing_scales()))
    if size > MEMORY_SHARE * psutil.virtual_memory().available:
        return store
    fields = {name: store.read(name) for name in ("density", target)}
    if scales:
        import numpy as np

        every = range(max(scales) + 1)
        fields["linear_velocity"] = np.stack(
            [store.read("linear_velocity", lead=(scale,)) for scale in every]
        )
    return MemoryFields(fields)


def _finish(out: str, model: VelocityModel, history: list[Metrics]) -> None:
    """Save the model and its history; runs in the worker of rank 0."""
    write_bytes(out, HISTORY, _to_csv(history).encode())
    save_model(out, model)


def _to_csv(history: list[Metrics]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return buffer.getvalue()


def describe_model(url: str) -> dict[str, Any]:
    """Return what ``cosmoflow info`` says of a model folder."""
    model = load_model(url)
    return {
        "kind": "model",
        "name": PurePosixPath(url).name,
        "architecture": model.spec.architecture,
        "target": model.spec.target,
        "cell_size": model.spec.cell_size,
        "redshift": model.spec.redshift,
        "cosmology": model.spec.cosmology,
        "halo": model.geometry.halo,
        "stride": model.geometry.stride,
        "smoothing": list(model.smoothing),
        "files": [DESCRIPTION, WEIGHTS, HISTORY],
        "provenance": model.spec.provenance,
    }
