"""What `infer` is asked for, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cosmoflow.config.settings import InferConfig
from cosmoflow.engine import TaskGraph
from cosmoflow.errors import ConfigError
from cosmoflow.model.precision import best_device, has_fast_bfloat16
from cosmoflow.model.sources import Flow
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.painting import Block
from cosmoflow.numerics.tiles import grid_blocks, grow
from cosmoflow.stages.derived import recipe_of
from cosmoflow.stages.models import Box, check_fits
from cosmoflow.stages.run import Run
from cosmoflow.stages.tiling import Layout, bounding_block, intersect


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be predicted, checked.

    Parameters
    ----------
    models : tuple of str
        Their names or URLs.
    target : str
        What they predict.
    config : InferConfig
        The settings.
    layout : Layout
        How the box is cut.
    region : Block
        The cells that are wanted.
    flows : tuple of tuple of Flow
        Of each model; empty until they are made.
    """

    models: tuple[str, ...]
    target: str
    config: InferConfig
    layout: Layout
    region: Block
    flows: tuple[tuple[Flow, ...], ...] = ()

    @property
    def variables(self) -> tuple[str, ...]:
        """What a task writes."""
        spread = (f"{self.target}_std",) if self.config.spread else ()
        return (self.target, *spread, *self.config.fields)

    @property
    def halo(self) -> int:
        """Cells around a block that derivatives need predicted too."""
        return int(any(recipe_of(name).slopes for name in self.config.fields))

    def tasks(self, grid: int, unfinished: Sequence[bool]) -> list[tuple[int, ...]]:
        """Return the shards of each task: those of a block that are wanted and not finished."""
        shards = grid_blocks(grid, self.layout.shard)
        per_axis = -(-grid // self.layout.shard)
        span = self.layout.block // self.layout.shard
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, block in enumerate(shards):
            if unfinished[index] and intersect(block, self.region) is not None:
                place = (index // per_axis**2, index // per_axis % per_axis, index % per_axis)
                groups.setdefault(tuple(axis // span for axis in place), []).append(index)
        return [tuple(group) for group in groups.values()]


def check_work(box: Box, names: Sequence[str], models: Sequence[VelocityModel], run: Run) -> Work:
    """Return what is to be done, the box not yet cut.

    Raises
    ------
    ConfigError
        The models do not go together, or an option does not suit them.
    DataError
        They were made for other cells.
    """
    config = run.settings.infer
    for name, model in zip(names, models, strict=True):
        check_fits(model, name, box, run.listener)
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
            "only from a velocity can fields be derived in the same pass",
            where="--field", value=", ".join(config.fields), limit=f"this model predicts {target}",
            remedy="cosmoflow derive makes them from the output",
        )  # fmt: skip
    config = config.model_copy(update={"precision": _settle_precision(run)})
    whole = Layout(box.grid, box.grid, box.grid)
    return Work(tuple(names), target, config, whole, _region_cells(box, config))


def _check_together(names: Sequence[str], models: Sequence[VelocityModel]) -> None:
    """Refuse models whose predictions cannot be averaged."""
    targets = sorted({model.spec.target for model in models})
    if len(targets) > 1:
        raise ConfigError(
            "the models predict different fields",
            where="--model", value=", ".join(names), limit=" or ".join(targets),
        )  # fmt: skip
    filters = {model.spec.filter.digest for model in models if model.spec.filter is not None}
    if len(filters) > 1:
        raise ConfigError(
            "the models have different Wiener filters, and a store keeps the velocity of one",
            where="--model", value=", ".join(names),
            remedy="train them on the same boxes, with different --set seed",
        )  # fmt: skip


def _check_overlap(model: VelocityModel, config: InferConfig) -> None:
    """Refuse to blend what does not differ, or more than two tiles along an axis."""
    fixed = model.geometry.fixed_output
    if config.overlap and fixed is None:
        raise ConfigError(
            "the tiles of this network agree where they overlap: there is nothing to blend",
            where="infer.overlap", value=config.overlap, limit=0,
            remedy="leave it out; it is for padded networks such as paper",
        )  # fmt: skip
    if fixed is not None and config.overlap > fixed // 2:
        raise ConfigError(
            "tiles would overlap by more than half",
            where="infer.overlap", value=config.overlap, limit=f"{fixed // 2} of {fixed} cells",
        )  # fmt: skip


def _region_cells(box: Box, config: InferConfig) -> Block:
    """Return the cells whose centres lie in the region."""
    grid, size = box.grid, box.metadata.box_size
    if config.region is None:
        return Block((0, 0, 0), (grid, grid, grid))
    origin, shape = [], []
    for axis, (low, high) in zip("xyz", config.region, strict=True):
        first, last = (math.ceil(edge / box.cell_size - 0.5) for edge in (low, high))
        if low < 0.0 or high > size or first >= last:
            raise ConfigError(
                "the region holds no cell of the box" if first >= last else
                "the region reaches out of the box",
                where=f"--region, {axis}", value=f"{low:g}:{high:g} Mpc/h",
                limit=f"within 0:{size:g} Mpc/h, cells of {box.cell_size:g} Mpc/h",
            )  # fmt: skip
        origin.append(first)
        shape.append(last - first)
    return Block((origin[0], origin[1], origin[2]), (shape[0], shape[1], shape[2]))


def resolve_precision(precision: str) -> str:
    """Return the arithmetic that "auto" means on this machine."""
    if precision != "auto":
        return precision
    return "bfloat16" if has_fast_bfloat16(best_device()) else "float32"


def _settle_precision(run: Run) -> str:
    """Return the arithmetic of all workers, whichever nodes they are on; ask one of a cluster."""
    precision = run.settings.infer.precision
    if precision != "auto" or run.settings.engine.address is None:
        return resolve_precision(precision)
    engine = run.session.engine(0.0)
    graph = TaskGraph()
    graph.add(("precision", 0), resolve_precision, precision, output=True)
    found = engine.run(graph, needs=engine.share(1, most=1, memory=0))
    return str(found["precision", 0])


def wanted_block(shards: Sequence[Block], region: Block, halo: int) -> Block:
    """Return the cells that a task predicts: of its shards those in the region, and around them."""
    inside = intersect(bounding_block(shards), region)
    assert inside is not None
    return grow(inside, halo)
