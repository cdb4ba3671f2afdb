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
    """
    true_url, true = next(iter(stores.items()))
    stored, grid = {url: stored_shards(store) for url, store in stores.items()}, true.grid
    patch = Patch.around((0, 0, 0), grid, true.metadata.box_size)
    cells = [[(start - 1, size + 2) for start, size in axis_blocks(grid, cut.block)]] * 3
    plane = [axis_blocks(grid, cut.block)] * 2 + [[(patch.layer, patch.layers)]]
    around = block_axes(patch.block)
    around = [[(start - 1, size + 2) for start, size in axis] for axis in around]
    density: list[Sequence[Sequence[Interval]]] = [cells, plane]
    if cut.subbox:
        density.append([cut.groups()] * 3)
    spans, partial = 0, Counter[tuple[str, str]]()

    def add(axes: Sequence[Sequence[Interval]], reader: StoreReader, name: str) -> None:
        nonlocal spans
        if name == "velocity" and reader.method.name in local:
            return
        for url, variable, parts in reader.variables(name):
            found, indexed = count_spans(stored[url], axes, parts)
            spans += found
            partial[url, variable] += indexed

    exact = [axis_blocks(grid, cut.block)] * 3
    for reader in readers:
        if reader.intervals is not None:
            add(exact, reader, VELOCITY_ERROR)
    for axes in density:
        add(axes, readers[0], "density")
        for reader in readers:
            add(axes, reader, "velocity")
    for reader in readers:
        add(around, reader, "density")
        add(around, reader, "velocity")
    total = spans
    for (url, _), indexed in partial.items():
        total += count_distinct(indexed, stored[url].count, workers)
    for fields, plan in zip(share_readings(list(QUANTITIES.values())), plans, strict=True):
        for reader in readers:
            source = Derived(reader, true.cell_size, fields)
            names = [n for n in source.inputs if n == "density" or reader.method.name not in local]
            for url, _, parts in (found for name in names for found in reader.variables(name)):
                reads, bars = [(parts, source.halo)], plan.cut
                total += count_bars(stored[url], reads, bars.x, bars.y, workers)
    if local:
        total += count_reads(stored[true_url], [[(0, grid)]] * 3, 1)
    return Requests(get=total) + ONCE["evaluate"]
