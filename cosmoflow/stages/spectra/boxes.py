"""Spectra of the sub-boxes of a box, one task each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from torch import Tensor

from cosmoflow.errors import ConfigError
from cosmoflow.numerics import fourier
from cosmoflow.numerics.blocks import Block, central_boxes
from cosmoflow.numerics.spectra import PowerSum, Products, sum_terms
from cosmoflow.numerics.waves import WaveBlock
from cosmoflow.stages.costs import OVERHEAD, SUBBOX_NUMBER
from cosmoflow.stages.requests import ONCE, OPENING, count_workers, stored_shards
from cosmoflow.stages.run import Plan, Progress, Run, start_engine
from cosmoflow.stages.slabs.sources import Source
from cosmoflow.stages.spectra.request import Request
from cosmoflow.storage.requests import Requests, count_reads

LEAST_CELLS = 4
"""Cells per axis of the smallest sub-box with a meaningful spectrum."""


@dataclass(frozen=True)
class BoxesPlan(Plan):
    """The plan of the spectra of sub-boxes.

    Parameters
    ----------
    grid, boxes, box_cells : int
        Cells per axis of the box, number of sub-boxes, and cells per axis of a sub-box.
    fields : list of str
        The fields whose spectra are measured.
    blocks : list of Block
        The sub-boxes.
    """

    grid: int
    boxes: int
    box_cells: int
    fields: list[str]
    blocks: list[Block] = field(repr=False)
    remedy: ClassVar[str] = "smaller sub-boxes, or more memory for a worker"


@dataclass(frozen=True, slots=True)
class BoxWork:
    """The work of each task.

    Parameters
    ----------
    sources : tuple of Source
        Fields to transform.
    products : Products
        Products of modes to sum.
    """

    sources: tuple[Source, ...]
    products: Products

    def sum_box(self, block: Block) -> PowerSum:
        """Return the sum of one sub-box."""
        cells, side = self.products.bins.cells, self.products.bins.box_size

        def transform(index: int) -> Tensor:
            return fourier.forward(self.sources[index].read(block))

        (total,) = sum_terms([self.products], transform, WaveBlock.box(cells, side))
        return total


def plan_boxes(request: Request, run: Run) -> BoxesPlan:
    """Plan :func:`sum_boxes`."""
    cells, boxes = _cut(request)
    numbers = sum(source.components for source in request.sources)
    # Modes of all fields; for one of them also its inputs, the work of its rule, its transform.
    held = 2 * numbers + max(
        source.held + source.working + 2 * source.components for source in request.sources
    )
    return BoxesPlan(
        stage="spectra",
        tasks=len(boxes),
        unit="boxes",
        worker_memory=OVERHEAD + round(4 * held * (cells + 2) ** 3),
        read=4 * numbers * cells**3 * len(boxes),
        written=8 * 8 * (cells // 2) * len(boxes),
        cpu_seconds=SUBBOX_NUMBER * numbers * cells**3 * len(boxes),
        requests=_count_requests(request, boxes, count_workers(run)),
        grid=request.grid.cells,
        boxes=len(boxes),
        box_cells=cells,
        fields=[field.name for field in request.fields],
        blocks=boxes,
    )


def _count_requests(request: Request, boxes: list[Block], workers: int) -> Requests:
    """Return the requests of the tasks that read sub-boxes."""
    stored, total = stored_shards(request.stores[0]), OPENING * len(boxes) * len(request.sources)
    axes = [sorted({(box.origin[axis], box.shape[axis]) for box in boxes}) for axis in range(3)]
    for parts, halo in (read for source in request.sources for read in source.reads):
        wider = [[(start - halo, size + 2 * halo) for start, size in axis] for axis in axes]
        total += count_reads(stored, wider, parts, workers=workers)
    return Requests(get=total) + ONCE["spectra"]


def sum_boxes(
    request: Request, plan: BoxesPlan, run: Run, check: Callable[[], None] = lambda: None
) -> list[PowerSum]:
    """Return the sum of each sub-box, in the order of the plan; ``check`` may end the run.

    Raises
    ------
    ConfigError
        A sub-box does not fit into memory.
    """
    engine = start_engine(run, plan, remedy=plan.remedy)
    cells, boxes = plan.box_cells, plan.blocks
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
