"""Condition of a stored box, and whether its density is that of the condition."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from cosmoflow.cosmology.conditions import Condition, find_condition
from cosmoflow.events import Listener, caution
from cosmoflow.model.sources import FieldSource
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.blocks import Block
from cosmoflow.stages.inputs.expansion import growth_rate_hubble
from cosmoflow.storage.metadata import Box
from cosmoflow.storage.together import together

SCATTER_TOLERANCE: Final = 0.12
"""Largest difference of the scatter of ln rho from the expected one, as a share of it."""

_SAMPLES, _SIDE = 3, 32
"""Blocks along each axis that measure the scatter, and cells of their sides."""


def condition_of(box: Box, particles_per_cell: float | None = None) -> Condition:
    """Return the condition of a box, from its metadata.

    Parameters
    ----------
    box : Box
        The box.
    particles_per_cell : float, optional
        Mean number of particles in a cell, if the box does not state it.

    Raises
    ------
    DataError
        The expansion is not known, or neutrinos make the growth depend on scale.
    """
    metadata = box.metadata
    # It refuses what the condition cannot describe.
    growth_rate_hubble(metadata)
    sampling = metadata.sampling
    stated = None if sampling is None else sampling.particles_per_cell
    return find_condition(
        metadata.cosmology, metadata.redshift, box.cell_size, stated or particles_per_cell
    )


def check_scatter(
    source: FieldSource,
    box: Box,
    names: Sequence[str],
    models: Sequence[VelocityModel],
    listener: Listener,
) -> None:
    """Warn if the density does not scatter as families of models expect of the stated box.

    A wrong redshift, cosmology or box size, or a smoothed density, changes the scatter, and a
    family of models would take the box for another one.

    Parameters
    ----------
    source : FieldSource
        The fields of the box.
    box : Box
        The box.
    names, models
        Names of the models, and the models, made for the box.
    listener : callable
        Where the warning goes.
    """
    families = [one for one in zip(names, models, strict=True) if expects_scatter(one[1])]
    if not families:
        return
    # The density is read once: families of an ensemble expect nearly the same.
    name, model = families[0]
    expected, found = model.spec.normalisation.density_std, _scatter(source, box.url, model.offset)
    if abs(found / expected - 1.0) > SCATTER_TOLERANCE:
        metadata = box.metadata
        caution(
            listener,
            f"the density does not scatter as its box should: ln(rho + {model.offset:g}) has a "
            f"standard deviation of {found:.3g}, and {name} expects {expected:.3g} of cells of "
            f"{box.cell_size:g} Mpc/h at z = {metadata.redshift:g} with sigma8 = "
            f"{metadata.cosmology.sigma8:g}; check redshift, cosmology, box size, smoothing, "
            "and how particles were assigned to cells",
        )


def expects_scatter(model: VelocityModel) -> bool:
    """Return whether a model, made by a family, knows the scatter that its box should have."""
    return model.spec.fit is not None


def _scatter(source: FieldSource, url: str, offset: float) -> float:
    """Return the standard deviation of ``ln(rho + offset)`` over blocks of a box."""

    def sums(block: Block) -> tuple[int, float, float]:
        values = np.log(source.read_block("density", block) + offset, dtype=np.float64)
        return values.size, float(values.sum()), float((values**2).sum())

    found = together(url, sums, sample_blocks(source.grid))
    count, total, squares = (sum(column) for column in zip(*found, strict=True))
    return float(np.sqrt(max(0.0, squares / count - (total / count) ** 2)))


def sample_blocks(grid: int) -> Iterator[Block]:
    """Yield blocks spread over a box, or all of a small box."""
    side = min(_SIDE, grid)
    count = min(_SAMPLES, grid // side)
    origins = [index * grid // count for index in range(count)]
    for x, y, z in itertools.product(origins, repeat=3):
        yield Block((x, y, z), (side, side, side))
