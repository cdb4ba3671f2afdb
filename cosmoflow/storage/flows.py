"""Adding the global velocities to a fields store that is whole already.

Each is begun, written shard by shard or at once, and noted only then: a run that dies half way
leaves something that no reader asks for and that the next run begins again. A flow notes what it
was made from; one that notes something else is not read, and the next run replaces it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import zarr
from numpy import float32
from numpy.typing import NDArray

from cosmoflow.config.base import digest as digest_of
from cosmoflow.errors import DataError, IncompleteError, StorageError, SupersededError
from cosmoflow.numerics.blocks import Block
from cosmoflow.storage.claims import Claim
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.finite import count_not_finite
from cosmoflow.storage.origins import (
    LINEAR,
    MADE_FROM,
    WIENER,
    Origin,
    is_same_origin,
    noted_origin,
    scale_key,
)
from cosmoflow.storage.urls import damage, open_group, open_group_for_writing, storage_errors
from cosmoflow.storage.variables import COMPRESSORS, SMOOTHING, create_variable
from cosmoflow.units import LENGTH

FILTER: Final = "filter"
"""The attribute that says which filter a ``wiener_velocity`` is of: "" until all is written."""
BEGUN: Final = "last_begun"
"""The attribute that says which filter's, or which radius's, velocity was begun last, and from
what: no task writes another."""


def _begun(what: str | float, origin: Origin | None) -> str | float:
    """Return what tells the velocity that is being written from any other in its place."""
    return what if origin is None else f"{what} of {digest_of(dict(origin))}"


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
        What it is of: digest of a filter, or radius in Mpc/h, and what it is made from.
    lead : tuple of int
        Indices into its leading dimensions.
    components : tuple of int
        Which of x, y and z each stored component is: the labels of the store say so.
    """

    url: str
    name: str
    begun: str | float
    lead: tuple[int, ...] = ()
    components: tuple[int, ...] = (0, 1, 2)

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
        if self.components != (0, 1, 2):
            values = values[list(self.components)]
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
    url: str, radius: float, claim: Claim | None = None, origin: Origin | None = None
) -> Iterator[FlowArray]:
    """Begin the linear velocity at a smoothing scale, and list it when it is written.

    Parameters
    ----------
    url : str
        Of a whole fields store.
    radius : float
        Gaussian radius, Mpc/h.
    claim : Claim, optional
        On the store: it must still be held when the velocity is begun, and when it is noted.
    origin : mapping, optional
        What it is made from, to be noted.

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
    What was begun and not finished is a scale of NaN, which equals no radius. A listed velocity of
    the same radius is replaced. When the velocity is refused with a DataError, what was begun is
    dropped.
    """
    store = FieldStore(url)
    scales = store.smoothing_scales()
    begun = _begun(radius, origin)
    group = open_group_for_writing(url)
    _check(claim)
    with storage_errors(url):
        if scales and not _is_sharded(group, LINEAR, store):
            # Tasks that own whole shards would share the chunks of another writer.
            raise DataError(
                f"the store holds a {LINEAR} of another program",
                where=f"{url}, {LINEAR}",
                value=f"smoothing {', '.join(f'{one:g}' for one in scales)} Mpc/h",
                remedy="rename or delete it: cosmoflow keeps flows of its own under this name",
            )
        index = _slot(scales, radius)
        if index < len(scales):
            # First: a reader must not find the radius beside anything but its velocity.
            _array(group, SMOOTHING)[index] = math.nan
        if not scales:
            create_variable(group, LINEAR, store.grid, store.shard, store.chunk, scales=1)
            group.create_array(
                SMOOTHING, shape=(1,), chunks=(1,), dtype="float64", fill_value=float("nan"),
                dimension_names=(SMOOTHING,), overwrite=True, compressors=COMPRESSORS,
                attributes={"units": LENGTH, "long_name": "radius of the Gaussian window"},
            )  # fmt: skip
        array, listing = _array(group, LINEAR), _array(group, SMOOTHING)
        if index == len(scales) > 0:
            array.resize((index + 1, *array.shape[1:]))
            listing.resize((index + 1,))
        array.attrs[BEGUN] = begun
    with _dropping(claim, lambda: _drop_scale(group, index)):
        yield FlowArray(url, LINEAR, begun, (index,), store.components)
    _check(claim)
    with storage_errors(url):
        noted = array.attrs.get(MADE_FROM)
        notes = dict(noted) if isinstance(noted, dict) else {}
        notes.pop(scale_key(radius), None)
        if origin is not None:
            notes[scale_key(radius)] = dict(origin)
        array.attrs[MADE_FROM] = notes
        listing[index] = radius


