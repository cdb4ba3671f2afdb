"""How boxes are cut into slabs, whatever is made in them, and what all such transforms need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cosmoflow.numerics.threads import MOST_THREADS
from cosmoflow.stages.run import Run
from cosmoflow.storage.fields import FieldStore

LEAST_PLANES = 8
"""Planes below which a slab is never cut for lack of memory: plans that need more are refused."""
MOST_PARTS = 200_000
"""Parts that tasks may hand on in all, where shards allow it: the driver keeps track of each.

They grow as the square of the number of slabs.
"""

OVERHEAD = 160 << 20
"""Bytes of a worker that grow with nothing: buffers of the store, of threads, of malloc."""


class Sharded(Protocol):
    """A cubic grid that is kept in shards; a fields store is one."""

    @property
    def grid(self) -> int:
        """Cells per axis."""

    @property
    def shard(self) -> int:
        """Cells per axis of a shard."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A box and how it is stored.

    Parameters
    ----------
    cells : int
        Cells per axis.
    box_size : float
        Mpc/h.
    shard, chunk : int
        Cells per axis that one write covers, and that one read needs.
    """

    cells: int
    box_size: float
    shard: int
    chunk: int

    @classmethod
    def of(cls, store: FieldStore) -> Grid:
        """Return the grid of a store."""
        shard = min(store.shard, store.grid)
        return cls(store.grid, store.metadata.box_size, shard, min(store.chunk, shard))

    @property
    def cell_size(self) -> float:
        """Side of a cell, Mpc/h."""
        return self.box_size / self.cells


def memory_allowed(run: Run) -> int:
    """Return the bytes of a worker with which all cores can be at work, or what settings allow."""
    engine = run.session.engine(0.0)
    allowed = run.settings.engine.memory
    return engine.memory_per_core if allowed is None else min(int(allowed), engine.memory)


def least_thickness(thickest: int, count_parts: Callable[[int], int]) -> int:
    """Return the fewest planes of a slab that keep parts few enough.

    Parameters
    ----------
    thickest : int
        Planes of the thickest slab there can be.
    count_parts : callable
        From the planes of a slab to the parts that tasks hand on in all.

    Returns
    -------
    int
        From :data:`LEAST_PLANES` on.
    """
    for thickness in range(LEAST_PLANES, thickest):
        if count_parts(thickness) <= MOST_PARTS:
            return thickness
    return thickest


def planned_threads(run: Run) -> int:
    """Return the threads of a worker: one on Ray, whose tasks have a core each."""
    engine = run.settings.engine
    if engine.choice == "ray" or engine.address is not None:
        return 1
    return min(run.session.engine(0.0).cpus, MOST_THREADS)
