"""Stores of fields on a grid: what xarray opens, and what tasks read and write block by block."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from cosmoflow.errors import DataError
from cosmoflow.numerics.blocks import Block, grid_blocks, read_periodic
from cosmoflow.storage.finite import REGION, check_finite, region_block
from cosmoflow.storage.identity import changed_input, checksum_array, identify_store
from cosmoflow.storage.layout import (
    canonical,
    check_coordinates,
    find_layout,
    label_orders,
    shard_cells,
)
from cosmoflow.storage.ledger import LEDGER_GROUP, Ledger, writing_shard
from cosmoflow.storage.metadata import BoxMetadata, attributes_of, check_group, flat_attributes
from cosmoflow.storage.outputs import Existing, begin_group
from cosmoflow.storage.urls import (
    damage,
    join,
    open_group,
    open_group_for_writing,
    storage_errors,
    zarr_store,
)
from cosmoflow.storage.variables import LABELS, SMOOTHING, create_variable, write_coordinates
from cosmoflow.units import COMPONENTS, FIELD_UNITS, SPEED_OF_LIGHT

LEDGER = "fields"
RESTORED = "restored_velocity"
_VELOCITIES = ("velocity", "linear_velocity", "wiener_velocity", "restored_velocity")
FLOWS = ("linear_velocity", "wiener_velocity")
"""Variables that `infer` and `train` add to the store that they read."""


class FieldStore:
    """A fields store opened for reading.

    Parameters
    ----------
    url : str
        Where it is.
    unfinished : bool
        Open a store that is not whole yet, in the run that makes it.

    Attributes
    ----------
    variables : list of str
        The fields that it holds.
    own : bool
        Whether cosmoflow wrote it; its layout is known then.
    grid, shard, chunk : int
        Cells per axis of the grid, of what one write of the store covers, and of what one read
        needs.

    Raises
    ------
    StorageError, DataError, IncompleteError
        It cannot be reached, is no fields store, or is not whole.
    """

    def __init__(self, url: str, *, unfinished: bool = False) -> None:
        self.url = url
        self._group = open_group(url)
        check_group(self._group, "fields", url, unfinished=unfinished)
        self.metadata = BoxMetadata.from_attributes(self._group.attrs, url)
        with damage(url):
            members = dict(self._group.members())
        arrays = {name: found for name, found in members.items() if isinstance(found, zarr.Array)}
        self.variables = sorted(name for name in arrays if name in FIELD_UNITS)
        if not self.variables:
            raise DataError(
                "the fields store holds no field",
                where=url, value=sorted(arrays), limit=f"any of {', '.join(FIELD_UNITS)}",
            )  # fmt: skip
        # The labels and coordinates of a store that cosmoflow began need not be read in every task.
        self.own = LEDGER_GROUP in members
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
                "the fields are not on one cubic grid",
                where=url, value=sorted(shapes), limit="(n, n, n)",
            )  # fmt: skip
        if not self.own:
            check_coordinates(arrays, self.grid, self.metadata.box_size, url)

    def _array(self, name: str) -> zarr.Array[Any]:
        with damage(f"{self.url}, {name}"):
            array = self._group.get(name)
        if not isinstance(array, zarr.Array):
            raise DataError(
                f"the fields store has no {name!r}",
                where=self.url,
                value=f"it has {', '.join(self.variables)}",
            )
        return array

    @property
    def region(self) -> Block | None:
        """The cells that the store holds, None if it holds all."""
        found = attributes_of(self._group).get(REGION)
        return None if found is None else region_block(found)

    @property
    def cell_size(self) -> float:
        """Side of a cell, Mpc/h."""
        return self.metadata.box_size / self.grid

    @property
    def components(self) -> tuple[int, ...]:
        """Which of x, y and z each component of the store's vectors is."""
        order = self._orders.get("component", range(len(COMPONENTS)))
        return tuple(np.argsort(order).tolist())

    @property
    def group(self) -> zarr.Group:
        """The group, open for reading."""
        return self._group

    @cached_property
    def digest(self) -> str:
        """Identity of what the store holds, see :mod:`cosmoflow.storage.identity`.

        The flows that a stage keeps in the store and the ledger do not enter.
        """
        with damage(self.url):
            labels = sorted({"x", "y", "z", *LABELS} & set(self._group.array_keys()))
        names = [*(name for name in self.variables if name not in FLOWS), *labels]
        return identify_store(
            self.metadata,
            {name: self.checksum(name) for name in names},
            region=self._group.attrs.get(REGION),
        )

    def checksum(self, name: str) -> str:
        """Return a checksum of a variable's values and attributes."""
        return checksum_array(self.url, name, self._array(name))

    def check_unchanged(self) -> None:
        """Refuse a store that was changed since :attr:`digest` was asked for.

        Raises
        ------
        DataError
        """
        if (now := type(self)(self.url).digest) != self.digest:
            raise changed_input(self.url, self.digest, now)

    def attributes(self, name: str) -> Mapping[str, Any]:
        """Return what a variable says of itself."""
        return self._array(name).attrs

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """Return the cells along x, y and z that one shard or chunk of a variable covers."""
        array = self._array(name)
        return self._layouts[name].cells(array.shards or array.chunks)

    def missing_chunks(self, name: str) -> tuple[int, int]:
        """Return how many chunks of a variable are not stored and read as 0, and of how many."""
        array = self._array(name)
        if np.isnan(array.fill_value):
            return 0, array.nchunks
        with storage_errors(self.url), damage(f"{self.url}, {name}"):
            return array.nchunks - array.nchunks_initialized, array.nchunks

    def smoothing_scales(self) -> list[float]:
        """Return the Gaussian radii of the stored ``linear_velocity``, Mpc/h.

        A scale that a run began and did not finish is NaN, which equals no radius.
        """
        if "linear_velocity" not in self.variables or SMOOTHING not in self._group:
            return []
        with storage_errors(self.url), damage(f"{self.url}, {SMOOTHING}"):
            return [float(radius) for radius in np.asarray(self._group[SMOOTHING][:])]  # type: ignore[index]

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
            The variable.
        block : Block
            May reach past the grid: it wraps.
        lead : tuple of int
            Indices into leading dimensions to fix, such as the smoothing scale.

        Returns
        -------
        (nx, ny, nz) or (3, nx, ny, nz) float32

        Raises
        ------
        DataError
            A chunk is damaged or holds values that are not finite.
        """
        array = self._array(name)
        # A flow that was added after the store was opened is in cosmoflow's own layout.
        layout = self._layouts.get(name) or find_layout(array, name, self.url, self._orders)
        shape = layout.parts(array.shape, len(lead))

        def read(part: tuple[slice, ...]) -> NDArray[np.float32]:
            return layout.read(array, lead, part)

        place = f"{self.url}, {name}, block of {block.shape} cells from {block.origin}"
        with storage_errors(self.url), damage(place):
            values = read_periodic(read, shape, block, self.grid, fresh=True)
        # Plane after plane: a mask of all would take a quarter as much memory again.
        if not all(np.isfinite(plane).all() for plane in values.reshape(-1, *values.shape[-2:])):
            self._check_region(block, place)
            raise DataError(
                "the field holds values that are not finite",
                where=place,
                value=f"{int((~np.isfinite(values)).sum())} cells",
                remedy=self._remedy(name),
            )
        if not self.own and name in _VELOCITIES:
            fastest = max(float(values.max()), -float(values.min()))
            if fastest > SPEED_OF_LIGHT:
                raise DataError(
                    "the velocity is above the speed of light",
                    where=place,
                    value=f"{fastest:g} km/s",
                    limit=f"{SPEED_OF_LIGHT:g} km/s",
                    remedy="velocities are in km/s: convert them, and say so in `units`",
                )
        return values

    def _remedy(self, name: str) -> str:
        """Return what to do about a variable that is damaged."""
        if name in FLOWS:
            # Added to a store by whoever reads them; what else it holds is good.
            return f"delete {join(self.url, name)}: the next run that needs it makes it again"
        stage = self.metadata.provenance.get("stage")
        return f"make the store anew: run {stage} with --overwrite" if stage else "make it anew"

    def _check_region(self, block: Block, place: str) -> None:
        """Refuse cells outside of the region that the store holds."""
        region = self.region
        if region is None:
            return
        low, high = np.array(region.origin), np.add(region.origin, region.shape)
        if (low > block.origin).any() or (np.add(block.origin, block.shape) > high).any():
            raise DataError(
                "the store holds a region of the box only",
                where=place,
                limit=f"cells from {region.origin} to {tuple(high.tolist())}",
                remedy="predict the whole box: run infer without --region",
            )

    def read(self, name: str, *, lead: tuple[int, ...] = ()) -> NDArray[np.float32]:
        """Read a whole variable."""
        whole = Block((0, 0, 0), (self.grid, self.grid, self.grid))
        return self.read_block(name, whole, lead=lead)


def open_fields(url: str, *, shards: bool = True) -> xr.Dataset:
    """Open a fields store as a lazy xarray dataset; of its region, if it holds no more.

    Parameters
    ----------
    url : str
        Of the store.
    shards : bool
        Make one Dask chunk of every shard, which is what a task should read at once; otherwise the
        chunks follow the store's much smaller inner chunks.

    Returns
    -------
    xr.Dataset
        Attributes with parts, such as ``cosmology`` and ``provenance``, are JSON text, as netCDF
        needs them to be.
    """
    store = FieldStore(url)
    size = store.shard
    chunks: dict[str, int] = {}
    if shards:
        chunks = {"x": size, "y": size, "z": size}
        chunks |= {dimension: len(labels) for dimension, labels in LABELS.items()}
    dataset: xr.Dataset = xr.open_zarr(
        zarr_store(url, read_only=True), consolidated=False, chunks=chunks
    )
    # How it is stored would keep a changed or rechunked dataset from being written elsewhere.
    dataset = canonical(dataset, store.variables, store.metadata.box_size).drop_encoding()
    dataset.attrs = flat_attributes(dataset.attrs)
    if (region := store.region) is None:
        return dataset
    axes = zip("xyz", region.origin, region.shape, strict=True)
    return dataset.isel({axis: slice(first, first + length) for axis, first, length in axes})


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
    url : str
        Of the store.
    metadata : BoxMetadata
        Its attributes.
    grid, shard, chunk : int
        Cells per axis of the grid, of what one task writes, and of what one read needs.
    variables : tuple of str
        Names from :data:`cosmoflow.units.FIELD_UNITS`.
    existing : {"error", "resume", "overwrite"}
        What to do with an output that is there already.
    attributes : mapping of str to mapping, optional
        What the variables say of themselves beside their units.
    region : Block, optional
        The cells that it is to hold; none means all.

    Returns
    -------
    (shards,) bool
        Which shards, in the order of ``grid_blocks``, are finished already.
    """
    own = metadata.to_attributes("fields")
    if region is not None:
        axes = zip(region.origin, region.shape, strict=True)
        own[REGION] = [[first, first + length] for first, length in axes]
    with storage_errors(url):
        group, resumed = begin_group(url, own, existing)
        if resumed and _is_as_begun(group, variables, grid, shard):
            return Ledger(group, LEDGER).finished()
        write_coordinates(group, grid, metadata.box_size, variables)
        for name in variables:
            said = (attributes or {}).get(name)
            create_variable(group, name, grid, shard, chunk, attributes=said)
        ledger = Ledger.create(group, LEDGER, len(grid_blocks(grid, shard)))
        return ledger.finished()


