"""A new model beside its start, its Wiener filter and the shipped model, in validation blocks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cosmoflow.engine import available_memory
from cosmoflow.errors import CosmoflowError
from cosmoflow.model.fitting import sum_squares
from cosmoflow.model.folder import Model
from cosmoflow.model.names import COMPARISON, DEFAULT_MODEL, OWN, SHIPPED
from cosmoflow.model.precision import best_device
from cosmoflow.model.registry import find_architecture
from cosmoflow.model.samples import TrainingBox, read_sample, stack
from cosmoflow.model.training_job import Metrics, TrainingJob
from cosmoflow.model.velocity import Reconstruction
from cosmoflow.numerics.blocks import Block
from cosmoflow.stages.infer import find_shipped, predict_shipped, prediction_seconds
from cosmoflow.stages.train.basis import Basis, Start, begin_training
from cosmoflow.stages.train.data import VALIDATION_BLOCKS, Split
from cosmoflow.stages.train.progress import COMPARING, WorkNotes
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.urls import write_bytes
from cosmoflow.units import format_bytes

FILTERED: Final = "its Wiener filter"
"""Name of the filter whose velocity is an input of the new model."""

_FILTER: Final = "wiener"
"""Shipped filter that stands in for that of a network without one."""

Squares = tuple[float, int]
"""Sum of the squared residuals, and the number of cells."""

Residual = float | str
"""Residual of a method in the validation blocks, km/s, or why it is not compared."""


def compare(
    model: Model,
    job: TrainingJob,
    basis: Basis,
    start: Start | None,
    note: Callable[[Metrics], None],
) -> dict[str, Any]:
    """Return the residuals of a new model and of others in the validation blocks.

    Parameters
    ----------
    model : VelocityModel or ModelFamily
        The model, in evaluation mode.
    job : TrainingJob
        The training, with the validation blocks.
    basis : Basis
        What the model was trained on.
    start : Start or None
        Model that the training started from.
    note : callable
        Told how many methods are done.

    Returns
    -------
    dict
        ``blocks`` and ``cells`` compared; ``rms``, the 3-D residual of each method, km/s;
        ``skipped``, why a method is not compared; ``start``, the method that the training started
        from, or None; ``learns``, whether the model has a network to train; ``learned_from``,
        whether a validation box is a copy of a training box.
    """
    methods, began = _choose_methods(model, job, basis, start)
    notes = WorkNotes(COMPARING, len(methods), note)
    rms, skipped = dict[str, float](), dict[str, str]()
    for done, (label, measure) in enumerate(methods.items(), 1):
        found = measure()
        if isinstance(found, str):
            skipped[label] = found
        else:
            rms[label] = found
        notes(done)
    return {
        "blocks": len(job.validation),
        "cells": sum(math.prod(block.shape) for _, block in job.validation),
        "rms": rms,
        "skipped": skipped,
        "start": began,
        "learns": find_architecture(model.spec.architecture).learns,
        "learned_from": _learned_from(basis.split),
    }


def _choose_methods(
    model: Model, job: TrainingJob, basis: Basis, start: Start | None
) -> tuple[dict[str, Callable[[], Residual]], str | None]:
    """Return what measures each method, the new model first, and the name of its start."""
    own = cache(partial(_measure, model, job))
    methods: dict[str, Callable[[], Residual]] = {OWN: own}
    rivals = {SHIPPED: DEFAULT_MODEL}
    architecture = find_architecture(model.spec.architecture)
    if architecture.learns and architecture.filter is not None:
        methods[FILTERED] = lambda: _rms(map(_filter_squares(model), job.validation))
    else:
        rivals = {f"{_FILTER} (ships)": _FILTER, **rivals}
    for label, name in rivals.items():
        methods[label] = partial(_measure_shipped, name, model.target, job, basis.split)
    if start is None:
        return methods, None
    labels = {name: label for label, name in rivals.items()}
    began = labels.get(start.name, f"its start ({PurePosixPath(start.name).name})")
    as_start = partial(_measure_start, model, job, basis, start, own)
    methods[began] = partial(_either, methods[began], as_start) if began in methods else as_start
    return methods, began


def _either(rival: Callable[[], Residual], as_start: Callable[[], Residual]) -> Residual:
    """Return the residual of a shipped model: one that a box does not fit may be the start."""
    found = rival()
    return as_start() if isinstance(found, str) else found


def _learned_from(split: Split) -> bool:
    """Return whether a validation box is a copy of one that the model learns from."""
    digests = [FieldStore(url).digest for url in split.fields]
    return bool(split.validation) and not set(digests[split.training :]).isdisjoint(
        digests[: split.training]
    )


def keep_comparison(
    out: str,
    model: Model,
    job: TrainingJob,
    basis: Basis,
    start: Start | None,
    note: Callable[[Metrics], None],
) -> None:
    """Compare a new model and keep the result in its folder; see :func:`compare`."""
    content = json.dumps(compare(model, job, basis, start, note), indent=1)
    write_bytes(out, COMPARISON, f"{content}\n".encode())


def _measure(model: Reconstruction, job: TrainingJob) -> float:
    """Return the residual of a model, km/s."""
    squares, cells = sum_squares(model, job.validation, job.config.precision, best_device())
    return math.sqrt(squares / cells)


def _measure_start(
    model: Model, job: TrainingJob, basis: Basis, start: Start, own: Callable[[], float]
) -> Residual:
    """Return the residual of the model that the training of ``model`` started from."""
    # The new model is whole: a start that was moved meanwhile must not fail it.
    try:
        if find_architecture(model.spec.architecture).learns:
            begun = begin_training(basis, start, "all")
            return _measure(begun.to(best_device()).eval(), job)
        # Without a network it is its start, unless only one of the two is a family.
        same = isinstance(start.load(), type(model))
    except CosmoflowError as error:
        return error.what
    return own() if same else "a new filter was fitted, to boxes of several conditions"


def comparison_seconds(grids: Sequence[int], crop: int) -> float:
    """Return the core-seconds of a comparison in validation boxes of the given sizes."""
    predicted = VALIDATION_BLOCKS * crop**3 // max(1, len(grids))
    return sum(prediction_seconds(grid, min(predicted, grid**3)) for grid in grids)


def _filter_squares(model: Model) -> Callable[[tuple[TrainingBox, Block]], Squares]:
    """Return the function that adds up the squared residuals of a model's filter in a block."""

    def add(place: tuple[TrainingBox, Block]) -> Squares:
        sample = stack([read_sample(place[0], model.target, place[1], 0)])
        flow = sample.flows[:, 0]
        found = flow if model.target == "velocity" else flow * sample.density.unsqueeze(1)
        residual = (found - sample.target).double()
        return float(residual.square().sum()), residual[0, 0].numel()

    return add


