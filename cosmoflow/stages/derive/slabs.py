"""Spectral derivatives and smoothing of boxes larger than memory: filters between two transforms.

Every variable is transformed only once, even if several fields need it
(:mod:`cosmoflow.stages.slabs.transform`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.engine import TaskGraph
from cosmoflow.numerics.blocks import Block, axis_blocks, grid_blocks
from cosmoflow.numerics.field_table import FIELDS
from cosmoflow.numerics.quantities import QUANTITIES, Quantity
from cosmoflow.numerics.waves import WaveBlock
from cosmoflow.stages.costs import DERIVE_NUMBER
from cosmoflow.stages.derive.plan import DerivePlan, Work, count_background
from cosmoflow.stages.derive.recipes import derive_block, recipe_of
from cosmoflow.stages.inputs.readers import READING
from cosmoflow.stages.requests import ONCE, OPENING, count_bars, count_workers, stored_shards
from cosmoflow.stages.run import Run
from cosmoflow.stages.slabs.plan import Cut, Grid, Holding, exchanged_bytes, plan_cut
from cosmoflow.stages.slabs.sources import Variable
from cosmoflow.stages.slabs.transform import SlabGraph
from cosmoflow.storage.field_writing import write_block
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.reopening import reopen_fields
from cosmoflow.storage.requests import Requests, count_reads, count_writes
from cosmoflow.storage.variables import count_parts


@dataclass(frozen=True, slots=True)
class Filtered:
    """A field whose modes are those of a variable times functions of k.

    Parameters
    ----------
    name : str
        Name of the field.
    source : str
        Variable to transform.
    radius : float
        Radius of the Gaussian, Mpc/h; 0 for none.
    """

    name: str
    source: str
    radius: float

    @classmethod
    def of(cls, name: str, radius: float | None) -> Filtered | None:
        """Return the filter of a field; None if the field is made cell by cell."""
        recipe = recipe_of(name)
        if not (recipe.slopes or recipe.smoothed):
            return None
        return cls(name, recipe.inputs[0], (radius or 0.0) if recipe.smoothed else 0.0)

    @property
    def rule(self) -> Quantity | None:
        """Rule of a derivative; None if the field is the smoothed source."""
        row = FIELDS[self.name]
        return QUANTITIES[row.base or row.name] if row.slopes else None

    @property
    def travelling(self) -> int:
        """Number of products that are transformed back."""
        return count_parts(self.source) if self.rule is None else self.rule.products

    def multiply(self, modes: Tensor, waves: WaveBlock) -> Iterable[Tensor]:
        """Return the products, given the modes ``(components, p, n, n)``."""
        if self.radius:
            modes = modes * torch.exp(waves.squared() * (-0.5 * self.radius**2))
        return modes if self.rule is None else self.rule.multiply(modes, waves.odd())

    def finish(self, fields: Tensor) -> Tensor:
        """Return the field ``(parts, ...)``, given the products in real space."""
        return fields if self.rule is None else self.rule.finish(fields)


@dataclass(frozen=True, slots=True)
class Filters:
    """The filtered fields of a derivation, in order.

    Parameters
    ----------
    fields : tuple of Filtered
        The fields.
    """

    fields: tuple[Filtered, ...]

    @classmethod
    def of(cls, work: Work) -> Filters:
        """Return the fields that are not made cell by cell."""
        found = (Filtered.of(name, work.config.smoothing) for name in work.names)
        return cls(tuple(one for one in found if one is not None))

    @property
    def sources(self) -> list[str]:
        """The variables that are transformed."""
        return sorted({one.source for one in self.fields})

    @property
    def travelling(self) -> int:
        """Number of products that are transformed back."""
        return sum(field.travelling for field in self.fields)

    @property
    def parts(self) -> int:
        """Numbers per cell of all fields."""
        return sum(count_parts(field.name) for field in self.fields)

    def multiply(self, modes: list[Tensor], waves: WaveBlock) -> Iterator[Tensor]:
        """Yield the products of the modes of all sources."""
        for field in self.fields:
            yield from field.multiply(modes[self.sources.index(field.source)], waves)

    def finish(self, products: Tensor) -> Iterator[Tensor]:
        """Yield the components of all fields."""
        first = 0
        for field in self.fields:
            yield from field.finish(products[first : first + field.travelling])
            first += field.travelling


@dataclass(frozen=True)
class SlabPlan(DerivePlan):
    """The plan of a derivation in slabs.

    Parameters
    ----------
    bars, slabs : int
        Number of bars and of slabs.
    work : Work
        The request.
    cut : Cut
        The bars and slabs.
    """

    bars: int
    slabs: int
    work: Work = dataclasses.field(repr=False)
    cut: Cut = dataclasses.field(repr=False)


@dataclass(frozen=True, slots=True)
class DerivedShards:
    """Writer of shards of derived fields; it also derives the fields that are not filtered.

    Parameters
    ----------
    work : Work
        The request.
    out, digest : str
        URL of the output store, and digest of the run.
    background : (float, float, float)
        Mean momentum over mean density, km/s.
    """

    work: Work
    out: str
    digest: str
    background: tuple[float, float, float]

    def write(self, values: NDArray[np.float32], block: Block) -> None:
        """Write one shard, given the components of the filtered fields in order."""
        work = self.work
        store = reopen_fields(work.fields, *(name for name, _ in work.inputs))
        found: dict[str, NDArray[np.float32]] = {}
        first = 0
        for field in Filters.of(work).fields:
            count = count_parts(field.name)
            part = values[first : first + count]
            found[field.name] = part if count > 1 else part[0]
            first += count
        if others := [name for name in work.names if name not in found]:
            found |= derive_block(
                store, block, others, None, self.background, work.particles_per_cell
            )
        shard = grid_blocks(store.grid, work.shard).index(block)
        write_block(self.out, block, shard, found, digest=self.digest)


def plan_slabs(store: FieldStore, work: Work, run: Run) -> SlabPlan | None:
    """Cut the box and estimate the cost of the work; return None if nothing is filtered."""
    filters, grid = Filters.of(work), Grid.of(store, work.shard)
    if not filters.fields:
        return None
    components = [count_parts(name) for name in filters.sources]
    numbers = sum(components)
    holding = Holding(
        bar=max(READING * max(components) + max(components), filters.travelling + filters.parts),
        lines=2 * filters.travelling + filters.parts,
        slab=numbers + filters.travelling,
        planes=2 * numbers + 2,
        written=work.parts,
    )
    cut, memory, threads = plan_cut(grid, run, holding)
    exchanged = exchanged_bytes(grid, numbers + filters.travelling, filters.parts, cut)
    return SlabPlan(
        stage="derive",
        tasks=len(components) * len(cut.bars) + len(cut.slabs) + cut.writing_tasks,
        unit="tasks",
        worker_memory=memory,
        threads=threads,
        read=4 * grid.cells**3 * numbers,
        written=4 * grid.cells**3 * work.parts,
        cpu_seconds=DERIVE_NUMBER * exchanged / 4,
        exchanged=exchanged,
        requests=_count_requests(store, work, filters, cut, count_workers(run)),
        fields=list(work.names),
        method=work.config.method,
        smoothing=work.config.smoothing,
        grid=grid.cells,
        shard=work.shard,
        shards=len(grid_blocks(grid.cells, work.shard)),
        bars=len(cut.bars),
        slabs=len(cut.slabs),
        work=work,
        cut=cut,
    )


def _count_requests(
    store: FieldStore, work: Work, filters: Filters, cut: Cut, workers: int
) -> Requests:
    """Return the requests: bars of what is transformed, shards of the other inputs, the output."""
    stored, shards = stored_shards(store), cut.layers**3
    reads = count_background(store, work.shard, workers) if work.needs_background else 0
    for name in filters.sources:
        reads += count_bars(stored, [(count_parts(name), 0)], cut.x, cut.y, workers)
        reads += OPENING * len(cut.bars)
    blocks = [axis_blocks(store.grid, work.shard)] * 3
    for name in {name for name, _ in work.inputs} - {*filters.sources}:
        reads += count_reads(stored, blocks, count_parts(name), workers=workers)
        reads += OPENING * shards
    return Requests(get=reads) + count_writes(len(work.names)) * shards + ONCE["derive"]


def build_slabs(plan: SlabPlan, writer: DerivedShards, todo: Sequence[int]) -> TaskGraph:
    """Build the graph: transform every variable, filter, transform back, write ``todo``."""
    build, filters = SlabGraph(plan.cut), Filters.of(plan.work)
    variables = [Variable(plan.work.fields, name, count_parts(name)) for name in filters.sources]
    fields = [handed for variable in variables for handed in build.bars(variable.fields)]
    products = build.products(filters.multiply, filters.travelling, fields, "filter")
    build.write(filters.finish, filters.parts, products, "join", writer, todo=todo)
    return build.graph