@contextmanager
def adding_wiener_velocity(
    url: str, digest: str, claim: Claim | None = None, origin: Origin | None = None
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
    origin : mapping, optional
        What it is made from, to be noted.

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
    Another run may be reading the velocity of an older filter: :func:`check_filter` tells it. When
    the velocity is refused with a DataError, what was begun is dropped.
    """
    begun = _begun(digest, origin)
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
            attributes={FILTER: "", BEGUN: begun},
        )  # fmt: skip
    with _dropping(claim, lambda: _drop(group, WIENER)):
        yield FlowArray(url, WIENER, begun, components=store.components)
    _check(claim)
    with storage_errors(url):
        noted = {} if origin is None else {MADE_FROM: dict(origin)}
        # In one write: a reader finds both or neither.
        array.attrs.update({FILTER: digest, **noted})


@contextmanager
def _dropping(claim: Claim | None, drop: Callable[[], None]) -> Iterator[None]:
    """Drop what was begun if its making is refused, unless another run has taken over."""
    try:
        yield
    except DataError:
        # What cannot be dropped is not listed, and the next run begins it again.
        with suppress(StorageError, OSError):
            if claim is None or claim.holds():
                drop()
        raise


def _drop(group: zarr.Group, *names: str) -> None:
    for name in names:
        del group[name]


def _drop_scale(group: zarr.Group, index: int) -> None:
    """Drop the last scale, which is not listed; one before it stays a scale of NaN."""
    array, listing = _array(group, LINEAR), _array(group, SMOOTHING)
    if listing.shape == (1,):
        _drop(group, SMOOTHING, LINEAR)
    elif index == listing.shape[0] - 1:
        listing.resize((index,))
        array.resize((index, *array.shape[1:]))


def _array(group: zarr.Group, name: str) -> Any:
    return group[name]


def _is_sharded(group: zarr.Group, name: str, store: FieldStore) -> bool:
    """Tell whether an array is cut as ours are: one shard is what one task writes."""
    shards = _array(group, name).shards
    return shards is not None and tuple(shards) == (1, 3, *(store.shard,) * 3)


def _slot(scales: Sequence[float], radius: float) -> int:
    """Return where a scale goes: in its own place, in that of an unfinished one, or at the end."""
    if radius in scales:
        return scales.index(radius)
    return next((i for i, found in enumerate(scales) if math.isnan(found)), len(scales))


def _check(claim: Claim | None) -> None:
    if claim is not None:
        claim.check()


def add_linear_velocity(
    url: str,
    radius: float,
    make: Callable[[], NDArray[float32]],
    claim: Claim | None = None,
    origin: Origin | None = None,
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
    origin : mapping, optional
        What it is made from.

    Returns
    -------
    int
        Index of the scale along ``smoothing``.

    Raises
    ------
    DataError
        The velocity is not finite. Nothing of it is stored.
    """
    store = FieldStore(url)
    scales = store.smoothing_scales()
    if radius in scales and is_same_origin(noted_origin(store, radius), origin):
        return scales.index(radius)
    # Before anything is begun: what fails to be made leaves the store as it was.
    values = require_finite(make(), f"{url}, {LINEAR}")
    with adding_linear_velocity(url, radius, claim, origin) as array:
        array.write(values)
    return array.lead[0]


def add_wiener_velocity(
    url: str,
    digest: str,
    make: Callable[[], NDArray[float32]],
    claim: Claim | None = None,
    origin: Origin | None = None,
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
    origin : mapping, optional
        What it is made from.

    Raises
    ------
    DataError
        The velocity is not finite. Nothing of it is stored.
    """
    store = FieldStore(url)
    if filter_digest(store) == digest and is_same_origin(noted_origin(store), origin):
        return
    values = require_finite(make(), f"{url}, {WIENER}")
    with adding_wiener_velocity(url, digest, claim, origin) as array:
        array.write(values)


def require_finite(values: NDArray[float32], where: str) -> NDArray[float32]:
    """Return a velocity, or refuse one that holds values that are not finite.

    Raises
    ------
    DataError
    """
    if count_not_finite(values):
        raise DataError(
            "the velocity that was made holds values that are not finite, and is not kept",
            where=where,
            remedy="look for what it is made from: the density, the cosmology, the filter",
        )
    return values


def filter_digest(store: FieldStore) -> str:
    """Return which filter made the stored ``wiener_velocity``, or "" if none did."""
    if WIENER not in store.variables:
        return ""
    return str(store.attributes(WIENER).get(FILTER, ""))


def check_filter(url: str, digest: str, origin: Origin | None = None) -> None:
    """Stop a run whose Wiener velocity another run has replaced, or is replacing.

    Parameters
    ----------
    url : str
        Of the fields store.
    digest : str
        Of the filter whose velocity the run has just read.
    origin : mapping, optional
        What that velocity was made from, as it was noted when the run began.

    Raises
    ------
    IncompleteError
        The store has another filter's velocity, one that was made from something else, or none that
        is whole.

    Notes
    -----
    Call it after a read, also after one that failed. The digest goes before the first chunk is
    touched and the next comes after the last, so what was read is good if it is there.
    """
    group = open_group(url)
    with storage_errors(url), damage(f"{url}, {WIENER}"):
        array = group.get(WIENER)
    found = "" if array is None else str(array.attrs.get(FILTER, ""))
    if found == digest and array is not None and array.attrs.get(MADE_FROM) != origin:
        raise IncompleteError(
            "the Wiener velocity was made again from another density or cosmology while this run "
            "read it",
            where=f"{url}, {WIENER}",
            remedy="run again with --overwrite: the input was changed after this run began",
        )
    if found != digest:
        raise IncompleteError(
            "the Wiener velocity was replaced by that of another filter while this run read it",
            where=f"{url}, {WIENER}",
            value=f"filter {found}" if found else "one that is not whole yet",
            limit=f"filter {digest}",
            remedy="run again with --resume when the other run is done",
        )