def _measure_shipped(name: str, target: str, job: TrainingJob, split: Split) -> Residual:
    """Return the residual of a shipped model, or why it is not compared."""
    if target != "velocity":
        return f"{name} predicts velocity, and this model {target}"
    squares: list[Squares] = []
    for url, blocks in _by_store(job.validation, split).items():
        store = FieldStore(url)
        shipped = find_shipped(store, name)
        if shipped.model is None:
            return shipped.reason
        need, free = shipped.memory(store.grid), available_memory()
        if need > free:
            return f"it needs {format_bytes(need)} of memory, and {format_bytes(free)} are free"
        try:
            squares += [
                _squares(found, store.read_block("velocity", block))
                for block, found in predict_shipped(shipped, store, blocks)
            ]
        # The new model is whole: what keeps another one from being compared must not fail it.
        except CosmoflowError as error:
            return error.what
    return _rms(squares)


def _by_store(
    validation: Sequence[tuple[TrainingBox, Block]], split: Split
) -> Mapping[str, list[Block]]:
    """Return the validation blocks of each store; boxes come in the order of their stores."""
    urls = split.fields[split.training :] if split.validation else split.fields
    blocks: dict[int, list[Block]] = {}
    for box, block in validation:
        blocks.setdefault(id(box), []).append(block)
    return dict(zip(urls, blocks.values(), strict=True))


def _squares(found: NDArray[np.float32], true: NDArray[np.float32]) -> Squares:
    """Return the sum of squared residuals of a block, and its cells."""
    return float(np.square(found - true, dtype=np.float64).sum()), found[0].size


def _rms(squares: Iterable[Squares]) -> float:
    """Return the rms of the 3-D residual of all blocks."""
    total, cells = map(sum, zip(*squares, strict=True))
    return math.sqrt(total / cells)
