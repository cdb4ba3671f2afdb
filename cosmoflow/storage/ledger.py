"""Which shards of an output are finished, and how many empty cells each of them has.

The ledger is a zarr array of flags beside the output's variables, with one chunk for each shard. It
works on every store that zarr supports, and no two tasks write to the same object. A chunk that is
not set is not stored, so the flags are found by listing their objects. The numbers of empty cells
are stored beside it: a resumed run does not paint the finished shards again, but their cells count
too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.sync import sync

from cosmoflow.errors import SupersededError
from cosmoflow.storage.metadata import attributes_of
from cosmoflow.storage.urls import open_group, open_group_for_writing, storage_errors

LEDGER_GROUP = "ledger"
EMPTY_CELLS = f"{LEDGER_GROUP}/empty_cells"
_NOT_COUNTED = -1


class Ledger:
    """The finished shards of one output, by the name of the ledger within its group."""

    def __init__(self, group: zarr.Group, name: str) -> None:
        flags = group[f"{LEDGER_GROUP}/{name}"]
        if not isinstance(flags, zarr.Array):
            raise TypeError(f"ledger {name!r} is not an array")
        self._flags = flags

    @classmethod
    def create(cls, group: zarr.Group, name: str, shards: int) -> Ledger:
        """Start an empty ledger of ``shards`` entries."""
        group.require_group(LEDGER_GROUP).create_array(
            name, shape=(shards,), chunks=(1,), dtype="uint8", fill_value=0,
            compressors=None, dimension_names=("shard",), overwrite=True,
        )  # fmt: skip
        return cls(group, name)

    def mark(self, shard: int) -> None:
        """Mark a shard as finished. Call it after the shard's data are written."""
        self._flags[shard] = 1

    def finished(self) -> NDArray[np.bool_]:
        """Return one flag for each shard.

        Only flags that are set have an object. A listing finds a thousand of them with a request;
        reading the flags takes a request for each, also for those without an object.
        """
        flags = np.zeros(self._flags.shape, np.bool_)
        flags[sync(self._marked())] = True
        return flags

    async def _marked(self) -> list[int]:
        """Return the shards whose flags are set."""
        folder = self._flags.store_path / "c"
        names = [name async for name in folder.store.list_dir(folder.path)]
        return [int(name) for name in names if name.isdecimal()]


@contextmanager
def writing_shard(url: str, name: str, shard: int, digest: str | None) -> Iterator[zarr.Group]:
    """Open an output to write one of its shards, and mark the shard as finished afterwards.

    Parameters
    ----------
    name : str
        Name of the output's ledger.
    digest : str or None
        Digest of the run that the task belongs to; None skips the check.

    Yields
    ------
    zarr.Group
        The output.

    Raises
    ------
    SupersededError
        Another run has taken over the output. A driver that slept learns of this from its claim,
        but its workers go on with the tasks that they have.
    """
    group = open_group_for_writing(url)
    check_run(group, digest, url)
    with storage_errors(url):
        yield group
        if digest is not None:
            # Opened again, because a group keeps the attributes that it was opened with.
            group = open_group_for_writing(url)
            check_run(group, digest, url)
        Ledger(group, name).mark(shard)


def check_run(group: zarr.Group, digest: str | None, where: str) -> None:
    """Refuse to write to an output that another run has started again.

    Parameters
    ----------
    digest : str or None
        Digest of the run that is going to write; None skips the check.

    Raises
    ------
    SupersededError
    """
    found = attributes_of(group).get("provenance", {}).get("digest")
    if digest not in (None, found):
        raise SupersededError(
            "another run has taken over the output of this one and begun it again",
            where=where,
            value=f"digest {found}",
            limit=f"digest {digest}, of this run",
            remedy="let the other run finish, or give this one an output of its own",
        )


def has_finished_shards(group: zarr.Group) -> bool:
    """Return whether any ledger of an output has a finished shard."""
    ledgers = group.get(LEDGER_GROUP)
    if not isinstance(ledgers, zarr.Group):
        return False
    # The other arrays in the group, such as the counts of empty cells, have more dimensions.
    names = [name for name, array in ledgers.arrays() if array.ndim == 1]
    return any(Ledger(group, name).finished().any() for name in names)


def begin_counts(url: str, shards: int) -> None:
    """Create the array of the counts of an output, unless an earlier run has created it."""
    group = open_group_for_writing(url)
    with storage_errors(url):
        found = group.get(EMPTY_CELLS)
        # Outputs that an older cosmoflow began have no squares.
        if isinstance(found, zarr.Array) and found.shape in ((shards, 2), (shards, 3)):
            return
        # Two dimensions distinguish it from the ledgers of finished shards, which have one.
        group.create_array(
            EMPTY_CELLS, shape=(shards, 3), chunks=(1, 3), dtype="int64", fill_value=_NOT_COUNTED,
            compressors=None, dimension_names=("shard", "count"), overwrite=True,
        )  # fmt: skip


def write_count(
    url: str,
    shard: int,
    empty: int,
    unfilled: int = 0,
    *,
    velocity: NDArray[np.float32] | None = None,
    digest: str,
) -> None:
    """Write the number of empty cells of a shard, and the sum of the squares of its velocity.

    Call it before the shard is marked as finished.

    Parameters
    ----------
    empty, unfilled : int
        Number of cells whose density is zero, and of those that the fill ``nearest`` did not reach.
    velocity : (3, x, y, z) float32 array, optional
        Velocity in the shard, km/s, if the output has one.
    digest : str
        Digest of the run that the shard belongs to.

    Raises
    ------
    SupersededError
        Another run has taken over the output.
    """
    group = open_group_for_writing(url)
    check_run(group, digest, url)
    with storage_errors(url):
        counts: Any = group[EMPTY_CELLS]
        found = (empty, unfilled, 0 if velocity is None else _sum_squares(velocity))
        counts[shard] = found[: counts.shape[1]]


def _sum_squares(velocity: NDArray[np.float32]) -> int:
    """Return the sum of the squares of a velocity, rounded: whole numbers add up in any order."""
    planes = (plane for component in velocity for plane in component)
    return round(sum(float(np.square(plane, dtype=np.float64).sum()) for plane in planes))


def sum_counts(url: str) -> tuple[int, int, int | None]:
    """Return the sums over all shards of what :func:`write_count` wrote.

    Returns
    -------
    empty, unfilled : int
        Number of empty cells, and of those that the fill did not reach.
    squares : int or None
        Sum of the squared velocities, (km/s)^2; None if an older cosmoflow began the output.

    Raises
    ------
    RuntimeError
        A shard has not been counted.
    """
    with storage_errors(url):
        counts: Any = open_group(url)[EMPTY_CELLS]
        found: NDArray[np.int64] = np.asarray(counts[:], np.int64)
    if (found == _NOT_COUNTED).any():
        raise RuntimeError(f"{url}: the empty cells of a finished shard were not counted")
    empty, unfilled, *squares = found.sum(axis=0).tolist()
    return empty, unfilled, squares[0] if squares else None