def _is_as_begun(group: zarr.Group, variables: tuple[str, ...], grid: int, shard: int) -> bool:
    """Tell whether a store has all that an earlier run created; else its ledger means nothing."""
    ledger = group.get(f"{LEDGER_GROUP}/{LEDGER}")
    if not isinstance(ledger, zarr.Array) or ledger.shape != (len(grid_blocks(grid, shard)),):
        return False
    for name in variables:
        array = group.get(name)
        if not isinstance(array, zarr.Array) or array.shape[-3:] != (grid, grid, grid):
            return False
        if array.shards is None or array.shards[-1] != shard:
            return False
    return True


def write_block(
    url: str,
    block: Block,
    shard: int,
    fields: dict[str, NDArray[np.float32]],
    *,
    digest: str | None = None,
) -> None:
    """Write one whole shard of some variables, then mark it finished.

    Parameters
    ----------
    url : str
        Of a store that :func:`create_fields` made.
    block : Block
        The shard's cells.
    shard : int
        Its index in the ledger.
    fields : dict of str to array
        Values of shape ``(..., *block.shape)``.
    digest : str, optional
        Of the run whose shard it is: what another one has begun anew there is left alone.

    Raises
    ------
    SupersededError
        The store is another run's by now.
    DataError
        A value is not finite; nothing is written.
    """
    cells = tuple(
        slice(origin, origin + length)
        for origin, length in zip(block.origin, block.shape, strict=True)
    )
    with writing_shard(url, LEDGER, shard, digest) as group:
        for name, values in fields.items():
            check_finite(values, group, f"{url}, {name}", block)
        for name, values in fields.items():
            array: Any = group[name]
            # Looking for chunks that need not be written takes as long as writing them.
            array.with_config({"write_empty_chunks": True})[(..., *cells)] = values


def write_whole(url: str, name: str, values: NDArray[np.float32]) -> None:
    """Write all of a variable at once, in the one process that writes to the store.

    Raises
    ------
    DataError
        A value is not finite; nothing is written.
    """
    group = open_group_for_writing(url)
    check_finite(values, group, f"{url}, {name}")
    with storage_errors(url):
        array: Any = group[name]
        array[:] = values


def finished_shards(url: str) -> NDArray[np.bool_]:
    """Return which shards of an output are finished."""
    with storage_errors(url):
        return Ledger(open_group(url), LEDGER).finished()
