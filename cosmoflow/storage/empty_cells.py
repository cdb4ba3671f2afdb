"""How many empty cells every shard has, and how many of them no fill reached, beside the ledger.

A run that is resumed does not paint the finished shards again, and must count their cells too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from cosmoflow.storage.ledger import LEDGER_GROUP, check_run
from cosmoflow.storage.urls import open_group, open_group_for_writing, storage_errors

COUNTS = "empty_cells"
_NOT_COUNTED = -1


def begin_counts(url: str, shards: int) -> None:
    """Make room for the counts of an output, unless an earlier run of it did."""
    group = open_group_for_writing(url)
    with storage_errors(url):
        ledger = group.require_group(LEDGER_GROUP)
        found = ledger.get(COUNTS)
        if isinstance(found, zarr.Array) and found.shape == (shards, 2):
            return
        # Two dimensions, because ledgers of finished shards have one.
        ledger.create_array(
            COUNTS, shape=(shards, 2), chunks=(1, 2), dtype="int64", fill_value=_NOT_COUNTED,
            compressors=None, dimension_names=("shard", "count"), overwrite=True,
        )  # fmt: skip


def write_count(url: str, shard: int, empty: int, unfilled: int = 0, *, digest: str) -> None:
    """Note the empty cells of a shard. Call it before the shard is marked finished.

    Parameters
    ----------
    url : str
        URL of the output.
    shard : int
        Index in the ledger.
    empty, unfilled : int
        Cells whose density is zero; those of them that the fill ``nearest`` did not reach.
    digest : str
        Of the run whose shard it is.

    Raises
    ------
    SupersededError
        The output is another run's by now.
    """
    group = open_group_for_writing(url)
    check_run(group, digest, url)
    with storage_errors(url):
        counts: Any = group[f"{LEDGER_GROUP}/{COUNTS}"]
        counts[shard] = (empty, unfilled)


def sum_counts(url: str) -> tuple[int, int]:
    """Return the empty cells of all shards of an output, and those that the fill did not reach.

    Raises
    ------
    RuntimeError
        A shard has not been counted.
    """
    with storage_errors(url):
        counts: Any = open_group(url)[f"{LEDGER_GROUP}/{COUNTS}"]
        found: NDArray[np.int64] = np.asarray(counts[:], np.int64)
    if (found == _NOT_COUNTED).any():
        raise RuntimeError(f"{url}: the empty cells of a finished shard were not counted")
    empty, unfilled = found.sum(axis=0).tolist()
    return empty, unfilled
