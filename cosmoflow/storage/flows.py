"""Adding global velocities ("flows") to a complete fields store.

A flow is begun, then written, shard by shard or at once, and listed when it is complete. A
flow that is not listed is not read, and the next run begins it again. A flow notes what it was made
from. If that is not what a run expects, the run replaces the flow.
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
from cosmoflow.storage.origins import (
    LINEAR,
    MADE_FROM,
    WIENER,
    Origin,
    scale_key,
)
from cosmoflow.storage.urls import damage, open_group, open_group_for_writing, storage_errors
from cosmoflow.storage.variables import COMPRESSORS, SMOOTHING, create_variable, write_cells
from cosmoflow.units import LENGTH

FILTER: Final = "filter"
"""Attribute of ``wiener_velocity``: digest of its filter, or "" until it is complete."""
BEGUN: Final = "last_begun"
"""Attribute that identifies the velocity that was begun last: its filter or radius, and what it is
made from. Tasks of any other velocity are refused."""


def _begun(what: str | float, origin: Origin | None) -> str | float:
    """Return the value of :data:`BEGUN`, which identifies a velocity that is being written."""
    return what if origin is None else f"{what} of {digest_of(dict(origin))}"


@dataclass(frozen=True, slots=True)
class FlowArray:
    """A velocity that has been begun and can be written.

    Parameters
    ----------
    begun : str or float
        Identity of the velocity: digest of a filter, or radius in Mpc/h, and what it is made from.
    lead : tuple of int
        Indices into the first leading dimensions of the variable.
    components : tuple of int
        Indices of x, y and z, in the order of the components in the store.
    """

    url: str
    name: str
    begun: str | float
    lead: tuple[int, ...] = ()
    components: tuple[int, ...] = (0, 1, 2)

    def write(self, values: NDArray[float32], block: Block | None = None) -> None:
        """Write the velocity of whole shards, or of the box: shape (3, nx, ny, nz), km/s.

        Raises
        ------
        SupersededError
            Another run has begun another velocity in this place. The driver of this run slept and
            lost its claim, while its workers went on.
        """
        if self.components != (0, 1, 2):
            values = values[list(self.components)]
        group = open_group_for_writing(self.url)
        with storage_errors(self.url):
            array: Any = group[self.name]
            if (found := array.attrs.get(BEGUN)) != self.begun:
                raise SupersededError(
                    "another run writes another velocity in place of this one",
                    where=f"{self.url}, {self.name}",
                    value=found,
                    limit=self.begun,
                    remedy="run again when the other run is done",
                )
            write_cells(array, values, block, self.lead)


@contextmanager
def adding_linear_velocity(
    url: str, radius: float, claim: Claim | None = None, origin: Origin | None = None
) -> Iterator[FlowArray]:
    """Begin the linear velocity at a smoothing scale, and list it when it is written.

    Parameters
    ----------
    url : str
        URL of a complete fields store.
    radius : float
        Gaussian radius, Mpc/h.
    claim : Claim, optional
        Claim on the store. It must be held when the velocity is begun and when it is listed.
    origin : mapping, optional
        Origin of the velocity; it is stored with it.

    Yields
    ------
    FlowArray
        Where to write the velocity.

    Raises
    ------
    SupersededError
        The claim is lost.

    Notes
    -----
    The radius of an unfinished velocity is stored as NaN, which equals no radius. A listed velocity
    of the same radius is replaced. If the block raises a DataError, the velocity is dropped.
    """
    store = FieldStore(url)
    scales = store.smoothing_scales()
    begun = _begun(radius, origin)
    group: Any = open_group_for_writing(url)
    _check(claim)
    with storage_errors(url):
        # Two tasks might write to the same chunk of an array that is not cut into our shards.
        if scales and group[LINEAR].shards != (1, 3, *(store.shard,) * 3):
            listed = ", ".join(f"{one:g}" for one in scales)
            raise _foreign(url, LINEAR, f"smoothing {listed} Mpc/h")
        if not scales and isinstance(old := group.get(LINEAR), zarr.Array):
            _require_own(url, old, BEGUN, MADE_FROM)
        index = _slot(scales, radius)
        if index < len(scales):
            # Before anything else: a reader must find the radius only with its own velocity.
            group[SMOOTHING][index] = math.nan
        if not scales:
            layout = (store.grid, store.shard, store.chunk)
            create_variable(group, LINEAR, *layout, scales=1, attributes={BEGUN: begun})
            group.create_array(
                SMOOTHING,
                shape=(1,),
                chunks=(1,),
                dtype="float64",
                fill_value=float("nan"),
                dimension_names=(SMOOTHING,),
                overwrite=True,
                compressors=COMPRESSORS,
                attributes={"units": LENGTH, "long_name": "radius of the Gaussian window"},
            )
        array, listing = group[LINEAR], group[SMOOTHING]
        if index == len(scales) > 0:
            array.resize((index + 1, *array.shape[1:]))
            listing.resize((index + 1,))
        array.attrs[BEGUN] = begun

    def drop() -> None:
        """Delete the scale if it is the last one; any other stays, with the radius NaN."""
        if listing.shape == (1,):
            del group[SMOOTHING]
            del group[LINEAR]
        elif index == listing.shape[0] - 1:
            listing.resize((index,))
            array.resize((index, *array.shape[1:]))

    with _writing(claim, drop):
        yield FlowArray(url, LINEAR, begun, (index,), store.components)
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
    """Begin the velocity of a Wiener filter, and note the filter when it is written.

    Parameters
    ----------
    url, claim, origin
        As for :func:`adding_linear_velocity`, which also describes what is yielded and raised.
    digest : str
        Digest of the filter. A store keeps the velocity of one filter, the newest.

    Notes
    -----
    Another run may be reading the velocity of an older filter; it notices by :func:`check_filter`.
    If the block raises a DataError, the velocity is dropped.
    """
    begun = _begun(digest, origin)
    store = FieldStore(url)
    group = open_group_for_writing(url)
    _check(claim)
    with storage_errors(url):
        if isinstance(old := group.get(WIENER), zarr.Array):
            _require_own(url, old, BEGUN, FILTER)
            # Before anything else: an array's chunks and attributes are deleted in any order, and a
            # reader must find the digest of the old filter only with its own velocity.
            old.attrs[FILTER] = ""
        attributes = {FILTER: "", BEGUN: begun}
        array: zarr.Array[Any] = create_variable(
            group, WIENER, store.grid, store.shard, store.chunk, attributes=attributes
        )
    with _writing(claim, lambda: group.__delitem__(WIENER)):
        yield FlowArray(url, WIENER, begun, components=store.components)
    with storage_errors(url):
        noted = {} if origin is None else {MADE_FROM: dict(origin)}
        # A single write, so that a reader finds both or neither.
        array.attrs.update({FILTER: digest, **noted})


@contextmanager
def _writing(claim: Claim | None, drop: Callable[[], None]) -> Iterator[None]:
    """Drop a velocity whose making is refused; check at the end that the claim is still held."""
    try:
        yield
    except DataError:
        # If it cannot be dropped, it is still not listed, and the next run begins it again.
        with suppress(StorageError, OSError):
            if claim is None or claim.holds():
                drop()
        raise
    _check(claim)


def _require_own(url: str, array: zarr.Array[Any], *attributes: str) -> None:
    """Refuse to replace an array without the attributes of flows: a user may need it."""
    if not any(name in array.attrs for name in attributes):
        raise _foreign(url, array.basename, f"without {' or '.join(attributes)}")


def _foreign(url: str, name: str, value: str) -> DataError:
    return DataError(
        f"the store holds a {name} of another program",
        where=f"{url}, {name}",
        value=value,
        remedy="rename or delete it: cosmoflow keeps flows of its own under this name",
    )


def _slot(scales: Sequence[float], radius: float) -> int:
    """Return the index of a scale: its own, that of an unfinished scale, or the next one."""
    if radius in scales:
        return scales.index(radius)
    return next((i for i, found in enumerate(scales) if math.isnan(found)), len(scales))


def _check(claim: Claim | None) -> None:
    if claim is not None:
        claim.check()


def filter_digest(store: FieldStore) -> str:
    """Return the digest of the filter of the stored ``wiener_velocity``; "" without one."""
    if WIENER not in store.variables:
        return ""
    return str(store.attributes(WIENER).get(FILTER, ""))


def check_filter(url: str, digest: str, origin: Origin | None = None) -> None:
    """Stop a run whose Wiener velocity another run has replaced, or is replacing.

    Parameters
    ----------
    digest : str
        Digest of the filter whose velocity the run has just read.
    origin : mapping, optional
        Origin of that velocity, as the store said when the run began.

    Raises
    ------
    IncompleteError
        The store has the velocity of another filter, one that was made from something else, or no
        complete one.

    Notes
    -----
    Call it after each read, also after one that failed. The digest is deleted before the first
    chunk is changed, and the next one is written after the last chunk. So what was read is good if
    the digest is still there.
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
