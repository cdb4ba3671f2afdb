"""Validated inference requests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from cosmoflow.config.networks import InferConfig
from cosmoflow.engine import Resources, TaskGraph
from cosmoflow.errors import ConfigError
from cosmoflow.model.names import DEFAULT_MODEL
from cosmoflow.model.precision import best_device, has_fast_bfloat16
from cosmoflow.model.sources import Flow
from cosmoflow.model.velocity import VelocityModel, may_expect_errors
from cosmoflow.numerics.blocks import Block, bounding_block, grid_blocks, grow, intersect
from cosmoflow.numerics.field_table import ERROR, SPREAD, STORED
from cosmoflow.numerics.rounding import rounding_step
from cosmoflow.stages.infer.tiles import Layout, Sides
from cosmoflow.stages.inputs.particle_counts import COUNT, particles_per_cell
from cosmoflow.stages.models import check_fits
from cosmoflow.stages.run import Run
from cosmoflow.storage.fields import RESTORED
from cosmoflow.storage.metadata import Box
from cosmoflow.storage.variables import ROUNDED
from cosmoflow.units import VELOCITY


def differences(fields: Sequence[str]) -> list[str]:
    """Return the derived fields that are made of differences of neighbouring cells."""
    if not fields:
        return []
    # Imported here: the stage that derives fields loads numba.
    from cosmoflow.stages.derive import recipe_of

    return [name for name in fields if recipe_of(name).slopes]


@dataclass(frozen=True, slots=True)
class Work:
    """A validated inference request.

    Parameters
    ----------
    models : tuple of str
        Names or URLs of the models.
    target : str
        Field that the models predict.
    config : InferConfig
        The settings.
    layout : Layout
        How the box is cut.
    region : Block
        Cells to predict.
    flows : tuple of tuple of Flow
        Flows of each model; empty until made.
    filter : str or None
        Digest of the filter whose velocity is read.
    origin : mapping or None
        Origin of the Wiener velocity, as noted in the store.
    device_memory : int or None
        Bytes of a worker's GPU; None where workers compute on CPUs.
    interval_95 : float or None
        Half the width of the interval that holds 95 % of the errors, over their expected size.
    particles_per_cell : float or None
        Mean number of particles in a cell, for the field ``count``.
    """

    models: tuple[str, ...]
    target: str
    config: InferConfig
    layout: Layout
    region: Block
    flows: tuple[tuple[Flow, ...], ...] = ()
    filter: str | None = None
    origin: Mapping[str, Any] | None = None
    device_memory: int | None = None
    interval_95: float | None = None
    particles_per_cell: float | None = None

    @property
    def extent(self) -> Sides:
        """Most cells per axis that a task predicts, without the halo of derivatives."""
        x, y, z = map(min, self.layout.block, self.region.shape)
        return x, y, z

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables that a task writes."""
        spread = (self.target + SPREAD,) if self.config.spread else ()
        errors = (self.target + ERROR,) if self.config.errors else ()
        return (self.target, *spread, *errors, *self.config.fields)

    @property
    def attributes(self) -> dict[str, dict[str, Any]]:
        """Attributes of the output variables, except their units."""
        attributes: dict[str, dict[str, Any]] = {name: {} for name in (*self.variables, RESTORED)}
        for derived in differences(self.config.fields):
            attributes[derived]["derivatives"] = "difference"
        for derived in self.config.fields:
            if derived == COUNT:
                attributes[derived]["particles_per_cell"] = self.particles_per_cell
        if self.config.spread:
            count = len(self.models) * self.config.symmetries
            attributes[self.target + SPREAD]["predictions"] = count
        if self.interval_95 is not None:
            attributes[self.target + ERROR] |= {
                "interval_68": 1.0,
                "interval_95": self.interval_95,
            }
        if self.config.rounding is not None:
            for name in filter(is_velocity, attributes):
                attributes[name][ROUNDED] = rounding_step(self.config.rounding)
        return attributes

    @property
    def halo(self) -> int:
        """Cells around a block that are also predicted, for derivatives."""
        return int(bool(differences(self.config.fields)))

    def tasks(self, grid: int, unfinished: Sequence[bool]) -> list[tuple[int, ...]]:
        """Return the shards of each task: the unfinished ones of a block that meet the region.

        Where workers each take a column of blocks along z, columns follow one another along x, so
        that workers read and write at different x: in a bucket under different prefixes. Otherwise
        z is the fastest axis.

        Parameters
        ----------
        grid : int
            Cells per axis of the box.
        unfinished : sequence of bool
            Whether each shard has yet to be written.
        """
        shards = grid_blocks(grid, self.layout.shard)
        groups: dict[Sides, list[int]] = {}
        for index, block in enumerate(shards):
            if unfinished[index] and intersect(block, self.region) is not None:
                groups.setdefault(self._place_of(index, grid), []).append(index)
        places = (
            sorted(groups, key=lambda at: (at[1], at[0], at[2])) if self.layout.columns else groups
        )
        return [tuple(groups[place]) for place in places]

    def column_of(self, grid: int, task: tuple[int, ...]) -> tuple[int, int]:
        """Return the column of blocks along z that a task is in."""
        x, y, _ = self._place_of(task[0], grid)
        return x, y

    def _place_of(self, shard: int, grid: int) -> Sides:
        """Return the place of the block that contains a shard."""
        per_axis = -(-grid // self.layout.shard)
        x, y, z = (
            int(number) * self.layout.shard // side
            for number, side in zip(
                np.unravel_index(shard, (per_axis,) * 3), self.layout.block, strict=True
            )
        )
        return x, y, z


def check_work(
    box: Box,
    names: Sequence[str],
    models: Sequence[VelocityModel],
    run: Run,
    *,
    device: Device | None = None,
) -> Work:
    """Check a request and return the work, with the box still uncut.

    Parameters
    ----------
    box : Box
        Box that the models are applied to.
    names : sequence of str
        Names of the models.
    models : sequence of VelocityModel
        The models, in the same order.
    run : Run
        Settings, and the engine that knows the workers.
    device : Device, optional
        Device of the workers; by default a worker is queried.

    Raises
    ------
    ConfigError
        The models cannot be combined, or an option does not suit them.
    DataError
        The models were made for another cell size, or the number of particles is not known.
    """
    config = run.settings.infer
    for name, model in zip(names, models, strict=True):
        check_fits(model, name, box, run.listener, strict=config.strict)
        _check_overlap(model, config)
    _check_together(names, models)
    target = models[0].spec.target
    if config.spread and len(models) * config.symmetries == 1:
        raise ConfigError(
            "one prediction has no spread",
            where="infer.spread",
            remedy="give --model again for more models, or --set infer.symmetries=8",
        )
    if config.fields and target != "velocity":
        raise ConfigError(
            "fields can be derived in the same pass only from a velocity",
            where="--field",
            value=", ".join(config.fields),
            limit=f"this model predicts {target}",
            remedy="cosmoflow derive makes them from the output",
        )
    slopes = differences(config.fields)
    # The lattice of a padded network's tiles differs beside a block.
    if slopes and any(model.geometry.fixed_output is not None for model in models):
        raise ConfigError(
            "derivatives in the same pass are for networks without padding",
            where="--field",
            value=", ".join(slopes),
            remedy="cosmoflow derive makes them from the output",
        )
    device = device or _ask_device(run)
    if config.precision == "auto":
        config = config.model_copy(update={"precision": device.precision})
    whole = Layout(box.grid, (box.grid, box.grid, box.grid), box.grid)
    region = _region_cells(box, config)
    interval = _interval_95(names, models) if config.errors else None
    return Work(
        tuple(names),
        target,
        config,
        whole,
        region,
        device_memory=device.memory,
        interval_95=interval,
        particles_per_cell=particles_per_cell(box) if COUNT in config.fields else None,
    )


def _interval_95(names: Sequence[str], models: Sequence[VelocityModel]) -> float:
    """Return the interval that holds 95 % of the errors; refuse models that do not know them."""
    found = []
    for name, model in zip(names, models, strict=True):
        if model.spec.errors is None:
            raise ConfigError(
                "the model does not know the size of its errors",
                where="infer.errors",
                value=name,
                remedy="leave it out, or "
                + (
                    f"train the model on: cosmoflow train BOXES --from {name} --out MODEL "
                    "--set train.error_steps=500"
                    if may_expect_errors(model.network)
                    else f"--model {DEFAULT_MODEL}, which knows them"
                ),
            )
        found.append(model.spec.errors.interval_95)
    return float(np.mean(found))


def _check_together(names: Sequence[str], models: Sequence[VelocityModel]) -> None:
    """Refuse models whose predictions cannot be averaged."""
    targets = sorted({model.spec.target for model in models})
    if len(targets) > 1:
        raise ConfigError(
            "the models predict different fields",
            where="--model",
            value=", ".join(names),
            limit=" or ".join(targets),
        )
    filters = {model.spec.filter.digest for model in models if model.spec.filter is not None}
    if len(filters) > 1:
        raise ConfigError(
            "the models have different Wiener filters, and a store keeps the velocity of one",
            where="--model",
            value=", ".join(names),
            remedy="train them on the same boxes, with different --set seed",
        )


def _check_overlap(model: VelocityModel, config: InferConfig) -> None:
    """Refuse to blend tiles that agree, or more than two tiles along an axis."""
    fixed = model.geometry.fixed_output
    if config.overlap and fixed is None:
        raise ConfigError(
            "the tiles of this network agree where they overlap: there is nothing to blend",
            where="infer.overlap",
            value=config.overlap,
            limit=0,
            remedy="leave it out; it is for padded networks such as paper",
        )
    if fixed is not None and config.overlap > fixed // 2:
        raise ConfigError(
            "tiles would overlap by more than half",
            where="infer.overlap",
            value=config.overlap,
            limit=f"{fixed // 2} of {fixed} cells",
        )


def _region_cells(box: Box, config: InferConfig) -> Block:
    """Return the cells whose centres are in the region."""
    grid, size = box.grid, box.metadata.box_size
    if config.region is None:
        return Block((0, 0, 0), (grid, grid, grid))
    origin, shape = [], []
    for axis, (low, high) in zip("xyz", config.region, strict=True):
        first, last = (math.ceil(edge / box.cell_size - 0.5) for edge in (low, high))
        if low < 0.0 or high > size or first >= last:
            empty = first >= last
            raise ConfigError(
                f"the region {'holds no cell' if empty else 'reaches out'} of the box",
                where=f"--region, {axis}",
                value=f"{low:g}:{high:g} Mpc/h",
                limit=f"within 0:{size:g} Mpc/h, cells of {box.cell_size:g} Mpc/h",
            )
        origin.append(first)
        shape.append(last - first)
    return Block((origin[0], origin[1], origin[2]), (shape[0], shape[1], shape[2]))


@dataclass(frozen=True, slots=True)
class Device:
    """Device that workers compute on.

    Parameters
    ----------
    precision : {"float32", "bfloat16"}
        The faster arithmetic.
    memory : int or None
        Free bytes on the GPU; None for a CPU.
    """

    precision: Literal["float32", "bfloat16"]
    memory: int | None

    @classmethod
    def here(cls) -> Device:
        """Return the device of this process."""
        device = best_device()
        memory = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
        return cls("bfloat16" if has_fast_bfloat16(device) else "float32", memory)


def _ask_device(run: Run) -> Device:
    """Return the device of the workers; on a cluster, query one worker for all."""
    if run.settings.engine.address is None:
        return Device.here()
    engine = run.session.engine(0.0)
    graph = TaskGraph()
    graph.add("device", lambda number: Device.here(), output=True)
    needs = Resources(gpus=engine.share(1, most=1, memory=0, accelerated=True).gpus)
    found: Device = engine.run(graph, needs=needs)["device", 0]
    return found


def is_velocity(name: str) -> bool:
    """Return whether a variable is in km/s, and so can be rounded."""
    return STORED[name].unit == VELOCITY


def wanted_block(shards: Sequence[Block], region: Block, halo: int) -> Block:
    """Return the cells that a task predicts: its shards within the region, plus a halo."""
    inside = intersect(bounding_block(shards), region)
    assert inside is not None
    return grow(inside, halo)
