"""Requests of `evaluate` to an object store."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from cosmoflow.numerics.blocks import axis_blocks
from cosmoflow.numerics.comparison import QUANTITIES
from cosmoflow.numerics.comparison.slices import Patch
from cosmoflow.stages.evaluate.cut import Cut
from cosmoflow.stages.inputs.readers import VELOCITY_ERROR, StoreReader
from cosmoflow.stages.requests import ONCE, around, count_bars, count_cells, stored_shards
from cosmoflow.stages.slabs.plan import Grid
from cosmoflow.stages.spectra import PowerPlan, read_together, share_readings
from cosmoflow.storage.metadata import StoredBox
from cosmoflow.storage.requests import (
    Interval,
    Requests,
    Shards,
    block_axes,
    count_distinct,
    count_reads,
    count_spans,
)


def count_requests(
    stores: Mapping[str, StoredBox],
    readers: Sequence[StoreReader],
    local: Sequence[str],
    cut: Cut,
    plans: Sequence[PowerPlan],
    workers: int,
    *,
    kept: bool = False,
) -> Requests:
    """Return the requests of a comparison.

    Parameters
    ----------
    stores : mapping of str to StoredBox
        The truth, then the predictions, by URL.
    readers : sequence of StoreReader
        Those of the truth and of the methods.
    local : sequence of str
        Methods whose velocity is made for the comparison, and is kept on a local disk.
    cut : Cut
        The tasks.
    plans : sequence of PowerPlan
        Plans of the spectra of the box.
    workers : int
        Processes that read.
    kept : bool
        Whether this process keeps the fields in memory, and reads each of them once.
    """
    true_url, true = next(iter(stores.items()))
    stored, grid = {url: stored_shards(store) for url, store in stores.items()}, true.grid
    spans, partial = 0, Counter[tuple[str, str]]()

    def add(axes: Sequence[Sequence[Interval]], reader: StoreReader, name: str) -> None:
        nonlocal spans
        if name == "velocity" and reader.method.name in local:
            return
        for url, variable, parts in reader.variables(name):
            found, indexed = count_spans(stored[url], axes, parts)
            spans += found
            partial[url, variable] += indexed

    whole = [[(0, grid)]] * 3
    for reader in readers:
        if reader.intervals is not None:
            add(cut.axes(), reader, VELOCITY_ERROR)
    for axes in [whole] if kept else block_axes_of(true, cut):
        add(axes, readers[0], "density")
        for reader in readers:
            add(axes, reader, "velocity")
    patch = Patch.around((0, 0, 0), grid, true.metadata.box_size)
    patched = [[around(*one, 1, grid) for one in axis] for axis in block_axes(patch.block)]
    for reader in () if kept else readers:
        add(patched, reader, "density")
        add(patched, reader, "velocity")
    total = spans
    for (url, _), indexed in partial.items():
        total += count_distinct(indexed, stored[url].count, workers)
    if not kept:
        total += _count_spectra(stored, readers, local, Grid.of(true), plans, workers)
    if local:
        total += count_reads(stored[true_url], whole, 1)
    return Requests(get=total) + ONCE["evaluate"]


def count_cells_read(true: StoredBox, cut: Cut) -> int:
    """Return the cells of the chunks that tasks decode for the blocks and for the slice."""
    stored = stored_shards(true)
    return sum(
        math.prod(count_cells(axis, stored) for axis in axes) for axes in block_axes_of(true, cut)
    )


def block_axes_of(true: StoredBox, cut: Cut) -> list[Sequence[Sequence[Interval]]]:
    """Return the intervals of the blocks with their halo, and of the slice."""
    patch = Patch.around((0, 0, 0), true.grid, true.metadata.box_size)
    return [
        [[around(*one, 1, true.grid) for one in axis] for axis in cut.axes()],
        [axis_blocks(true.grid, cut.piece)] * 2 + [[(patch.layer, patch.layers)]],
    ]


def _count_spectra(
    stored: Mapping[str, Shards],
    readers: Sequence[StoreReader],
    local: Sequence[str],
    grid: Grid,
    plans: Sequence[PowerPlan],
    workers: int,
) -> int:
    """Return the requests for the bars of the spectra of the box."""
    total = 0
    for fields, plan in zip(share_readings(list(QUANTITIES.values())), plans, strict=True):
        for source in read_together(readers, fields, grid).sources:
            reader = source.reader
            names = [n for n in source.inputs if n == "density" or reader.method.name not in local]
            for url, _, parts in (found for name in names for found in reader.variables(name)):
                reads, bars = [(parts, source.halo)], plan.cut
                total += count_bars(stored[url], reads, bars.x, bars.y, workers)
    return total
