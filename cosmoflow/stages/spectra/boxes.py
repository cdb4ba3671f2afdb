"""Spectra of the sub-boxes of a box, each a task of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cosmoflow.errors import ConfigError
from cosmoflow.numerics import fourier
from cosmoflow.numerics.blocks import Block, central_boxes
from cosmoflow.numerics.slabs import RowWaves
from cosmoflow.numerics.spectra import PowerSum, Products
from cosmoflow.stages.run import Plan, Progress, Run, UntypedPlan, start_engine
from cosmoflow.stages.slabs.sources import Source

if TYPE_CHECKING:
    from cosmoflow.stages.spectra.command import Request

LEAST_CELLS = 4
"""Cells per axis of the smallest sub-box that has a spectrum worth the name."""

_OVERHEAD = 160 << 20
"""Bytes of a worker that grow with nothing."""
_SECONDS_PER_NUMBER = 2e-8
"""Of a core, for each number that is transformed and summed."""


@dataclass(frozen=True, slots=True)
class BoxWork:
    """What tasks know.

    Parameters
    ----------
    sources : tuple of Source
        What is transformed.
    products : Products
        What is summed.
    """

    sources: tuple[Source, ...]
    products: Products

    def sum_box(self, block: Block) -> PowerSum:
        """Return the sum of one sub-box."""
        modes = [fourier.forward(source.read(block)) for source in self.sources]
        cells, side = self.products.bins.cells, self.products.bins.box_size
        return self.products.sum_rows(modes, RowWaves(cells, side, slice(0, cells)))


def plan_boxes(request: Request, run: Run) -> Plan:
    """Say what :func:`sum_boxes` would do."""
    cells, boxes = _cut(request)
    numbers = sum(source.components for source in request.sources)
    # Modes of all fields; of one of them what is read, what its rule takes, and its transform.
    held = 2 * numbers + max(
        source.held + source.working + 2 * source.components for source in request.sources
    )
    return UntypedPlan(
        stage="spectra",
        tasks=len(boxes),
        unit="boxes",
        worker_memory=_OVERHEAD + round(4 * held * (cells + 2) ** 3),
        read=4 * numbers * cells**3 * len(boxes),
        written=8 * 8 * (cells // 2) * len(boxes),
        cpu_seconds=_SECONDS_PER_NUMBER * numbers * cells**3 * len(boxes),
        entries={
            "grid": request.grid.cells,
            "boxes": len(boxes),
            "box_cells": cells,
            "fields": [field.name for field in request.fields],
        },
    )


def sum_boxes(
    request: Request, run: Run, check: Callable[[], None] = lambda: None
) -> list[PowerSum]:
    """Return the sum of each sub-box, in the order of their places; ``check`` may end the run.

    Raises
    ------
    ConfigError
        There is no such sub-box, or not the memory for one.
    """
    cells, boxes = _cut(request)
    plan = plan_boxes(request, run)
    engine = start_engine(run, plan, remedy="smaller sub-boxes, or more memory for a worker")
    bins = request.bins(cells, cells * request.grid.cell_size)
    work = BoxWork(tuple(request.sources), request.products(bins))
    progress = Progress(run.listener, "spectra", len(boxes), "boxes")
    found: dict[Block, PowerSum] = {}

    def keep(block: Block, total: PowerSum) -> None:
        check()
        found[block] = total
        progress.advance()

    engine.map(partial(_make_worker, work), boxes, keep, name="spectra", memory=plan.worker_memory)
    return [found[block] for block in boxes]


def _make_worker(work: BoxWork) -> Callable[[Block], PowerSum]:
    return work.sum_box


def _cut(request: Request) -> tuple[int, list[Block]]:
    """Return the cells per axis of a sub-box, and the sub-boxes."""
    grid, side = request.grid, request.config.subbox
    cells = round((side or grid.box_size) / grid.cell_size)
    if not LEAST_CELLS <= cells <= grid.cells:
        raise ConfigError(
            "no sub-box of this side fits the box",
            where="spectra.subbox",
            value=f"{side:g} Mpc/h, {cells} cells",
            limit=f"{LEAST_CELLS} cells of {grid.cell_size:g} Mpc/h to {grid.box_size:g} Mpc/h",
        )
    return cells, central_boxes(grid.cells, cells)
