"""Requests that stages send to object stores, common to all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from cosmoflow.numerics.blocks import axis_runs
from cosmoflow.stages.run import Run
from cosmoflow.storage.metadata import StoredBox
from cosmoflow.storage.requests import Interval, Requests, Shards, count_reads

OPENING: Final = 2
"""Requests of a task that opens a store which its process has opened before: the metadata of the
group and of a variable."""

ONCE: Final = {
    "paint": Requests(32, 78),
    "spectra": Requests(19, 49),
    "infer": Requests(21, 99),
    "derive": Requests(23, 65),
    "evaluate": Requests(0, 49),
}
"""Requests of a whole run, for any box: to check inputs, to begin the output and to finish it
(measured with benchmarks/bucket_requests.py; options change them by some)."""


def stored_shards(store: StoredBox) -> Shards:
    """Return how the variables of a store are stored."""
    return Shards(store.grid, store.shard, store.chunk)


def count_workers(run: Run) -> int:
    """Return the processes that read, as far as they are known before the engine starts."""
    config = run.settings.engine
    if config.choice == "ray" or config.address is not None:
        return max(1, run.session.engine(0.0).cpus)
    return 1


def around(start: int, size: int, halo: int, grid: int) -> Interval:
    """Return the interval that is read for cells along an axis and a halo; see `read_once`."""
    wide = size + 2 * halo
    return (0, grid) if wide > grid else (start - halo, wide)


def count_cells(axis: Iterable[Interval], stored: Shards) -> int:
    """Return the cells along an axis of the chunks that are decoded for some intervals."""
    chunk, total = stored.chunk, 0
    for origin, length in axis:
        for run, _ in axis_runs(origin, length, stored.grid):
            total += min(-(-run.stop // chunk) * chunk, stored.grid) - run.start // chunk * chunk
    return total


def count_bars(
    stored: Shards,
    reads: Iterable[tuple[int, int]],
    x: Sequence[slice],
    y: Sequence[slice],
    workers: int,
) -> int:
    """Return the requests that read variables in bars along z.

    Parameters
    ----------
    reads : iterable of (int, int)
        Components of each variable, and cells read around a bar along x and y.
    x, y : sequence of slice
        Ranges of the bars.
    """
    total = 0
    for parts, halo in reads:
        axes = [
            [around(one.start, one.stop - one.start, halo, stored.grid) for one in cut]
            for cut in (x, y)
        ]
        total += count_reads(stored, [*axes, [(0, stored.grid)]], parts, workers=workers)
    return total
