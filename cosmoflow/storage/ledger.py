"""Which shards of an output are finished.

The ledger is a zarr array of flags beside the output's variables, one chunk a shard, so that it
works on every store that zarr works on and no two tasks ever write to the same object.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import zarr
from numpy.typing import NDArray

from cosmoflow.errors import SupersededError
from cosmoflow.storage.metadata import attributes_of
from cosmoflow.storage.urls import open_group_for_writing, storage_errors

LEDGER_GROUP = "ledger"


class Ledger:
    """The finished shards of one output.

    Parameters
    ----------
    group : zarr.Group
        The output's group, open for writing.
    name : str
        The ledger's name within the output.
    """

    def __init__(self, group: zarr.Group, name: str) -> None:
        flags = group[f"{LEDGER_GROUP}/{name}"]
        if not isinstance(flags, zarr.Array):
            raise TypeError(f"ledger {name!r} is no array")
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
        """Note that a shard is whole. Call it after the shard's data are written."""
        self._flags[shard] = 1

    def finished(self) -> NDArray[np.bool_]:
        """Return one flag a shard."""
        return np.asarray(self._flags[:], np.uint8).astype(np.bool_)


@contextmanager
def writing_shard(url: str, name: str, shard: int, digest: str | None) -> Iterator[zarr.Group]:
    """Open an output to write one of its shards, and note afterwards that it is whole.

    Parameters
    ----------
    url : str
        Of the output.
    name : str
        Of its ledger.
    shard : int
        Index in the ledger.
    digest : str or None
        Of the run whose task this is, if it may have lost its output meanwhile.

    Yields
    ------
    zarr.Group
        The output.

    Raises
    ------
    SupersededError
        The output is another run's by now. A driver that sleeps learns of it from its claim, but
        its workers go on with what they have in hand.
    """
    group = open_group_for_writing(url)
    check_run(group, digest, url)
    with storage_errors(url):
        yield group
        if digest is not None:
            # Opened again, since a group keeps the attributes that it was opened with.
            group = open_group_for_writing(url)
            check_run(group, digest, url)
        Ledger(group, name).mark(shard)


def check_run(group: zarr.Group, digest: str | None, where: str) -> None:
    """Refuse to write to an output that another run has started again.

    Parameters
    ----------
    group : zarr.Group
        The output, as it is now.
    digest : str or None
        Of the run that is going to write; None for whichever.
    where : str
        URL of the output.

    Raises
    ------
    SupersededError
    """
    found = attributes_of(group).get("provenance", {}).get("digest")
    if digest not in (None, found):
        raise SupersededError(
            "another run has taken over the output of this one and made it anew",
            where=where,
            value=f"digest {found}",
            limit=f"digest {digest}, of this run",
            remedy="let the other run finish, or give this one an output of its own",
        )


def has_finished_shards(group: zarr.Group) -> bool:
    """Tell whether any ledger of an output has a finished shard."""
    ledgers = group.get(LEDGER_GROUP)
    if not isinstance(ledgers, zarr.Group):
        return False
    # What else is kept beside the flags has more dimensions than the shards.
    names = [name for name, array in ledgers.arrays() if array.ndim == 1]
    return any(Ledger(group, name).finished().any() for name in names)
