"""Global velocities of boxes larger than memory.

    density ─▶ fields ─▶ (tide ─▶ squares ─▶) flow ─▶ velocity ─▶ write

The fields of the source are transformed in bars and slabs
(:mod:`cosmoflow.stages.slabs.transform`). Squares need another round: the smoothed contrast and its
tide are transformed back to real space, squared, and transformed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cosmoflow.engine import Key, TaskGraph
from cosmoflow.numerics import slabs
from cosmoflow.numerics.slabs import Bar, Modes
from cosmoflow.numerics.waves import WaveBlock
from cosmoflow.numerics.wiener import (
    POINTWISE,
    SQUARE_RADIUS,
    FlowSource,
    add_squares,
    gaussian_window,
)
from cosmoflow.stages.flows.checks import is_finite, is_physical, refuse_density, refuse_flow
from cosmoflow.stages.flows.plan import FlowPlan, plan_flow
from cosmoflow.stages.run import Run, run_graph, start_engine
from cosmoflow.stages.slabs.plan import Grid
from cosmoflow.stages.slabs.transform import Fields, SlabGraph
from cosmoflow.storage.claims import Claim
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.flows import FlowArray
from cosmoflow.storage.reopening import reopen_fields


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
    """Make a global velocity in bars and slabs and write it to the store.

    Parameters
    ----------
    store : FieldStore
        Fields store that has ``density``.
    source : FlowSource
        Source of the velocity.
    rate : float
        ``f a H``, km/s per Mpc/h.
    adding : context manager
        Begins the velocity in the store, and marks it complete when all is written.
    run : Run
        Settings, engine, progress.
    thickness : int, optional
        Most planes of a slab and cells of a bar; by default chosen from the memory of a worker.
    claim : Claim, optional
        Claim on the store; the run checks that it still holds it whenever shards are written.
    check : callable
        Called after all is written, before the velocity is marked complete; may raise.
    model : str, optional
        Name or URL of the model that the source belongs to, for errors.

    Raises
    ------
    SupersededError
        The claim is lost.
    DataError
        The density is damaged, or the velocity is not finite.
    ConfigError
        A worker would need more memory than it is allowed.
    """
    store.require("density")
    plan = plan_flow(Grid.of(store), source.fields, run, thickness)
    engine = start_engine(run, plan, remedy="more memory for a worker")
    flow = Flow(store.url, store.metadata.box_size, rate, source, model)

    def note(key: Key, result: None) -> None:
        # Not in `notify`, which runs in a thread where an error would not stop the run.
        if claim is not None:
            claim.check()

    with adding as array:
        run_graph(build_graph(flow, plan, array), engine, plan, run, note)
        check()


def build_graph(flow: Flow, plan: FlowPlan, array: FlowArray) -> TaskGraph:
    """Build the graph that makes the fields, sums them to the source, and writes the flow."""
    build, fields = SlabGraph(plan.cut), plan.fields
    handed = build.bars(partial(flow.pointwise, fields.pointwise), len(fields.pointwise))
    found = dict(zip(fields.pointwise, handed, strict=True))
    if fields.squares:
        squares = Squares(fields.squares, plan.grid)
        tides = build.products(squares.multiply, fields.travelling, [found["contrast"]], "tide")
        handed = build.bars(squares.fields, len(fields.squares), "squares", products=tides)
        found |= zip(fields.squares, handed, strict=True)
    sources = [found[name] for name in flow.source.fields]
    flows = build.products(flow.multiply, 3, sources, "flow")
    build.write(flow.velocity, 3, flows, "velocity", array)
    return build.graph


@dataclass(frozen=True, slots=True)
class Squares:
    """The squares of the smoothed contrast and of its tide.

    Parameters
    ----------
    names : tuple of str
        ``squared_contrast``, ``squared_tide``, or both.
    cells : int
        Cells per axis of the grid.
    """

    names: tuple[str, ...]
    cells: int

    def multiply(self, modes: list[Tensor], waves: WaveBlock) -> Iterator[Tensor]:
        """Smooth the modes of the contrast; yield the products that give the squares."""
        smoothed = modes[0] * gaussian_window(waves.squared(), SQUARE_RADIUS)
        if "squared_contrast" in self.names:
            yield smoothed
        if "squared_tide" in self.names:
            yield from slabs.tides(smoothed, waves)

    def fields(self, bar: Bar, *products: Modes) -> Fields:
        """Yield each square and its lines."""
        tides = len(slabs.TIDES)
        shares = {"squared_contrast": slice(0, 1), "squared_tide": slice(-tides, None)}
        rules = {"squared_contrast": _square, "squared_tide": _square_tides}
        for name in self.names:
            own = [part[:, shares[name]] for part in products]
            yield (
                (),
                (
                    (x, partial(_apply, rules[name], make))
                    for x, make in slabs.joined_lines(own, self.cells)
                ),
            )


def _apply(rule: Callable[[Tensor], Tensor], make: Callable[[], Tensor]) -> Tensor:
    return rule(make())


def _square(contrast: Tensor) -> Tensor:
    return contrast[0].square_()


def _square_tides(components: Tensor) -> Tensor:
    total = torch.zeros(components.shape[1:])
    return add_squares(total, zip(slabs.TIDES, components, strict=True))


@dataclass(frozen=True, slots=True)
class Flow:
    """The velocity of a source, refused if it is not finite or faster than light.

    Parameters
    ----------
    url : str
        URL of the fields store.
    box_size : float
        Box size, Mpc/h.
    rate : float
        ``f a H``, km/s per Mpc/h.
    source : FlowSource
        Source of the velocity.
    model : str or None
        Name or URL of the model that the source belongs to, for errors.
    """

    url: str
    box_size: float
    rate: float
    source: FlowSource
    model: str | None = None

    def pointwise(self, names: Sequence[str], bar: Bar) -> Fields:
        """Yield the pointwise fields of the density, which is read once for all fields."""
        store = reopen_fields(self.url, "density")
        density = torch.from_numpy(store.read_block("density", bar.block(store.grid)))
        for name in names:
            blocks = slabs.line_blocks(bar.shape, store.grid)
            yield (), ((own, partial(POINTWISE[name], density[own])) for own in blocks)

    def multiply(self, modes: list[Tensor], waves: WaveBlock) -> Iterator[Tensor]:
        """Sum the modes of the fields to the source; return the products for the velocity."""
        source = self.source.combine(modes, waves.squared()).mul_(self.rate)
        # Writing starts only after all these tasks, so an error here leaves no shard.
        if not is_finite(source):
            for name, found in zip(self.source.fields, modes, strict=True):
                if not is_finite(found):
                    raise refuse_density(name, self.url)
            raise refuse_flow(self.source, self.rate, self.url, self.box_size, self.model)
        return slabs.gradient(source, waves)

    def velocity(self, products: Tensor) -> Iterator[Tensor]:
        """Yield the components of the velocity, km/s."""
        for component in products:
            if not is_physical(component):
                raise refuse_flow(self.source, self.rate, self.url, self.box_size, self.model)
            yield component
