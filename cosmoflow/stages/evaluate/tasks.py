"""What the tasks of `evaluate` do, and how their sums come together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from cosmoflow.engine import Engine
from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.comparison.blocks import BlockSum, sum_block
from cosmoflow.numerics.comparison.coarse import CoarseSum
from cosmoflow.numerics.comparison.power import sum_subbox
from cosmoflow.numerics.comparison.readers import Array
from cosmoflow.numerics.comparison.slices import Patch, patch_planes, sum_plane
from cosmoflow.numerics.exact_sums import ExactSum
from cosmoflow.numerics.spectra import PowerSum
from cosmoflow.stages.inputs.readers import Method, StoreReader, Vector
from cosmoflow.storage.fields import FieldStore

R = TypeVar("R")

Found = BlockSum | CoarseSum | dict[str, PowerSum] | dict[str, Array]
"""What a task returns."""


@dataclass(frozen=True, slots=True)
class BlockTask:
    """Sum over the cells of a block."""

    block: Block


@dataclass(frozen=True, slots=True)
class SubboxTask:
    """Measure the spectra of a sub-box."""

    block: Block


@dataclass(frozen=True, slots=True)
class PlaneTask:
    """Sum over the layers of a part of the slice."""

    block: Block


@dataclass(frozen=True, slots=True)
class PatchTask:
    """Read one method's fields in the patch."""

    name: str
    patch: Patch


Task = BlockTask | SubboxTask | PlaneTask | PatchTask


@dataclass(frozen=True)
class Worker:
    """Handles the tasks of one process.

    Parameters
    ----------
    readers : dict of StoreReader
        The truth's, then those of the methods.
    rate : float
        ``f a H``, km/s per Mpc/h.
    """

    readers: dict[str, StoreReader]
    rate: float

    def __call__(self, task: tuple[int, Task]) -> Found:
        """Return what a numbered task adds."""
        match task[1]:
            case BlockTask(block):
                return sum_block(self.readers, block, self.rate)
            case SubboxTask(block):
                return sum_subbox(self.readers, block)
            case PlaneTask(block):
                return sum_plane(self.readers, block)
            case PatchTask(name, patch):
                return patch_planes(self.readers[name], patch)


class InOrder(Generic[R]):
    """Passes results on in the order of their numbers, whatever order they come in.

    Sums of float64 depend on the order of their terms: in this one a run on many workers ends with
    the very numbers of a run on one. A result that comes before its turn waits.

    Parameters
    ----------
    take : callable
        Called with the number and the result.
    """

    def __init__(self, take: Callable[[int, R], None]) -> None:
        self._take = take
        self._waiting: dict[int, R] = {}
        self._next = 0

    def __call__(self, number: int, result: R) -> None:
        """Take a result, and pass on those whose turn it is."""
        self._waiting[number] = result
        while self._next in self._waiting:
            self._take(self._next, self._waiting.pop(self._next))
            self._next += 1


def run_tasks(
    engine: Engine,
    make_worker: Callable[[], Worker],
    tasks: Sequence[Task],
    take: Callable[[Task, Any], None],
    advance: Callable[[], None],
    memory: int,
) -> None:
    """Send tasks to the engine and take their results in the tasks' order.

    Parameters
    ----------
    engine : Engine
        Where they run.
    make_worker : callable
        Returns what handles them, in every process that does.
    tasks : sequence of Task
        In their order.
    take : callable
        Called with every task and its result.
    advance : callable
        Called whenever a task is done.
    memory : int
        Bytes of a worker.
    """
    order = InOrder[Found](lambda number, found: take(tasks[number], found))

    def done(task: tuple[int, Task], found: Found) -> None:
        order(task[0], found)
        advance()

    engine.map(make_worker, list(enumerate(tasks)), done, name="evaluate", memory=memory)


def sum_momentum(url: str, block: Block) -> tuple[ExactSum, ...]:
    """Add up the components of the momentum over a block, exactly."""
    store = FieldStore(url)
    return tuple(
        ExactSum.of(store.read_block("momentum", block, lead=(axis,))) for axis in range(3)
    )


def mean_momentum(engine: Engine, method: Method, blocks: Sequence[Block], memory: int) -> Vector:
    """Return the mean momentum of a box, km/s: its mean flow, the mean density being 1."""
    total = [ExactSum()] * 3

    def add(block: Block, found: tuple[ExactSum, ...]) -> None:
        for axis, one in enumerate(found):
            total[axis] += one

    engine.map(partial(_momentum_worker, method.url), blocks, add, name="momentum", memory=memory)
    cells = sum(x * y * z for x, y, z in (block.shape for block in blocks))
    x, y, z = (float(one) / cells for one in total)
    return x, y, z


def _momentum_worker(url: str) -> Callable[[Block], tuple[ExactSum, ...]]:
    return partial(sum_momentum, url)
