"""Gains that restore the power of a model's velocities, measured on known truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from cosmoflow.config.networks import InferConfig, TrainConfig
from cosmoflow.cosmology.conditions import Condition
from cosmoflow.engine import available_memory
from cosmoflow.events import Listener, caution
from cosmoflow.model.family import ModelFamily
from cosmoflow.model.folder import Model
from cosmoflow.model.precision import best_device
from cosmoflow.model.sources import Flow
from cosmoflow.numerics.conditions import CONDITIONS_PER_TERM, count_distinct
from cosmoflow.numerics.radial import RadialBins
from cosmoflow.numerics.restoration import GainSum, fit_gains, sum_powers
from cosmoflow.stages.infer import Member, predict_box
from cosmoflow.stages.inputs.condition import condition_of
from cosmoflow.stages.train.data import Split
from cosmoflow.storage.fields import FieldStore

_BYTES_PER_CELL = 72
"""True and predicted velocity, the modes of one and of its potential part, float64 products."""


def measures_gain(config: TrainConfig, boxes: int) -> bool:
    """Return whether a training with so many validation boxes ends with :func:`add_gain`."""
    return config.measure_gain > 0 and boxes > 0 and config.target == "velocity"


def gain_fits(split: Split) -> bool:
    """Return whether each validation box and its transforms fit into memory.

    If one does not, a training does without the gain rather than fail at its very end.
    """
    return all(_BYTES_PER_CELL * one.grid**3 <= available_memory() for one in _validating(split))


def has_gain(model: Model) -> bool:
    """Return whether a model has gains."""
    holder = model.spec.family if isinstance(model, ModelFamily) else model.spec
    return holder.gain is not None


def warn_without_gain(model: Model, config: TrainConfig, boxes: int, listener: Listener) -> None:
    """Warn if a trained model lacks gains, since they did not fit into memory at its end."""
    if measures_gain(config, boxes) and not has_gain(model):
        caution(
            listener,
            "the gain was not measured, since a validation box and its transforms did not fit into "
            "the memory of the training: infer.restore_power is not possible with this model; "
            "smaller validation boxes or more memory allow it",
        )


def add_gain(
    model: Model,
    split: Split,
    symmetries: int,
    on_box: Callable[[int], None] = lambda done: None,
) -> None:
    """Measure the gains of a velocity model in its validation boxes and add them to its spec.

    Parameters
    ----------
    model : VelocityModel or ModelFamily
        The model, in evaluation mode.
    split : Split
        The split, with at least one validation store.
    symmetries : int
        Number of turned frames to average predictions over.
    on_box : callable
        Told after each box how many are done.
    """
    stores = _validating(split)
    boxes = list(zip(stores, split.flows[split.training :], strict=True))
    if isinstance(model, ModelFamily):
        _add_to_family(model, boxes, symmetries, on_box)
        return
    bins = RadialBins.covering(stores[0].grid, stores[0].metadata.box_size)
    total = GainSum.zero(bins)
    for done, (store, flows) in enumerate(boxes, 1):
        total = total + _measure(Member(model, flows), store, bins, symmetries)
        on_box(done)
    model.spec = replace(model.spec, gain=replace(total.solve(), symmetries=symmetries))


def _validating(split: Split) -> list[FieldStore]:
    return [FieldStore(url) for url in split.fields[split.training :]]


def _add_to_family(
    model: ModelFamily,
    boxes: Sequence[tuple[FieldStore, tuple[Flow, ...]]],
    symmetries: int,
    on_box: Callable[[int], None],
) -> None:
    """Fit gains that vary with the condition, if there are conditions enough, to a family."""
    sums, conditions = [], list[Condition]()
    for done, (store, flows) in enumerate(boxes, 1):
        bins = RadialBins.covering(store.grid, store.metadata.box_size)
        conditions.append(condition_of(store))
        member = Member(model.at(conditions[-1]), flows)
        sums.append(_measure(member, store, bins, symmetries))
        on_box(done)
    family = model.spec.family
    design = np.stack([family.terms(condition) for condition in conditions])
    points = [condition.coordinates(family.particles_per_cell) for condition in conditions]
    cells = [condition.cell_size for condition in conditions]
    linear = family.space.linear
    enough = count_distinct(design) >= CONDITIONS_PER_TERM * linear
    design[:, linear if enough else 1 :] = 0.0
    reach = tuple((min(ends), max(ends)) for ends in zip(*points, strict=True))
    gain = fit_gains(sums, cells, design)
    family = replace(family, gain=gain, gain_symmetries=symmetries, gain_reach=reach)
    model.spec = replace(model.spec, family=family)


def _measure(member: Member, store: FieldStore, bins: RadialBins, symmetries: int) -> GainSum:
    """Return the powers of a box and of its prediction."""
    device, config = best_device(), InferConfig(precision="auto", symmetries=symmetries)
    member = replace(member, model=member.model.to(device))
    predicted = torch.from_numpy(predict_box([member], store, config, device).mean)
    true = torch.from_numpy(store.read("velocity"))
    return sum_powers(true, predicted, store.metadata.box_size, bins)
