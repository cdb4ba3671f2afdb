"""Stores of fields on a grid: opened by xarray, and read by tasks block by block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray

from cosmoflow.errors import DataError
from cosmoflow.numerics.blocks import Block, periodic_runs, place
from cosmoflow.numerics.field_table import LABELS, STORED
from cosmoflow.storage import finite
from cosmoflow.storage.identity import Store, checksum_array, identify_store
from cosmoflow.storage.layout import (
    canonical,
    check_coordinates,
    find_layout,
    label_orders,
    shard_cells,
)
from cosmoflow.storage.ledger import LEDGER_GROUP
from cosmoflow.storage.metadata import (
    VELOCITY_RMS,
    attributes_of,
    flat_attributes,
)
from cosmoflow.storage.piecewise import read_in_pieces
from cosmoflow.storage.together import together
from cosmoflow.storage.transfer import read_part
from cosmoflow.storage.urls import (
    damage,
    join,
    storage_errors,
    zarr_store,
)
from cosmoflow.storage.variables import (
    SMOOTHING,
)
from cosmoflow.units import COMPONENTS

if TYPE_CHECKING:
    import xarray as xr

RESTORED = "restored_velocity"
FLOWS = ("linear_velocity", "wiener_velocity")
"""Variables that `infer` and `train` add to the store that they read."""
_SOURCES: Final = {
    "density": "name a store that `paint` or `import` made; predictions hold no density",
    "velocity": "paint the particles, predict it (cosmoflow infer), or import it with --velocity",
    "momentum": "paint the particles, derive it (cosmoflow derive), or import it with --momentum",
}
"""What makes a variable that a store lacks."""


class FieldStore(Store):
    """A fields store opened for reading.

    Parameters
    ----------
    unfinished : bool
        Open a store that is not complete yet, in the run that makes it.

    Attributes
    ----------
    variables : list of str
        Fields that the store holds.
    own : bool
        Whether cosmoflow wrote the store, so that its layout is known.
    grid, shard, chunk : int
        Cells per axis of the grid, of a shard and of a chunk.

    Raises
    ------
    StorageError, DataError, IncompleteError
        The store cannot be reached, is not a fields store, or is not complete.
    """

    def __init__(self, url: str, *, unfinished: bool = False) -> None:
        super().__init__(url, "fields", unfinished=unfinished)
        with damage(url):
            members = dict(self.group.members())
        arrays = {name: found for name, found in members.items() if isinstance(found, zarr.Array)}
        self._labels = sorted({"x", "y", "z", *LABELS} & arrays.keys())
        self.variables = sorted(name for name in arrays if name in STORED)
        if not self.variables:
            raise DataError(
                "the fields store holds no field",
                where=url,
                value=sorted(arrays),
                limit=f"any of {', '.join(STORED)}",
            )
        # cosmoflow's own labels and coordinates are known, so that no task needs to read them.
        self.own = LEDGER_GROUP in members
        # Of a flow, another run may change the metadata.
        self._arrays = {name: found for name, found in arrays.items() if name not in FLOWS}
        self._orders = {} if self.own else label_orders(arrays, url)
        self._layouts = {
            name: find_layout(arrays[name], name, url, self._orders) for name in self.variables
        }
        first = self.variables[0]
        self.shard, self.chunk = shard_cells(self._layouts[first], arrays[first])
        shapes = {self._layouts[name].cells(arrays[name].shape) for name in self.variables}
        self.grid = int(next(iter(shapes))[0])
        if shapes != {(self.grid, self.grid, self.grid)}:
            raise DataError(
                "the fields share no cubic grid", where=url, value=sorted(shapes), limit="(n, n, n)"
            )
        if not self.own:
            check_coordinates(arrays, self.grid, self.metadata.box_size, url)

    def _array(self, name: str) -> zarr.Array[Any]:
        with damage(f"{self.url}, {name}"):
            array = self._arrays.get(name) or self.group.get(name)
        if not isinstance(array, zarr.Array):
            raise DataError(
                f"the fields store has no {name!r}",
                where=self.url,
                value=f"it has {', '.join(self.variables)}",
                remedy=_SOURCES.get(name, "name a store that has it"),
            )
        return read_in_pieces(array)

    @property
    def region(self) -> Block | None:
        """The cells that the store holds; None if it holds the whole grid."""
        found = attributes_of(self.group).get(finite.REGION)
        return None if found is None else finite.region_block(found)

    @property
    def velocity_rms(self) -> float | None:
        """The 3-D rms velocity over cells, km/s; None if what made the store did not note it."""
        found = attributes_of(self.group).get(VELOCITY_RMS)
        return float(found) if isinstance(found, int | float) else None

    @property
    def cell_size(self) -> float:
        """Side of a cell, Mpc/h."""
        return self.metadata.box_size / self.grid

    @property
    def components(self) -> tuple[int, ...]:
        """Indices of x, y and z, in the order of the stored components."""
        order = self._orders.get("component", range(len(COMPONENTS)))
        return tuple(np.argsort(order).tolist())

    @cached_property
    def digest(self) -> str:
        """Identity of what the store holds, see :mod:`cosmoflow.storage.identity`.

        It does not depend on the ledger, nor on the flows that stages keep in the store.
        """
        names = [*(name for name in self.variables if name not in FLOWS), *self._labels]
        return identify_store(
            self.metadata,
            dict(zip(names, together(self.url, self.checksum, names), strict=True)),
            region=self.group.attrs.get(finite.REGION),
        )

    def checksum(self, name: str) -> str:
        """Return a checksum of a variable's values and attributes."""
        return checksum_array(self.url, name, self._array(name))

    def attributes(self, name: str) -> Mapping[str, Any]:
        """Return the attributes of a variable."""
        return self._array(name).attrs

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """Return the cells along x, y and z that one shard or chunk of a variable covers."""
        array = self._array(name)
        return self._layouts[name].cells(array.shards or array.chunks)

    def missing_chunks(self, name: str) -> tuple[int, int]:
        """Return how many chunks of a variable are missing and read as 0, and how many it has."""
        array = self._array(name)
        if np.isnan(array.fill_value):
            return 0, array.nchunks
        with storage_errors(self.url), damage(f"{self.url}, {name}"):
            return array.nchunks - array.nchunks_initialized, array.nchunks

    def smoothing_scales(self) -> list[float]:
        """Return the radii of ``linear_velocity``, Mpc/h; NaN for scales that are not finished."""
        if "linear_velocity" not in self.variables or SMOOTHING not in self.group:
            return []
        with storage_errors(self.url), damage(f"{self.url}, {SMOOTHING}"):
            return [float(radius) for radius in np.asarray(self.group[SMOOTHING][:])]  # type: ignore[index]

    def first_scale(self) -> tuple[int, float | None]:
        """Return the place and the radius, Mpc/h, of the first finished ``linear_velocity``.

        The radius is None if another program wrote the variable without radii.

        Raises
        ------
        DataError
            None is finished.
        """
        radii = self.smoothing_scales()
        if not radii:
            return 0, None
        for index, radius in enumerate(radii):
            if np.isfinite(radius):
                return index, radius
        raise DataError(
            "no linear velocity of the store is finished",
            where=f"{self.url}, linear_velocity",
            remedy="run `cosmoflow infer` with the model that began it, which makes it again",
        )

    def has_metadata_of(self, group: zarr.Group, names: Iterable[str]) -> bool:
        """Return whether a group and some of its variables have the metadata of this store."""

        def same(name: str) -> bool:
            found, known = group.get(name), self._arrays[name]
            # As dictionaries: as objects they differ, because NaN does not equal itself.
            return isinstance(found, zarr.Array) and (
                found.metadata.to_dict() == known.metadata.to_dict()
            )

        with damage(self.url):
            return group.metadata.to_dict() == self.group.metadata.to_dict() and all(
                same(name) for name in names if name in self._arrays
            )

    def require(self, *names: str) -> None:
        """Refuse a store that lacks a variable.

        Raises
        ------
        DataError
        """
        for name in names:
            self._array(name)

    def read_block(
        self, name: str, block: Block, *, lead: tuple[int, ...] = ()
    ) -> NDArray[np.float32]:
        """Read a periodic block of a variable.

        Parameters
        ----------
        name : str
            Name of the variable.
        block : Block
            The cells. A block that reaches past the grid wraps around.
        lead : tuple of int
            Indices into the first leading dimensions, such as that of the smoothing scale.

        Returns
        -------
        (nx, ny, nz) or (3, nx, ny, nz) float32

        Raises
        ------
        DataError
            A chunk is damaged or holds values that are not finite.
        """
        array = self._array(name)
        # A flow that was added after the store was opened has cosmoflow's own layout.
        layout = self._layouts.get(name) or find_layout(array, name, self.url, self._orders)
        shape = layout.parts(array.shape, len(lead))
        values = np.empty((*shape, *block.shape), np.float32)
        fixed = [*((index, index + 1) for index in lead), *((0, length) for length in shape)]
        place, bad = f"{self.url}, {name}, block of {block.shape} cells from {block.origin}", 0
        with storage_errors(self.url), damage(place):
            for source, cells in periodic_runs(block, self.grid):
                out = values[(..., *cells)]
                if layout.plain:
                    ranges = [*fixed, *((part.start, part.stop) for part in source)]
                    bad += read_part(array, ranges, out[(None,) * len(lead)])
                else:
                    out[...] = layout.read(array, lead, source)
                    bad += finite.count_not_finite(out)
        if bad:
            finite.check_inside(self.region, block, place)
            raise DataError(
                "the field holds values that are not finite",
                where=place,
                value=f"{bad} cells",
                remedy=self._remedy(name),
            )
        if not self.own and name in ("velocity", *FLOWS, RESTORED):
            finite.check_speed(values, place)
        return values

    def _remedy(self, name: str) -> str:
        """Return what to do about a variable that is damaged."""
        if name in FLOWS:
            # The next run that reads the flow makes it again; the rest of the store is good.
            return f"delete {join(self.url, name)}: the next run that needs it makes it again"
        stage = self.metadata.provenance.get("stage")
        return f"make the store again: run {stage} with --overwrite" if stage else "make it again"

    def read(self, name: str, *, lead: tuple[int, ...] = ()) -> NDArray[np.float32]:
        """Read a whole variable."""
        return self.read_block(name, Block((0, 0, 0), (self.grid,) * 3), lead=lead)


