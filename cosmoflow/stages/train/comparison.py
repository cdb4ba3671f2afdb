"""A new model beside its start, its Wiener filter and the shipped model, in validation blocks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from cosmoflow.model.training_job import TrainingJob
from cosmoflow.numerics.blocks import Block
from cosmoflow.stages.infer import find_shipped, predict_shipped, prediction_seconds
from cosmoflow.stages.train.basis import Basis, Start, begin_training
from cosmoflow.stages.train.data import VALIDATION_BLOCKS, Split
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.urls import write_bytes
from cosmoflow.units import format_bytes

FILTERED: Final = "its Wiener filter"
"""Name of the filter whose velocity is an input of the new model."""

_FILTER: Final = "wiener"
"""Shipped filter that stands in for that of a network without one."""

Squares = tuple[float, int]
"""Sum of the squared residuals, and the number of cells."""


def compare(
    model: Model, job: TrainingJob, basis: Basis, start: Start | None = None
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
    start : Start, optional
        Model that the training started from.

    Returns
    -------
    dict
        ``blocks`` and ``cells`` compared; ``rms``, the 3-D residual of each method, km/s;
        ``skipped``, why a method is not compared; ``start``, the method that the training started
        from, or None; ``learns``, whether the model has a network to train; ``learned_from``,
        whether a validation box is a copy of a training box.
    """
    squares, cells = sum_squares(model, job.validation, job.config.precision, best_device())
    rms, skipped = {OWN: math.sqrt(squares / cells)}, dict[str, str]()
    rivals = [(SHIPPED, DEFAULT_MODEL)]
    architecture = find_architecture(model.spec.architecture)
    if architecture.learns and architecture.filter is not None:
        rms[FILTERED] = _rms(map(_filter_squares(model), job.validation))
    else:
        rivals.insert(0, (f"{_FILTER} (ships)", _FILTER))
    for label, name in rivals:
        found = _compare_shipped(name, model.target, job, basis.split)
        if isinstance(found, str):
            skipped[label] = found
        else:
            rms[label] = found
    began = None
    if start is not None:
        last = PurePosixPath(start.name).name
        labels = {name: label for label, name in rivals}
        began = labels.get(start.name, f"its start ({last})")
        # A shipped model that a box does not fit is no rival, but it may still be the start.
        if began not in rms:
            found = _compare_start(model, rms[OWN], job, basis, start)
            if isinstance(found, str):
                skipped[began] = found
            else:
                skipped.pop(began, None)
                rms[began] = found
    blocks = len(job.validation)
    return {
        "blocks": blocks,
        "cells": int(cells),
        "rms": rms,
        "skipped": skipped,
        "start": began,
        "learns": architecture.learns,
        "learned_from": _learned_from(basis.split),
    }


def _learned_from(split: Split) -> bool:
    """Return whether a validation box is a copy of one that the model learns from."""
    digests = [FieldStore(url).digest for url in split.fields]
    return bool(split.validation) and not set(digests[split.training :]).isdisjoint(
        digests[: split.training]
    )


def keep_comparison(
    out: str, model: Model, job: TrainingJob, basis: Basis, start: Start | None = None
) -> None:
    """Compare a new model and keep the result in its folder."""
    content = json.dumps(compare(model, job, basis, start), indent=1)
    write_bytes(out, COMPARISON, f"{content}\n".encode())


def _compare_start(
    model: Model, rms: float, job: TrainingJob, basis: Basis, start: Start
) -> float | str:
    """Return the residual of the model that a training started from, or why it is not compared.

    Parameters
    ----------
    model : VelocityModel or ModelFamily
        The new model. If it has no network, it is its start, unless it is a family and that is not.
    rms : float
        Residual of the new model, km/s.
    """
    device = best_device()
    # The new model is whole: a start that was moved meanwhile must not fail it.
    try:
        if not find_architecture(model.spec.architecture).learns:
            same = isinstance(start.load(), type(model))
            return rms if same else "a new filter was fitted, to boxes of several conditions"
        begun = begin_training(basis, start, "all").to(device).eval()
    except CosmoflowError as error:
        return error.what
    squares, cells = sum_squares(begun, job.validation, job.config.precision, device)
    return math.sqrt(squares / cells)


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


def _compare_shipped(name: str, target: str, job: TrainingJob, split: Split) -> float | str:
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
