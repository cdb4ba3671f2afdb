"""Spectra as xarray datasets, stored as zarr or netCDF."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from cosmoflow.numerics.spectra import POLES, PowerSum, jackknife
from cosmoflow.storage.metadata import COMPLETE, INCOMPLETE, STATUS, BoxMetadata
from cosmoflow.storage.outputs import Existing, begin_group, finish_group
from cosmoflow.storage.urls import (
    damage,
    local_path,
    open_group_for_writing,
    remove,
    storage_errors,
    write_bytes,
    zarr_store,
)
from cosmoflow.storage.variables import COMPRESSORS
from cosmoflow.units import DIMENSIONLESS, WAVENUMBER

FORMAT = "cosmoflow/spectra"

Floats = NDArray[np.float64]


def describe_spectra(
    sums: Sequence[PowerSum],
    fields: Sequence[tuple[str, str]],
    metadata: BoxMetadata,
    *,
    attributes: Mapping[str, Any],
    averaged: bool = False,
) -> xr.Dataset:
    """Return spectra as a dataset.

    Parameters
    ----------
    sums : sequence of PowerSum
        Sums of the box, or of each sub-box.
    fields : sequence of (str, str)
        Name and unit of the field, or of the two fields of a cross spectrum.
    attributes : mapping
        Further attributes of the dataset.
    averaged : bool
        Whether the sums are of sub-boxes; then the dataset has means, their jackknife errors, and
        the power of each sub-box.

    Returns
    -------
    xr.Dataset
        See :func:`cosmoflow.stages.spectra.command.spectra`.
    """
    first, last = fields[0], fields[-1]
    crossed = len(fields) > 1
    total = sums[0]
    for one in sums[1:]:
        total = total + one
    poles = total.products.shape[1]
    dims = ("k",) if poles == 1 else ("pole", "k")
    unit = first[1] if first == last else f"{first[1]} {last[1]}"
    units = f"({unit})^2 (Mpc/h)^3" if first == last else f"{unit} (Mpc/h)^3"
    pair = (0, 1) if crossed else (0, 0)

    def power(of: PowerSum) -> Floats:
        values = np.stack([of.power(*pair, pole) for pole in POLES[:poles]])
        return values[0] if poles == 1 else values

    names = f"{first[0]} and {last[0]}" if crossed else first[0]
    shown: dict[str, tuple[Callable[[PowerSum], Floats], tuple[str, ...], str, str]] = {
        "power": (power, dims, units, f"power of {names}"),
    }
    if crossed:
        shown |= {
            "power_first": (
                lambda one: one.power(0), ("k",), f"({first[1]})^2 (Mpc/h)^3",
                f"power of {first[0]}",
            ),
            "power_second": (
                lambda one: one.power(1), ("k",), f"({last[1]})^2 (Mpc/h)^3",
                f"power of {last[0]}",
            ),
            "transfer": (
                lambda one: one.spectrum(0, 1).transfer, ("k",), DIMENSIONLESS,
                "T(k): power of the second over that of the first",
            ),
            "correlation": (
                lambda one: one.spectrum(0, 1).correlation, ("k",), DIMENSIONLESS,
                "r(k): cross power over the root of the product of the powers",
            ),
        }  # fmt: skip
    variables: dict[str, Any] = {}
    for name, (statistic, dimensions, own, label) in shown.items():
        value, error = jackknife(sums, statistic)
        variables[name] = (dimensions, value, {"units": own, "long_name": label})
        if averaged:
            long_name = f"jackknife error of {label}"
            variables[f"{name}_error"] = (dimensions, error, {"units": own, "long_name": long_name})
    if averaged:
        each = np.stack([power(one) for one in sums])
        labels = {"units": units, "long_name": f"power of {names} in each sub-box"}
        variables["box_power"] = (("box", *dims), each, labels)
    counted = {"units": DIMENSIONLESS, "long_name": "number of modes"}
    variables["modes"] = ("k", total.modes, counted)
    edges = total.bins.edges
    bins = {"units": WAVENUMBER, "long_name": "lowest and highest wavenumber of the bin"}
    variables["k_bounds"] = (("k", "bound"), np.stack([edges[:-1], edges[1:]], axis=1), bins)
    described = {
        "units": WAVENUMBER,
        "long_name": "k",
        "description": "mean wavenumber of the bin's modes",
        "bounds": "k_bounds",
    }
    dataset = xr.Dataset(
        variables,
        coords={"k": ("k", total.mean_k, described)},
        attrs={
            "format": FORMAT,
            "format_version": 1,
            "box_size": metadata.box_size,
            "redshift": metadata.redshift,
            "side": total.bins.box_size,
            "boxes": len(sums),
            "nyquist": math.pi * total.bins.cells / total.bins.box_size,
            **attributes,
            STATUS: INCOMPLETE,
        },
    )
    return dataset if poles == 1 else dataset.assign_coords(pole=list(POLES[:poles]))


def is_netcdf(out: str) -> bool:
    """Return whether an output is netCDF: a local file whose name ends in ``.nc``."""
    path = local_path(out)
    return path is not None and path.suffix == ".nc"


def write_netcdf(dataset: xr.Dataset, out: str, provenance: Mapping[str, Any]) -> None:
    """Write spectra as a netCDF file in one step, so that a partial file never exists."""
    path = local_path(out)
    if path is None:
        raise ValueError(f"not a local file: {out}")
    flat = dataset.assign_attrs(provenance=str(provenance["digest"]))
    flat.attrs[STATUS] = COMPLETE
    with storage_errors(out):
        content = np.asarray(flat.to_netcdf(engine="scipy")).tobytes()
        write_bytes(str(path.parent), path.name, content)


def begin_spectra(out: str, provenance: Mapping[str, Any], existing: Existing) -> bool:
    """Begin a store of spectra, marked incomplete, or continue one of the same run.

    Returns
    -------
    bool
        Whether the run to continue has finished already. Nothing is written then.

    Raises
    ------
    OutputExistsError, ConfigError
        The output exists and may neither be replaced nor resumed.
    """
    attributes = {"format": FORMAT, "format_version": 1, "provenance": dict(provenance)}
    group, resumed = begin_group(out, attributes, existing)
    if not resumed:
        return False
    if group.attrs.get(STATUS) == COMPLETE and {"k", "power"} <= {*group.array_keys()}:
        return True
    # The only result was not written, so there is nothing to continue.
    remove(out)
    begin_group(out, attributes, "error")
    return False


def read_spectra(out: str) -> xr.Dataset:
    """Return the spectra of a complete store, in memory.

    Raises
    ------
    StorageError, DataError
    """
    with storage_errors(out), damage(out):
        store = zarr_store(out, read_only=True)
        found: xr.Dataset = xr.open_zarr(store, consolidated=False).load()
    # A new result has no provenance either: netCDF has no place for it.
    del found.attrs["provenance"]
    return found


def write_spectra(dataset: xr.Dataset, out: str, provenance: Mapping[str, Any]) -> None:
    """Write spectra to a store of :func:`begin_spectra`, and mark it as complete."""
    dataset = dataset.assign_attrs(provenance=dict(provenance))
    encoding = {name: {"compressors": COMPRESSORS} for name in dataset.variables}
    with storage_errors(out):
        # The attributes of the group are replaced by those of the dataset.
        store = zarr_store(out, read_only=False)
        dataset.to_zarr(store, mode="a", consolidated=False, zarr_format=3, encoding=encoding)
        finish_group(open_group_for_writing(out))
