"""Global velocities of boxes larger than memory: transforms in slabs that tasks hand to each other.

    planes ─▶ (tide ─▶ squares ─▶) flow ─▶ velocity ─▶ write

Tasks of x-slabs (planes, squares, velocity) and of y-slabs (tide, flow) alternate; each hands every
task of the next kind its part. Last, the tasks that write join what x-slabs have of whole shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.engine import Key, TaskGraph
from cosmoflow.numerics import slabs
from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.slabs import Modes, Parts, RowWaves
from cosmoflow.numerics.wiener import FIELDS, SQUARE_RADIUS, add_squares
from cosmoflow.stages.flows.checks import is_finite, is_physical, refuse_density, refuse_flow
from cosmoflow.stages.flows.plan import Cut, plan_slabs
from cosmoflow.stages.run import Run, Tell, run_graph, start_engine
from cosmoflow.stages.slabs.writing import add_writes, shard_bars
from cosmoflow.storage.claims import Claim
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.flows import FlowArray


class FlowSource(Protocol):
    """Source s of a velocity ``v(k) = i f a H s(k) k/k^2``: that of a Wiener filter, say."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Which of :data:`cosmoflow.numerics.wiener.FIELDS` it is made of."""

    def combine(self, modes: Iterable[Tensor], squared: Tensor) -> Tensor:
        """Return the modes of s, given those of the fields and their ``k^2``."""


@dataclass(frozen=True, slots=True)
class LinearTheory:
    """The contrast, smoothed by a Gaussian.

    Parameters
    ----------
    radius : float
        Of the Gaussian, Mpc/h.
    """

    radius: float
    fields: ClassVar[tuple[str, ...]] = ("contrast",)

    def combine(self, modes: Iterable[Tensor], squared: Tensor) -> Tensor:
        """Return the smoothed modes."""
        (contrast,) = modes
        return contrast * _window(squared, self.radius)


def _window(squared: Tensor, radius: float) -> Tensor:
    return torch.exp(squared * (-0.5 * radius**2))


@dataclass(frozen=True, slots=True)
class Work:
    """What the tasks know.

    Parameters
    ----------
    url : str
        Of the fields store.
    box_size : float
        Mpc/h.
    rate : float
        ``f a H``, km/s per Mpc/h.
    source : FlowSource
        Of the velocity.
    cut : Cut
        The slabs, and the fields that are made in them.
    model : str or None
        Name or URL of the model that the source is of, for errors.
    """

    url: str
    box_size: float
    rate: float
    source: FlowSource
    cut: Cut
    model: str | None = None

    def waves(self, index: int) -> RowWaves:
        """Return the wavenumbers of a y-slab."""
        return RowWaves(self.cut.grid, self.box_size, self.cut.slabs[index])


def add_flow(
    store: FieldStore,
    source: FlowSource,
    rate: float,
    adding: AbstractContextManager[FlowArray],
    run: Run,
    *,
    thickness: int | None = None,
    claim: Claim | None = None,
    check: Callable[[], None] = lambda: None,
    model: str | None = None,
) -> None:
    """Make a global velocity slab by slab and write it to the store.

    Parameters
    ----------
    store : FieldStore
        With ``density``.
    source : FlowSource
        Of the velocity.
    rate : float
        ``f a H``, km/s per Mpc/h.
    adding : context manager
        Begins the velocity in the store, and notes it when all of it is written.
    run : Run
        Settings, engine, progress.
    thickness : int, optional
        Most planes of a slab; none means what the memory of a worker allows.
    claim : Claim, optional
        On the store: the run makes sure that it is still held whenever shards are written.
    check : callable
        Called when all is written and before it is noted; may raise.
    model : str, optional
        Name or URL of the model that the source is of, for errors.

    Raises
    ------
    SupersededError
        The claim is lost.
    DataError
        The density is damaged, or the velocity is not finite.
    ConfigError
        A worker would need more memory than it may have.
    """
    store.require("density")
    plan, cut = plan_slabs(store, source.fields, run, thickness)
    engine = start_engine(run, plan, remedy="more memory for a worker")
    work = Work(store.url, store.metadata.box_size, rate, source, cut, model)

    def note(key: Key, result: None) -> None:
        # Not when a task tells: that comes in a thread where an error would stop nothing.
        if claim is not None:
            claim.check()

    with adding as array:
        run_graph(lambda tell: build_graph(work, array, tell), engine, plan, run, note)
        check()


