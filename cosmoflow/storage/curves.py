"""The curves of an evaluation as an xarray dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from cosmoflow.numerics.comparison import Comparison
from cosmoflow.numerics.distributions import AXES, JOINT, ONE_POINT
from cosmoflow.storage.metadata import INCOMPLETE, STATUS, BoxMetadata
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.urls import (
    exists,
    open_group_for_writing,
    remove,
    storage_errors,
    zarr_store,
)
from cosmoflow.storage.variables import COMPRESSORS
from cosmoflow.units import DIMENSIONLESS, LENGTH, VELOCITY, WAVENUMBER

Floats = NDArray[np.float64]
Variable = tuple[tuple[str, ...], NDArray[Any], dict[str, str]]

_POWER = "field units squared times (Mpc/h)^3"
_CURVES: Final = {
    "power": (_POWER, "power of the prediction"),
    "T": (DIMENSIONLESS, "T(k): predicted over true power"),
    "r": (DIMENSIONLESS, "r(k): cross-correlation of prediction and truth"),
}
_NAMES: Final = {"power": "power", "T": "transfer", "r": "correlation"}


def describe_curves(
    comparison: Comparison, metadata: BoxMetadata, provenance: Mapping[str, Any]
) -> xr.Dataset:
    """Return every curve of a comparison.

    Parameters
    ----------
    comparison : Comparison
        Results of the evaluation.
    metadata : BoxMetadata
        Metadata of the truth.
    provenance : mapping
        Provenance of the run.

    Returns
    -------
    xr.Dataset
        ``power``, ``transfer``, ``correlation`` over ``prediction``, ``quantity`` and ``k``, the
        same with ``subbox_`` and ``_error`` over ``subbox_quantity`` and ``k_subbox`` where the box
        has sub-boxes; ``residual_rms`` over ``log_density``; counts of cells, ``speed_count`` and
        the like, over the bins of each axis; ``residual_map``.
    """
    found = comparison.metrics
    methods = list(comparison.methods)
    variables: dict[str, Variable] = {}
    coordinates: dict[str, Any] = {"prediction": _names(methods)}
    full, box = found["spectra"]["full"], found["spectra"]["subbox"]
    for variable in _spectra(full["quantities"], methods, "", "quantity", "k"):
        variables |= variable
    coordinates["quantity"] = _names(full["quantities"])
    coordinates["k"] = _wavenumbers(full["quantities"], "k")
    if box is not None:
        for variable in _spectra(
            box["quantities"], methods, "subbox_", "subbox_quantity", "k_subbox"
        ):
            variables |= variable
        coordinates["subbox_quantity"] = _names(box["quantities"])
        coordinates["k_subbox"] = _wavenumbers(box["quantities"], "k_subbox")
    variables |= _by_density(found["by_density"], methods)
    edges = _array(found["by_density"]["log10_density_edges"])
    coordinates["log_density"] = (
        "log_density", 0.5 * (edges[1:] + edges[:-1]),
        {"units": DIMENSIONLESS, "long_name": "log10 of the density over its mean"},
    )  # fmt: skip
    more, centres = _distributions(found["distributions"], methods)
    variables |= more
    coordinates |= centres
    maps = np.stack([comparison.residual_map[name] for name in methods])
    described = {"units": VELOCITY, "long_name": "rms residual over columns along z"}
    variables["residual_map"] = (("prediction", "map_x", "map_y"), maps, described)
    width = comparison.box_size / maps.shape[-1]
    for axis in ("map_x", "map_y"):
        centre = (np.arange(maps.shape[-1]) + 0.5) * width
        coordinates[axis] = (
            axis, centre, {"units": LENGTH, "long_name": f"comoving {axis[-1]} of the column"},
        )  # fmt: skip
    attributes = metadata.to_attributes("curves") | {"provenance": dict(provenance)}
    return xr.Dataset(variables, coordinates, {**attributes, STATUS: INCOMPLETE})


def write_curves(
    comparison: Comparison, url: str, metadata: BoxMetadata, provenance: Mapping[str, Any]
) -> None:
    """Write every curve of a comparison to a zarr store, and mark it as complete.

    Parameters
    ----------
    comparison : Comparison
        Results of the evaluation.
    url : str
        URL of the store; an existing one is replaced.
    metadata : BoxMetadata
        Metadata of the truth.
    provenance : mapping
        Provenance of the run.

    Raises
    ------
    StorageError
        The store cannot be written.
    """
    dataset = describe_curves(comparison, metadata, provenance)
    if exists(url):
        remove(url)
    numbers = [name for name, array in dataset.variables.items() if array.dtype.kind in "if"]
    with storage_errors(url):
        dataset.to_zarr(
            zarr_store(url, read_only=False), mode="w", consolidated=False, zarr_format=3,
            encoding={name: {"compressors": COMPRESSORS} for name in numbers},
        )  # fmt: skip
        finish_group(open_group_for_writing(url))


def _names(names: Iterable[str]) -> NDArray[np.object_]:
    """Return names as an array that zarr stores as strings of any length."""
    return np.array(list(names), dtype=object)


def _array(values: Sequence[Any]) -> Floats:
    """Return numbers as an array, with NaN for None."""
    return np.array(values, np.float64)


def _wavenumbers(quantities: Mapping[str, Any], dimension: str) -> Any:
    first = next(iter(quantities.values()))
    attributes = {"units": WAVENUMBER, "long_name": "mean wavenumber of the bin's modes"}
    return dimension, _array(first["k"]), attributes


def _spectra(
    quantities: Mapping[str, Any], methods: Sequence[str], prefix: str, quantity: str, k: str
) -> Iterator[dict[str, Variable]]:
    """Yield the curves of the whole box, or of the sub-boxes."""
    all_found = quantities.values()
    first = next(iter(all_found))
    counted = {"units": DIMENSIONLESS, "long_name": "number of modes"}
    yield {f"{prefix}modes": ((k,), _array(first["modes"]), counted)}
    described = {"units": _POWER, "long_name": "power of the truth"}
    for key, name in (("truth", "power_truth"), ("truth_error", "power_truth_error")):
        if first.get(key) is not None:
            label = _label(described, key)
            values = np.stack([_array(one[key]) for one in all_found])
            yield {f"{prefix}{name}": ((quantity, k), values, label)}
    for curve, (units, long_name) in _CURVES.items():
        for key in (curve, f"{curve}_error"):
            if first["methods"][methods[0]].get(key) is None:
                continue
            values = np.array(
                [[_array(one["methods"][m][key]) for one in all_found] for m in methods]
            )
            label = _label({"units": units, "long_name": long_name}, key)
            name = key.replace(curve, _NAMES[curve], 1)
            yield {f"{prefix}{name}": (("prediction", quantity, k), values, label)}


def _label(described: dict[str, str], key: str) -> dict[str, str]:
    if not key.endswith("_error"):
        return described
    return described | {"long_name": f"jackknife error of {described['long_name']}"}


def _by_density(found: Mapping[str, Any], methods: Sequence[str]) -> dict[str, Variable]:
    residual = np.stack([_array(found["methods"][name]) for name in methods])
    return {
        "density_cells": (
            ("log_density",), _array(found["cells"]),
            {"units": DIMENSIONLESS, "long_name": "cells of the bin"},
        ),
        "truth_rms": (
            ("log_density",), _array(found["truth"]),
            {"units": VELOCITY, "long_name": "rms true velocity"},
        ),
        "residual_rms": (
            ("prediction", "log_density"), residual,
            {"units": VELOCITY, "long_name": "rms residual velocity"},
        ),
    }  # fmt: skip


def _distributions(
    found: Mapping[str, Any], methods: Sequence[str]
) -> tuple[dict[str, Variable], dict[str, Any]]:
    """Return counts of cells in the bins of each axis, and the bins."""
    variables: dict[str, Variable] = {}
    coordinates: dict[str, Any] = {}
    for axis, edges in found["edges"].items():
        units = AXES[axis].unit or DIMENSIONLESS
        for end, values in (("low", edges[:-1]), ("high", edges[1:])):
            label = {"units": units, "long_name": f"{end} edge of the bin of {axis}"}
            coordinates[f"{axis}_{end}"] = (f"{axis}_bin", _array(values), label)
    for name in (*ONE_POINT, *JOINT):
        axes = JOINT.get(name, (name,))
        dims = tuple(f"{axis}_bin" for axis in axes)
        label = {"units": DIMENSIONLESS, "long_name": f"cells by {' and '.join(axes)}"}
        own = np.stack([np.array(found["methods"][method][name], np.int64) for method in methods])
        variables[f"{name}_count"] = (("prediction", *dims), own, label)
        truth = label | {"long_name": f"{label['long_name']}, of the truth"}
        variables[f"{name}_count_truth"] = (dims, np.array(found["truth"][name], np.int64), truth)
    return variables, coordinates
