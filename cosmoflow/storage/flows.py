"""Adding the global velocities to a fields store that is whole already.

Each is begun, written shard by shard or at once, and noted only then: a run that dies half way
leaves something that no reader asks for and that the next run begins anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import zarr
from numpy import float32
from numpy.typing import NDArray

from cosmoflow.errors import IncompleteError, SupersededError
from cosmoflow.numerics.painting import Block
from cosmoflow.storage.claims import Claim
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.urls import damage, open_group, open_group_for_writing, storage_errors
from cosmoflow.storage.variables import COMPRESSORS, SMOOTHING, create_variable
from cosmoflow.units import LENGTH

LINEAR: Final = "linear_velocity"
WIENER: Final = "wiener_velocity"
FILTER: Final = "filter"
"""The attribute that says which filter a ``wiener_velocity`` is of: "" until all is written."""
BEGUN: Final = "last_begun"
"""The attribute that says which filter's, or which radius's, velocity was begun last: nobody writes
another."""


@dataclass(frozen=True, slots=True)
class FlowArray:
    """Where a velocity that has been begun is to be written.

    Parameters
    ----------
    url : str
        Of the fields store.
    name : str
        Of the variable.
    begun : str or float
        What it is of: digest of a filter, or radius, Mpc/h.
    lead : tuple of int
        Indices into its leading dimensions.
    """

    url: str
    name: str
    begun: str | float
    lead: tuple[int, ...] = ()

    def write(self, values: NDArray[float32], block: Block | None = None) -> None:
        """Write the velocity, shape (3, nx, ny, nz), km/s, of whole shards, or of the box.

        Raises
        ------
        SupersededError
            Another run has begun another velocity in its place: this one's driver slept, and lost
            its claim, while its workers went on.
        """
        cells: tuple[slice, ...] = ()
        if block is not None:
            cells = tuple(
                slice(origin, origin + length)
                for origin, length in zip(block.origin, block.shape, strict=True)
            )
        group = open_group_for_writing(self.url)
        with storage_errors(self.url):
            array: Any = group[self.name]
            if (found := array.attrs.get(BEGUN)) != self.begun:
                raise SupersededError(
                    "another run writes another velocity in place of this one",
                    where=f"{self.url}, {self.name}", value=found, limit=self.begun,
                    remedy="run again when the other run is done",
                )  # fmt: skip
            # Looking for chunks that need not be written takes as long as writing them.
            array.with_config({"write_empty_chunks": True})[(*self.lead, ..., *cells)] = values


@contextmanager
def adding_linear_velocity(
    url: str, radius: float, claim: Claim | None = None
) -> Iterator[FlowArray]:
    """Begin the linear velocity at one more smoothing scale, and list it when it is written.

    Parameters
    ----------
    url : str
        Of a whole fields store.
    radius : float
        Gaussian radius, Mpc/h.
    claim : Claim, optional
        On the store: it must still be held when the velocity is begun, and when it is noted.

    Yields
    ------
    FlowArray
        Where to write it.

    Raises
    ------
    SupersededError
        The claim is lost.

    Notes
    -----
    What was begun and not finished is a scale of NaN, which equals no radius.
    """
    store = FieldStore(url)
    scales = store.smoothing_scales()
    index = next((i for i, found in enumerate(scales) if math.isnan(found)), len(scales))
    group = open_group_for_writing(url)
    _check(claim)
    with storage_errors(url):
        if not scales:
            create_variable(group, LINEAR, store.grid, store.shard, store.chunk, scales=1)
            group.create_array(
                SMOOTHING, shape=(1,), chunks=(1,), dtype="float64", fill_value=float("nan"),
                dimension_names=(SMOOTHING,), overwrite=True, compressors=COMPRESSORS,
                attributes={"units": LENGTH, "long_name": "radius of the Gaussian window"},
            )  # fmt: skip
        array: Any = group[LINEAR]
        listing: Any = group[SMOOTHING]
        if index == len(scales) > 0:
            array.resize((index + 1, *array.shape[1:]))
            listing.resize((index + 1,))
        array.attrs[BEGUN] = radius
    yield FlowArray(url, LINEAR, radius, (index,))
    _check(claim)
    with storage_errors(url):
        listing[index] = radius


@contextmanager
def adding_wiener_velocity(
    url: str, digest: str, claim: Claim | None = None
) -> Iterator[FlowArray]:
    """Begin the velocity of a Wiener filter, and note whose it is when it is written.

    Parameters
    ----------
    url : str
        Of a whole fields store.
    digest : str
        Of the filter. The store keeps one filter's velocity, the newest's.
    claim : Claim, optional
        On the store: it must still be held when the velocity is begun, and when it is noted.

    Yields
    ------
    FlowArray
        Where to write it.

    Raises
    ------
    SupersededError
        The claim is lost.

    Notes
    -----
    Another run may be reading the velocity of an older filter: :func:`check_filter` tells it.
    """
    store = FieldStore(url)
    group = open_group_for_writing(url)
    _check(claim)
    with storage_errors(url):
        # First, since deleting an array deletes its chunks and its attributes in any order: who
        # reads it must not find the old filter's digest beside anything but its velocity.
        if isinstance(old := group.get(WIENER), zarr.Array):
            old.attrs[FILTER] = ""
        array: zarr.Array[Any] = create_variable(
            group, WIENER, store.grid, store.shard, store.chunk,
            attributes={FILTER: "", BEGUN: digest},
        )  # fmt: skip
    yield FlowArray(url, WIENER, digest)
    _check(claim)
    with storage_errors(url):
        array.attrs[FILTER] = digest


def _check(claim: Claim | None) -> None:
    if claim is not None:
        claim.check()


def add_linear_velocity(
    url: str, radius: float, make: Callable[[], NDArray[float32]], claim: Claim | None = None
) -> int:
    """Add the linear velocity at one more smoothing scale to a fields store, unless it is there.

    Parameters
    ----------
    url : str
        Of a whole fields store.
    radius : float
        Gaussian radius, Mpc/h.
    make : callable
        Returns the velocity, shape (3, n, n, n), km/s.
    claim : Claim, optional
        On the store.

    Returns
    -------
    int
        Index of the scale along ``smoothing``.
    """
    scales = FieldStore(url).smoothing_scales()
    if radius in scales:
        return scales.index(radius)
    # Before anything is begun: what fails to be made leaves the store as it was.
    values = make()
    with adding_linear_velocity(url, radius, claim) as array:
        array.write(values)
    return array.lead[0]


def add_wiener_velocity(
    url: str, digest: str, make: Callable[[], NDArray[float32]], claim: Claim | None = None
) -> None:
    """Store the velocity of a Wiener filter in a fields store, unless it is there.

    Parameters
    ----------
    url : str
        Of a whole fields store.
    digest : str
        Of the filter.
    make : callable
        Returns the velocity, shape (3, n, n, n), km/s.
    claim : Claim, optional
        On the store.
    """
    if filter_digest(FieldStore(url)) == digest:
        return
    values = make()
    with adding_wiener_velocity(url, digest, claim) as array:
        array.write(values)


def filter_digest(store: FieldStore) -> str:
    """Return which filter made the stored ``wiener_velocity``, or "" if none did."""
    if WIENER not in store.variables:
        return ""
    return str(store.attributes(WIENER).get(FILTER, ""))


def check_filter(url: str, digest: str) -> None:
    """Stop a run whose Wiener velocity another run has replaced, or is replacing.

    Parameters
    ----------
    url : str
        Of the fields store.
    digest : str
        Of the filter whose velocity the run has just read.

    Raises
    ------
    IncompleteError
        The store has another filter's velocity, or none that is whole.

    Notes
    -----
    Call it after a read, also after one that failed. The digest goes before the first chunk is
    touched and the next comes after the last, so what was read is good if it is there.
    """
    group = open_group(url)
    with storage_errors(url), damage(f"{url}, {WIENER}"):
        array = group.get(WIENER)
    found = "" if array is None else str(array.attrs.get(FILTER, ""))
    if found != digest:
        raise IncompleteError(
            "the Wiener velocity was replaced by that of another filter while this run read it",
            where=f"{url}, {WIENER}",
            value=f"filter {found}" if found else "one that is not whole yet",
            limit=f"filter {digest}",
            remedy="run again with --resume when the other run is done",
        )