def open_fields(url: str, *, shards: bool = True) -> xr.Dataset:
    """Open a fields store as a lazy xarray dataset, cut to the region that it holds.

    Parameters
    ----------
    shards : bool
        Make one Dask chunk of every shard, which is a good size for a task. Otherwise the Dask
        chunks are the store's chunks, which are much smaller.

    Returns
    -------
    xr.Dataset
        Nested attributes, such as ``cosmology`` and ``provenance``, are JSON text, so that the
        dataset can be written as netCDF.
    """
    # Imported here: tasks and commands that read blocks do without xarray and pandas.
    import xarray as xr

    store = FieldStore(url)
    chunks: dict[str, int] = {}
    if shards:
        whole = {dimension: len(labels) for dimension, labels in LABELS.items()}
        chunks = dict.fromkeys("xyz", store.shard) | whole
    dataset: xr.Dataset = xr.open_zarr(
        zarr_store(url, read_only=True), consolidated=False, chunks=chunks
    )
    # The encoding would prevent a changed or rechunked dataset from being written.
    dataset = canonical(dataset, store.variables, store.metadata.box_size).drop_encoding()
    dataset.attrs = flat_attributes(dataset.attrs)
    if (region := store.region) is None:
        return dataset
    return dataset.isel(
        dict(zip("xyz", place(region, Block((0, 0, 0), region.shape)), strict=True))
    )
