"""Spectral derivatives and smoothing of boxes larger than memory: filters between two transforms.

    planes ─▶ filter ─▶ join ─▶ write

Every variable is transformed once, whatever is made of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.engine import TaskGraph
from cosmoflow.numerics import calculus, deformation, slabs
from cosmoflow.numerics.blocks import Block, grid_blocks
from cosmoflow.numerics.fourier import BLOCK_BYTES_CPU
from cosmoflow.numerics.slabs import Modes, Parts, RowWaves, block_bytes, cut_axis
from cosmoflow.stages.derive.plan import Work
from cosmoflow.stages.derive.recipes import derive_block, recipe_of
from cosmoflow.stages.run import Plan, Run, Tell, UntypedPlan
from cosmoflow.stages.slabs.plan import OVERHEAD, least_thickness, memory_allowed
from cosmoflow.stages.slabs.sources import Variable
from cosmoflow.stages.slabs.writing import add_writes, shard_bars
from cosmoflow.storage.fields import FieldStore, write_block
from cosmoflow.storage.variables import count_parts
from cosmoflow.units import SMOOTHED

_WANTED_PLANES = 16
_BLOCKS = 24
"""Blocks of modes that a task has in hand of each field."""
_ENCODING = 5.5
"""A shard as it is joined, and as it is encoded, in shards."""
_SECONDS_PER_NUMBER = 4e-8
_TRAVELLING = {"divergence": 1, "vorticity": 3, "velocity_shear": 6}


@dataclass(frozen=True, slots=True)
class Filtered:
    """A field whose modes are products of another's with functions of k.

    Parameters
    ----------
    name : str
        Of the field.
    source : str
        The variable that is transformed for it.
    radius : float
        Of the Gaussian, Mpc/h; 0 for none.
    """

    name: str
    source: str
    radius: float

    @classmethod
    def of(cls, name: str, radius: float | None) -> Filtered | None:
        """Return how a field is filtered; None if it is made cell by cell."""
        recipe = recipe_of(name)
        if not (recipe.slopes or recipe.smoothed):
            return None
        return cls(name, recipe.inputs[0], (radius or 0.0) if recipe.smoothed else 0.0)

    @property
    def base(self) -> str:
        """The name without the smoothing."""
        return self.name.removeprefix(SMOOTHED)

    @property
    def travelling(self) -> int:
        """How many products are transformed back."""
        return _TRAVELLING.get(self.base) or count_parts(self.source)

    def multiply(self, modes: Tensor, waves: RowWaves) -> Iterator[Tensor]:
        """Yield the products, given the modes ``(components, n, rows, n // 2 + 1)``."""
        if self.radius:
            modes = modes * torch.exp(waves.squared() * (-0.5 * self.radius**2))
        if self.base == "divergence":
            yield calculus.divergence_modes(modes, waves.box_size, waves.odd())
        elif self.base == "vorticity":
            yield from calculus.curl_modes(modes, waves.box_size, waves.odd())
        elif self.base == "velocity_shear":
            yield from deformation.strain_modes(modes, waves.odd())
        else:
            yield from modes

    def finish(self, fields: Tensor) -> Tensor:
        """Return the field ``(parts, ...)``, given the products in real space."""
        if self.base == "velocity_shear":
            return torch.from_numpy(deformation.symmetric_eigenvalues(fields.numpy()))
        return fields


@dataclass(frozen=True, slots=True)
class SlabWork:
    """What the tasks know.

    Parameters
    ----------
    work : Work
        What is derived, from what.
    box_size : float
        Mpc/h.
    grid : int
        Cells per axis.
    planes : tuple of slice
        The slabs, along x and along y.
    """

    work: Work
    box_size: float
    grid: int
    planes: tuple[slice, ...]

    @property
    def fields(self) -> list[Filtered]:
        """What is filtered."""
        found = (Filtered.of(name, self.work.config.smoothing) for name in self.work.names)
        return [one for one in found if one is not None]

    @property
    def sources(self) -> list[Variable]:
        """What is transformed."""
        names = sorted({one.source for one in self.fields})
        return [Variable(self.work.fields, name, count_parts(name)) for name in names]


@dataclass(frozen=True, slots=True)
class DerivedShards:
    """Writes shards of derived fields, and makes what takes no waves as it goes.

    Parameters
    ----------
    work : SlabWork
        What is derived.
    out, digest : str
        The store that is written, and the run that writes it.
    background : (float, float, float)
        Mean momentum over mean density, km/s.
    """

    work: SlabWork
    out: str
    digest: str
    background: tuple[float, float, float]

    def write(self, values: NDArray[np.float32], block: Block) -> None:
        """Write one shard, given the filtered fields one after the other."""
        own = self.work.work
        found: dict[str, NDArray[np.float32]] = {}
        first = 0
        for field in self.work.fields:
            count = count_parts(field.name)
            part = values[first : first + count]
            found[field.name] = part if count > 1 else part[0]
            first += count
        others = [name for name in own.names if name not in found]
        if others:
            store = FieldStore(own.fields)
            found |= derive_block(store, block, others, None, self.background)
        shard = grid_blocks(self.work.grid, own.shard).index(block)
        write_block(self.out, block, shard, found, digest=self.digest)


def plan_slabs(store: FieldStore, work: Work, run: Run) -> tuple[Plan, SlabWork]:
    """Choose the slabs, and say what deriving fields in them takes."""
    whole = SlabWork(work, store.metadata.box_size, store.grid, ())
    plane = block_bytes(store.grid)
    sources = sum(source.components for source in whole.sources)
    travelling = sum(field.travelling for field in whole.fields)
    parts = sum(count_parts(field.name) for field in whole.fields)
    # Planes are held as they are read and as their modes; products as they travel, and joined.
    most = max(2 * max(source.components for source in whole.sources), travelling, parts)
    blocks = _BLOCKS * max(plane, BLOCK_BYTES_CPU) * max(sources, travelling) // 3
    room = (memory_allowed(run) - OVERHEAD - blocks) // (2 * most * plane)
    fields = len(whole.sources) + 1
    least = least_thickness(
        min(work.shard, store.grid), lambda planes: fields * (-(-store.grid // planes)) ** 2
    )
    thickness = max(least, min(room, max(store.grid // 16, _WANTED_PLANES)))
    slab = tuple(cut_axis(store.grid, work.shard, min(thickness, work.shard)))
    thickest = max(one.stop - one.start for one in slab)
    bars = len(shard_bars(store.grid, work.shard)) ** 2
    writing = round(_ENCODING * 4 * work.parts * work.shard**3)
    exchanged = (sources + travelling + parts) * plane * store.grid
    cells = store.grid**3
    plan = UntypedPlan(
        stage="derive",
        tasks=(len(whole.sources) + 2) * len(slab) + bars,
        unit="tasks",
        worker_memory=OVERHEAD + max(writing, blocks + most * thickest * plane),
        read=4 * cells * sources,
        written=4 * cells * work.parts,
        cpu_seconds=_SECONDS_PER_NUMBER * exchanged / 4,
        exchanged=exchanged,
        entries={
            "fields": list(work.names),
            "method": work.config.method,
            "smoothing": work.config.smoothing,
            "grid": store.grid,
            "shard": work.shard,
            "shards": len(grid_blocks(store.grid, work.shard)),
            "slabs": len(slab),
        },
    )
    return plan, SlabWork(work, store.metadata.box_size, store.grid, slab)


def build_slabs(
    work: SlabWork, writer: DerivedShards, todo: Sequence[int], tell: Tell
) -> TaskGraph:
    """Transform every variable, filter, transform back, and write the shards that are to do."""
    graph = TaskGraph()
    count, sources = len(work.planes), work.sources
    bars = shard_bars(work.grid, work.work.shard)
    for number in range(len(sources)):
        for x in range(count):
            key = ("planes", number * count + x)
            graph.add(key, planes_task, work, number, x, tell, parts=count)
    for y in range(count):
        parts = (graph.part(("planes", index), y) for index in range(len(sources) * count))
        graph.add(("filter", y), filter_task, work, y, tell, *parts, parts=count)
    for x in range(count):
        rows = (graph.part(("filter", y), x) for y in range(count))
        graph.add(("join", x), join_task, work, x, tell, *rows, parts=len(bars))
    done = whole_bars(work, todo)
    add_writes(graph, "join", work.planes, work.grid, work.work.shard, writer, tell, skip=done)
    return graph


def whole_bars(work: SlabWork, todo: Sequence[int]) -> frozenset[int]:
    """Return the bars of shards along z, each written by one task, that hold nothing to do."""
    bars = len(shard_bars(work.grid, work.work.shard))
    return frozenset(range(bars**2)) - {shard // bars for shard in todo}


def planes_task(work: SlabWork, number: int, x: int, tell: Tell) -> list[Modes]:
    """Read planes of a variable and transform them; return the part of every y-slab."""
    source, slab = work.sources[number], work.planes[x]
    shape = (source.components, slab.stop - slab.start, work.grid)
    parts = slabs.forward_planes(source.blocks(slab), shape, work.planes)
    tell(("planes", number * len(work.planes) + x))
    return parts


def filter_task(work: SlabWork, y: int, tell: Tell, *parts: Modes) -> list[Modes]:
    """Make the products of some rows; return what gives them in x-slabs."""
    each, fields = len(work.planes), work.fields
    place = {source.name: index for index, source in enumerate(work.sources)}
    handed = [parts[first : first + each] for first in range(0, len(parts), each)]

    def multiply(modes: list[Tensor], waves: RowWaves) -> Iterator[Tensor]:
        for field in fields:
            yield from field.multiply(modes[place[field.source]], waves)

    count = sum(field.travelling for field in fields)
    waves = RowWaves(work.grid, work.box_size, work.planes[y])
    result = slabs.filter_rows(handed, waves, work.planes, count, multiply)
    tell(("filter", y))
    return result


def join_task(work: SlabWork, x: int, tell: Tell, *rows: Modes) -> list[NDArray[np.float32]]:
    """Return the fields of planes, in parts as wide as shards along y."""
    cells, fields = work.grid, work.fields
    shape = (sum(count_parts(field.name) for field in fields), rows[0].shape[1], cells, cells)
    parts = Parts(shape, -2, shard_bars(cells, work.work.shard), np.float32)
    for own, travelled in slabs.join_rows(rows):
        first = place = 0
        for field in fields:
            products = slabs.inverse_planes(travelled[first : first + field.travelling])
            first += field.travelling
            for component in field.finish(products):
                parts.put((place, own), component)
                place += 1
    tell(("join", x))
    return parts.arrays