def build_graph(work: Work, array: FlowArray, tell: Tell) -> TaskGraph:
    """Make the fields of the source, sum them to the source of the flow, and write the flow."""
    graph, cut = TaskGraph(), work.cut
    indices = range(len(cut.slabs))
    # Of every field, what each y-slab is handed by all x-slabs.
    handed: dict[str, list[list[Any]]] = {}

    def hand(name: str, fields: Sequence[str]) -> None:
        for number, field in enumerate(fields):
            first = number * len(indices)
            handed[field] = [[graph.part((name, x), first + y) for x in indices] for y in indices]

    for x in indices:
        parts = len(cut.pointwise) * len(indices)
        graph.add(("planes", x), planes_task, work, x, tell, parts=parts)
    hand("planes", cut.pointwise)
    if cut.squares:
        for y in indices:
            contrast = handed["contrast"][y]
            graph.add(("tide", y), tide_task, work, y, tell, *contrast, parts=len(indices))
        for x in indices:
            tides = (graph.part(("tide", y), x) for y in indices)
            parts = len(cut.squares) * len(indices)
            graph.add(("squares", x), squares_task, work, x, tell, *tides, parts=parts)
        hand("squares", cut.squares)
    for y in indices:
        fields = (part for name in work.source.fields for part in handed[name][y])
        graph.add(("flow", y), flow_task, work, y, tell, *fields, parts=len(indices))
    bars = shard_bars(cut.grid, cut.shard)
    for x in indices:
        flows = (graph.part(("flow", y), x) for y in indices)
        graph.add(("velocity", x), velocity_task, work, x, tell, *flows, parts=len(bars))
    add_writes(graph, "velocity", cut.slabs, cut.grid, cut.shard, array, tell)
    return graph


def planes_task(work: Work, x: int, tell: Tell) -> list[Modes]:
    """Read planes of the density; return the parts of the fields that each cell gives."""
    cut = work.cut
    slab = cut.slabs[x]
    planes = slab.stop - slab.start
    block = Block((slab.start, 0, 0), (planes, cut.grid, cut.grid))
    density = torch.from_numpy(FieldStore(work.url).read_block("density", block))
    parts: list[Modes] = []
    for name in cut.pointwise:
        fields = (
            (own, FIELDS[name](density[own], work.box_size))
            for own in slabs.plane_blocks(planes, cut.grid)
        )
        parts += slabs.forward_planes(fields, (planes, cut.grid), cut.slabs)
    tell(("planes", x))
    return parts


def tide_task(work: Work, y: int, tell: Tell, *contrast: Modes) -> list[Modes]:
    """Smooth the rows of the contrast; return what gives their squares in x-slabs."""
    cut = work.cut

    def multiply(modes: list[Tensor], waves: RowWaves) -> Iterator[Tensor]:
        smoothed = modes[0] * _window(waves.squared(), SQUARE_RADIUS)
        if "squared_contrast" in cut.squares:
            yield smoothed
        if "squared_tide" in cut.squares:
            yield from slabs.tide_rows(smoothed, waves)

    parts = slabs.filter_rows([contrast], work.waves(y), cut.slabs, cut.travelling, multiply)
    tell(("tide", y))
    return parts


def squares_task(work: Work, x: int, tell: Tell, *tides: Modes) -> list[Modes]:
    """Return the parts of the squares of the smoothed contrast and of its tide."""
    cut = work.cut
    shape = (tides[0].shape[1], cut.grid)
    make = {"squared_contrast": _squared_contrast, "squared_tide": _squared_tide}
    parts: list[Modes] = []
    for name in cut.squares:
        fields = ((own, make[name](one, work.box_size)) for own, one in slabs.join_rows(tides))
        parts += slabs.forward_planes(fields, shape, cut.slabs)
    tell(("squares", x))
    return parts


def _squared_contrast(travelled: Tensor, box_size: float) -> Tensor:
    return slabs.inverse_planes(travelled[0]).square_()


def _squared_tide(travelled: Tensor, box_size: float) -> Tensor:
    _, planes, cells, _ = travelled.shape
    total = torch.zeros((planes, cells, cells))
    return add_squares(total, slabs.tide_planes(travelled[-3:], box_size))


def flow_task(work: Work, y: int, tell: Tell, *parts: Modes) -> list[Modes]:
    """Sum the rows of the fields to the source of the flow; return what gives it in x-slabs."""
    each = len(work.cut.slabs)
    fields = [parts[first : first + each] for first in range(0, len(parts), each)]

    def multiply(modes: list[Tensor], waves: RowWaves) -> Iterator[Tensor]:
        source = work.source.combine(modes, waves.squared()).mul_(work.rate)
        # No task writes before all of these are done: what is refused here leaves no shard.
        if not is_finite(source):
            for name, found in zip(work.source.fields, modes, strict=True):
                if not is_finite(found):
                    raise refuse_density(name, work.url)
            raise refuse_flow(work.source, work.rate, work.url, work.model)
        return slabs.gradient_rows(source, waves)

    flows = slabs.filter_rows(fields, work.waves(y), work.cut.slabs, 2, multiply)
    tell(("flow", y))
    return flows


def velocity_task(work: Work, x: int, tell: Tell, *flows: Modes) -> list[NDArray[np.float32]]:
    """Return the velocity of planes, in parts as wide as shards along y."""
    cells = work.cut.grid
    shape = (3, flows[0].shape[1], cells, cells)
    parts = Parts(shape, -2, shard_bars(cells, work.cut.shard), np.float32)
    for own, travelled in slabs.join_rows(flows):
        for axis, component in slabs.gradient_planes(travelled, work.box_size):
            if not is_physical(component):
                raise refuse_flow(work.source, work.rate, work.url, work.model)
            parts.put((axis, own), component)
    tell(("velocity", x))
    return parts.arrays
