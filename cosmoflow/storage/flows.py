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

from cosmoflow.numerics.painting import Block
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.urls import open_group_for_writing, storage_errors
from cosmoflow.storage.variables import COMPRESSORS, SMOOTHING, create_variable
from cosmoflow.units import LENGTH

LINEAR: Final = "linear_velocity"
WIENER: Final = "wiener_velocity"
FILTER: Final = "filter"
"""The attribute that says which filter a ``wiener_velocity`` is of."""


@dataclass(frozen=True, slots=True)
class FlowArray:
    """Where a velocity that has been begun is to be written.

    Parameters
    ----------
    url : str
        Of the fields store.
    name : str
        Of the variable.
    lead : tuple of int
        Indices into its leading dimensions.
    """

    url: str
    name: str
    lead: tuple[int, ...] = ()

    def write(self, values: NDArray[float32], block: Block | None = None) -> None:
        """Write the velocity, shape (3, nx, ny, nz), km/s, of whole shards, or of the box."""
        cells: tuple[slice, ...] = ()
        if block is not None:
            cells = tuple(
                slice(origin, origin + length)
                for origin, length in zip(block.origin, block.shape, strict=True)
            )
        group = open_group_for_writing(self.url)
        with storage_errors(self.url):
            array: Any = group[self.name]
            # Looking for chunks that need not be written takes as long as writing them.
            array.with_config({"write_empty_chunks": True})[(*self.lead, ..., *cells)] = values


@contextmanager
def adding_linear_velocity(url: str, radius: float) -> Iterator[FlowArray]:
    """Begin the linear velocity at one more smoothing scale, and list it when it is written.

    Parameters
    ----------
    url : str
        Of a whole fields store.
    radius : float
        Gaussian radius, Mpc/h.

    Yields
    ------
    FlowArray
        Where to write it.

    Notes
    -----
    What was begun and not finished is a scale of NaN, which equals no radius.
    """
    store = FieldStore(url)
    scales = store.smoothing_scales()
    index = next((i for i, found in enumerate(scales) if math.isnan(found)), len(scales))
    group = open_group_for_writing(url)
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
    yield FlowArray(url, LINEAR, (index,))
    with storage_errors(url):
        listing[index] = radius


@contextmanager
def adding_wiener_velocity(url: str, digest: str) -> Iterator[FlowArray]:
    """Begin the velocity of a Wiener filter, and note whose it is when it is written.

    Parameters
    ----------
    url : str
        Of a whole fields store.
    digest : str
        Of the filter. The store keeps one filter's velocity, the newest's.

    Yields
    ------
    FlowArray
        Where to write it.
    """
    store = FieldStore(url)
    group = open_group_for_writing(url)
    with storage_errors(url):
        array: zarr.Array[Any] = create_variable(
            group, WIENER, store.grid, store.shard, store.chunk, attributes={FILTER: ""}
        )
    yield FlowArray(url, WIENER)
    with storage_errors(url):
        array.attrs[FILTER] = digest


def add_linear_velocity(url: str, radius: float, make: Callable[[], NDArray[float32]]) -> int:
    """Add the linear velocity at one more smoothing scale to a fields store, unless it is there.

    Parameters
    ----------
    url : str
        Of a whole fields store.
    radius : float
        Gaussian radius, Mpc/h.
    make : callable
        Returns the velocity, shape (3, n, n, n), km/s.

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
    with adding_linear_velocity(url, radius) as array:
        array.write(values)
    return array.lead[0]


def add_wiener_velocity(url: str, digest: str, make: Callable[[], NDArray[float32]]) -> None:
    """Store the velocity of a Wiener filter in a fields store, unless it is there.

    Parameters
    ----------
    url : str
        Of a whole fields store.
    digest : str
        Of the filter.
    make : callable
        Returns the velocity, shape (3, n, n, n), km/s.
    """
    if filter_digest(FieldStore(url)) == digest:
        return
    values = make()
    with adding_wiener_velocity(url, digest) as array:
        array.write(values)


def filter_digest(store: FieldStore) -> str:
    """Return which filter made the stored ``wiener_velocity``, or "" if none did."""
    if WIENER not in store.variables:
        return ""
    return str(store.attributes(WIENER).get(FILTER, ""))
