"""Constants of a family of models, fitted to boxes of many conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from cosmoflow.cosmology.conditions import Condition
from cosmoflow.model.family import LIMITED, Family, ModelFamily
from cosmoflow.model.samples import TrainingBox, measure_normalisation
from cosmoflow.model.velocity import Target
from cosmoflow.numerics.conditions import ConditionSpace, Floats, fit_numbers
from cosmoflow.numerics.radial import RadialBins
from cosmoflow.numerics.wiener import WienerSum, sum_products
from cosmoflow.numerics.wiener_curves import fit_weights
from cosmoflow.stages.inputs.condition import condition_of
from cosmoflow.stages.run import Progress, Run
from cosmoflow.stages.train.data import Split
from cosmoflow.storage.fields import FieldStore

_USUAL_PARTICLES = 8.0
"""Particles per cell that are assumed where no box of a training states its own."""


def fit_family(
    split: Split, conditions: Sequence[Condition], names: Sequence[str], run: Run
) -> Family:
    """Fit the space of conditions and the Wiener filter to the training boxes.

    The constants of the network are left at zero: they need the velocities of the filter, see
    :func:`fit_constants`.

    Parameters
    ----------
    split : Split
        The boxes.
    conditions : sequence of Condition
        Conditions of all boxes.
    names : sequence of str
        Fields of the filter.
    run : Run
        Progress.
    """
    trained = conditions[: split.training]
    known = [one.particles_per_cell for one in trained if one.particles_per_cell]
    particles = float(np.exp(np.mean(np.log(known)))) if known else _USUAL_PARTICLES
    points = np.array([one.coordinates(particles) for one in trained])
    space = ConditionSpace.covering(points)
    progress = Progress(run.listener, "filter", split.training, "boxes")
    sums = []
    for url, condition in zip(split.fields, trained, strict=False):
        sums.append(_sum_box(FieldStore(url), condition.growth_rate_hubble, names))
        progress.advance()
    design = np.stack([space.terms(one) for one in points])
    none = (0.0,) * design.shape[1]
    return Family(
        space=space,
        limits={name: _limits(trained, name, particles) for name in LIMITED},
        particles_per_cell=particles,
        fields=tuple(names),
        weights=fit_weights(sums, design),
        density_mean=none,
        density_log_std=none,
        residual_log_rms=none,
    )


def widen_range(model: ModelFamily, split: Split) -> None:
    """Widen the range of a family that was tuned from another one by its training boxes.

    The functions of the condition stay those of the start: beyond the range that these were fitted
    to, their values at its edge hold.
    """
    family, limits = model.spec.family, {}
    trained = [condition_of(FieldStore(url)) for url in split.fields[: split.training]]
    for name, ends in family.limits.items():
        low, high = _limits(trained, name, family.particles_per_cell)
        limits[name] = min(low, ends[0]), max(high, ends[1])
    model.spec = replace(model.spec, family=replace(family, limits=limits))


def _limits(conditions: Sequence[Condition], name: str, particles: float) -> tuple[float, float]:
    """Return the smallest and the largest value of a quantity."""
    values = [getattr(one, name) for one in conditions]
    numbers = [particles if value is None else float(value) for value in values]
    return min(numbers), max(numbers)


def _sum_box(store: FieldStore, rate: float, names: Sequence[str]) -> WienerSum:
    """Return the products of fields and flow of a box."""
    size = store.metadata.box_size
    bins = RadialBins.covering(store.grid, size)
    density, velocity = (torch.from_numpy(store.read(name)) for name in ("density", "velocity"))
    return sum_products(density, velocity, size, rate, names, bins)


def fit_constants(
    family: Family, split: Split, conditions: Sequence[Condition], target: Target, offset: float
) -> Family:
    """Fit the constants of the network to the training boxes and the filter's velocities.

    Parameters
    ----------
    family : Family
        Family with its filter.
    split : Split
        The boxes, with their flows.
    conditions : sequence of Condition
        Conditions of all boxes.
    target : {"velocity", "momentum"}
        Predicted field.
    offset : float
        Offset in ``ln(rho + offset)``.
    """
    design, means, stds, residuals = list[Floats](), list[float](), list[float](), list[float]()
    boxes = list(zip(split.fields, split.flows, conditions, strict=True))
    for url, flows, condition in boxes[: split.training]:
        store = FieldStore(url)
        box = TrainingBox.slab(store, flows, 0, store.grid)
        found = measure_normalisation([box], target, offset)
        linear = condition.growth_rate_hubble * condition.displacement
        design.append(family.terms(condition))
        means.append(found.density_mean)
        stds.append(math.log(found.density_std))
        residuals.append(math.log(found.target_scale / linear))
    return replace(
        family,
        density_mean=fit_numbers(design, means),
        density_log_std=fit_numbers(design, stds),
        residual_log_rms=fit_numbers(design, residuals),
    )
