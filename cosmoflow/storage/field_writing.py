"""Creation of stores of fields, and tasks that write their shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from cosmoflow.numerics.blocks import Block, grid_blocks, place
from cosmoflow.storage import finite
from cosmoflow.storage.ledger import LEDGER_GROUP, Ledger, writing_shard
from cosmoflow.storage.metadata import BoxMetadata
from cosmoflow.storage.outputs import Existing, begin_group
from cosmoflow.storage.together import together
from cosmoflow.storage.urls import open_group, open_group_for_writing, storage_errors
from cosmoflow.storage.variables import coordinate_writers, create_variable, write_cells

LEDGER = "fields"


def create_fields(
    url: str,
    metadata: BoxMetadata,
    grid: int,
    variables: tuple[str, ...],
    *,
    shard: int,
    chunk: int,
    existing: Existing = "error",
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
    region: Block | None = None,
) -> NDArray[np.bool_]:
    """Create an empty fields store, marked incomplete, or reopen one of the same run.

    Parameters
    ----------
    grid, shard, chunk : int
        Cells per axis of the grid, of a shard and of a chunk.
    variables : tuple of str
        Names from :data:`cosmoflow.numerics.field_table.STORED`.
    attributes : mapping of str to mapping, optional
        Attributes of each variable beside its units.
    region : Block, optional
        The cells that the store will hold; by default the whole grid.

    Returns
    -------
    (shards,) bool
        Which shards are finished already, in the order of ``grid_blocks``.
    """
    own = metadata.to_attributes("fields")
    if region is not None:
        cells = place(region, Block((0, 0, 0), region.shape))
        own[finite.REGION] = [[part.start, part.stop] for part in cells]
    with storage_errors(url):
        group, resumed = begin_group(url, own, existing)
        if resumed and _is_as_begun(group, variables, grid, shard):
            return Ledger(group, LEDGER).finished()
        shards = len(grid_blocks(grid, shard))

        def create(name: str) -> None:
            said = (attributes or {}).get(name)
            create_variable(group, name, grid, shard, chunk, attributes=said)

        parts: list[Callable[[], object]] = [
            *coordinate_writers(group, grid, metadata.box_size, variables),
            *(partial(create, name) for name in variables),
            lambda: Ledger.create(group, LEDGER, shards),
        ]
        together(url, lambda part: part(), parts)
        return np.zeros(shards, np.bool_)


def _is_as_begun(group: zarr.Group, variables: tuple[str, ...], grid: int, shard: int) -> bool:
    """Return whether a store has all the arrays of the run; else its ledger means nothing."""
    ledger = group.get(f"{LEDGER_GROUP}/{LEDGER}")
    if not isinstance(ledger, zarr.Array) or ledger.shape != (len(grid_blocks(grid, shard)),):
        return False
    arrays = [group.get(name) for name in variables]
    return all(
        isinstance(array, zarr.Array)
        and array.shape[-3:] == (grid, grid, grid)
        and array.shards is not None
        and array.shards[-1] == shard
        for array in arrays
    )


def write_block(
    url: str,
    block: Block,
    shard: int,
    fields: dict[str, NDArray[np.float32]],
    *,
    digest: str | None = None,
) -> None:
    """Write a shard of some variables, then mark it as finished.

    Parameters
    ----------
    url : str
        URL of a store that :func:`create_fields` made.
    fields : dict of str to array
        Values of shape ``(..., *block.shape)``.
    digest : str, optional
        Digest of the run, to refuse a store that another run has begun again.

    Raises
    ------
    SupersededError
        Another run has taken over the store.
    DataError
        A value is not finite; nothing is written.
    """
    with writing_shard(url, LEDGER, shard, digest) as group:
        for name, values in fields.items():
            finite.check_finite(values, group, f"{url}, {name}", block)
        for name, values in fields.items():
            write_cells(group[name], values, block)


def write_whole(url: str, name: str, values: NDArray[np.float32]) -> None:
    """Write a whole variable. No other process may write to the store.

    Raises
    ------
    DataError
        A value is not finite; nothing is written.
    """
    group = open_group_for_writing(url)
    finite.check_finite(values, group, f"{url}, {name}")
    with storage_errors(url):
        write_cells(group[name], values, None)


def finished_shards(url: str) -> NDArray[np.bool_]:
    """Return which shards of an output are finished."""
    with storage_errors(url):
        return Ledger(open_group(url), LEDGER).finished()
