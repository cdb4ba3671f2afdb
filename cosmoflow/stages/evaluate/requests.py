"""Requests of `evaluate` to an object store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from cosmoflow.numerics.blocks import axis_blocks
from cosmoflow.numerics.comparison import QUANTITIES
from cosmoflow.numerics.comparison.slices import Patch
from cosmoflow.stages.evaluate.cut import Cut
from cosmoflow.stages.inputs.readers import VELOCITY_ERROR, StoreReader
from cosmoflow.stages.requests import ONCE, count_bars, stored_shards
from cosmoflow.stages.slabs.sources import Derived
from cosmoflow.stages.spectra import PowerPlan, share_readings
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

    exact, whole = [axis_blocks(grid, cut.block)] * 3, [[(0, grid)]] * 3
    for reader in readers:
        if reader.intervals is not None:
            add(exact, reader, VELOCITY_ERROR)
    for axes in [whole] if kept else _block_axes(true, cut):
        add(axes, readers[0], "density")
        for reader in readers:
            add(axes, reader, "velocity")
    patch = Patch.around((0, 0, 0), grid, true.metadata.box_size)
    around = [[(start - 1, size + 2) for start, size in axis] for axis in block_axes(patch.block)]
    for reader in () if kept else readers:
        add(around, reader, "density")
        add(around, reader, "velocity")
    total = spans
    for (url, _), indexed in partial.items():
        total += count_distinct(indexed, stored[url].count, workers)
    if not kept:
        total += _count_spectra(stored, readers, local, true.cell_size, plans, workers)
    if local:
        total += count_reads(stored[true_url], whole, 1)
    return Requests(get=total) + ONCE["evaluate"]


def _block_axes(true: StoredBox, cut: Cut) -> list[Sequence[Sequence[Interval]]]:
    """Return the intervals of the blocks, of the slice, and of the groups of sub-boxes."""
    patch = Patch.around((0, 0, 0), true.grid, true.metadata.box_size)
    blocks = axis_blocks(true.grid, cut.block)
    found: list[Sequence[Sequence[Interval]]] = [
        [[(start - 1, size + 2) for start, size in blocks]] * 3,
        [blocks] * 2 + [[(patch.layer, patch.layers)]],
    ]
    return found + [[cut.groups()] * 3] * bool(cut.subbox)


def _count_spectra(
    stored: Mapping[str, Shards],
    readers: Sequence[StoreReader],
    local: Sequence[str],
    cell_size: float,
    plans: Sequence[PowerPlan],
    workers: int,
) -> int:
    """Return the requests for the bars of the spectra of the box."""
    total = 0
    for fields, plan in zip(share_readings(list(QUANTITIES.values())), plans, strict=True):
        for reader in readers:
            source = Derived(reader, cell_size, fields)
            names = [n for n in source.inputs if n == "density" or reader.method.name not in local]
            for url, _, parts in (found for name in names for found in reader.variables(name)):
                reads, bars = [(parts, source.halo)], plan.cut
                total += count_bars(stored[url], reads, bars.x, bars.y, workers)
    return total
