"""The curves of an evaluation as an xarray dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
Variable = tuple[str | tuple[str, ...], NDArray[Any], dict[str, str]]

_POWER = "field units squared times (Mpc/h)^3"
_CURVES: Final = {
    "power": ("power", _POWER, "power of the prediction"),
    "T": ("transfer", DIMENSIONLESS, "T(k): predicted over true power"),
    "r": ("correlation", DIMENSIONLESS, "r(k): cross-correlation of prediction and truth"),
}
"""Name, unit and description of each curve of a method."""


def write_curves(
    comparison: Comparison, url: str, metadata: BoxMetadata, provenance: Mapping[str, Any]
) -> None:
    """Write every curve of a comparison to a zarr store, and mark it as complete.

    An existing store is replaced. The metadata are those of the truth.

    Raises
    ------
    StorageError
        The store cannot be written.

    Notes
    -----
    The store has ``power``, ``transfer``, ``correlation`` over ``prediction``, ``quantity`` and
    ``k``, the same with ``subbox_`` and ``_error`` over ``subbox_quantity`` and ``k_subbox`` where
    the box has sub-boxes; ``residual_rms`` over ``log_density``; ``residual_rms_by_particles`` over
    ``particles``, if their number is known; ``coverage_68``, ``coverage_95`` over ``log_density``
    and ``error_rms`` over ``expected_error``, if a prediction has expected errors; counts of cells,
    ``speed_count`` and the like, over the bins of each axis; ``residual_map``.
    """
    dataset = _describe(comparison).assign_attrs(
        {**metadata.to_attributes("curves"), "provenance": dict(provenance), STATUS: INCOMPLETE}
    )
    if exists(url):
        remove(url)
    numbers = [name for name, array in dataset.variables.items() if array.dtype.kind in "if"]
    encoding = {name: {"compressors": COMPRESSORS} for name in numbers}
    with storage_errors(url):
        store = zarr_store(url, read_only=False)
        dataset.to_zarr(store, mode="w", consolidated=False, zarr_format=3, encoding=encoding)
        finish_group(open_group_for_writing(url))


def _describe(comparison: Comparison) -> xr.Dataset:
    found = comparison.metrics
    methods = list(comparison.methods)
    variables: dict[str, Variable] = {}
    coordinates: dict[str, Any] = {"prediction": _names(methods)}
    for part, prefix in (("full", ""), ("subbox", "subbox_")):
        if found["spectra"][part] is not None:
            quantities = found["spectra"][part]["quantities"]
            quantity, k = f"{prefix}quantity", "k_subbox" if prefix else "k"
            variables |= _spectra(quantities, methods, prefix, quantity, k)
            coordinates[quantity] = _names(quantities)
            first = next(iter(quantities.values()))
            coordinates[k] = _variable(k, _array(first["k"]), WAVENUMBER, "k")
    variables |= _by_density(found["by_density"], methods)
    edges = _array(found["by_density"]["log10_density_edges"])
    coordinates["log_density"] = _variable(
        "log_density",
        0.5 * (edges[1:] + edges[:-1]),
        DIMENSIONLESS,
        "log10 of the density over its mean",
    )
    for more, bins in (_by_particles(found, methods), _errors(found, methods)):
        variables |= more
        coordinates |= bins
    more, bins = _distributions(found["distributions"], methods)
    variables |= more
    coordinates |= bins
    maps = np.stack([comparison.residual_map[name] for name in methods])
    variables["residual_map"] = _variable(
        ("prediction", "map_x", "map_y"), maps, VELOCITY, "rms residual over columns along z"
    )
    centres = (np.arange(maps.shape[-1]) + 0.5) * (comparison.box_size / maps.shape[-1])
    for axis in ("map_x", "map_y"):
        coordinates[axis] = _variable(axis, centres, LENGTH, f"comoving {axis[-1]} of the column")
    return xr.Dataset(variables, coordinates)


def _variable(
    dims: str | tuple[str, ...], values: NDArray[Any], units: str, long_name: str
) -> Variable:
    return dims, values, {"units": units, "long_name": long_name}


def _names(names: Iterable[str]) -> NDArray[np.object_]:
    """Return names as an array that zarr stores as strings of any length."""
    return np.array(list(names), dtype=object)


def _array(values: Sequence[Any]) -> Floats:
    """Return numbers as an array, with NaN for None."""
    return np.array(values, np.float64)


def _spectra(
    quantities: Mapping[str, Any], methods: Sequence[str], prefix: str, quantity: str, k: str
) -> dict[str, Variable]:
    """Return the curves of the whole box, or of the sub-boxes."""
    every = quantities.values()
    first = next(iter(every))
    modes = _variable(k, _array(first["modes"]), DIMENSIONLESS, "number of modes")
    curves = {f"{prefix}modes": modes}
    for key in ("truth", "truth_error"):
        if first.get(key) is not None:
            values = np.stack([_array(one[key]) for one in every])
            label = _label("power of the truth", key)
            curves[f"{prefix}power_{key}"] = _variable((quantity, k), values, _POWER, label)
    for curve, (name, units, long_name) in _CURVES.items():
        for key in (curve, f"{curve}_error"):
            if first["methods"][methods[0]].get(key) is not None:
                values = np.array(
                    [[_array(one["methods"][m][key]) for one in every] for m in methods]
                )
                curves[prefix + key.replace(curve, name, 1)] = _variable(
                    ("prediction", quantity, k), values, units, _label(long_name, key)
                )
    return curves


def _label(long_name: str, key: str) -> str:
    return f"jackknife error of {long_name}" if key.endswith("_error") else long_name


def _by_density(found: Mapping[str, Any], methods: Sequence[str]) -> dict[str, Variable]:
    density, residual = (
        "log_density",
        np.stack([_array(found["methods"][name]) for name in methods]),
    )
    return {
        "density_cells": _variable(
            density, _array(found["cells"]), DIMENSIONLESS, "cells of the bin"
        ),
        "truth_rms": _variable(density, _array(found["truth"]), VELOCITY, "rms true velocity"),
        "residual_rms": _variable(
            ("prediction", density), residual, VELOCITY, "rms residual velocity"
        ),
    }


def _by_particles(
    found: Mapping[str, Any], methods: Sequence[str]
) -> tuple[dict[str, Variable], dict[str, Variable]]:
    """Return the residuals in the bins of particles, and the bins; empty if there are none."""
    bins = found["by_particles"]
    if bins is None:
        return {}, {}
    own = np.stack([_array(bins["methods"][name]["residual"]) for name in methods])
    cells, truth = np.array(bins["cells"], np.int64), _array(bins["truth"])
    dim, suffix = "particles", "by the number of particles in the cell"
    return {
        "particles_cells": _variable(dim, cells, DIMENSIONLESS, "cells of the bin"),
        "truth_rms_by_particles": _variable(dim, truth, VELOCITY, f"rms true velocity, {suffix}"),
        "residual_rms_by_particles": _variable(
            ("prediction", dim), own, VELOCITY, f"rms residual velocity, {suffix}"
        ),
    }, {
        "particles_low": _variable(
            dim,
            _array(bins["particles"]),
            DIMENSIONLESS,
            "lower end of the bin of particles; the first bin holds the cells without any",
        )
    }


def _errors(
    found: Mapping[str, Any], methods: Sequence[str]
) -> tuple[dict[str, Variable], dict[str, Variable]]:
    """Return coverage and reliability of the expected errors, NaN for methods without them."""
    errors = found["errors"]
    if not errors:
        return {}, {}
    first = next(iter(errors.values()))

    def stack(part: str, key: str) -> Floats:
        missing = np.full(len(first[part][key]), np.nan)
        return np.stack(
            [_array(errors[name][part][key]) if name in errors else missing for name in methods]
        )

    variables = {
        key: _variable(
            ("prediction", "log_density"),
            stack("by_density", key),
            DIMENSIONLESS,
            f"share of components within the {key[-2:]} % interval",
        )
        for key in ("coverage_68", "coverage_95")
    }
    variables["error_rms"] = _variable(
        ("prediction", "expected_error"),
        stack("reliability", "rms"),
        VELOCITY,
        "rms of the components of the residual, by their expected error",
    )
    edges = _array(first["reliability"]["std_edges"])
    return variables, {
        "expected_error": _variable(
            "expected_error",
            np.sqrt(edges[1:] * edges[:-1]),
            VELOCITY,
            "size that 68.27 % of a component's errors should stay below, middle of the bin",
        )
    }


def _distributions(
    found: Mapping[str, Any], methods: Sequence[str]
) -> tuple[dict[str, Variable], dict[str, Variable]]:
    """Return counts of cells in the bins of each axis, and the bins."""
    variables: dict[str, Variable] = {}
    bins: dict[str, Variable] = {}
    for axis, edges in found["edges"].items():
        units = AXES[axis].unit or DIMENSIONLESS
        for end, values in (("low", edges[:-1]), ("high", edges[1:])):
            bins[f"{axis}_{end}"] = _variable(
                f"{axis}_bin", _array(values), units, f"{end} edge of the bin of {axis}"
            )
    for name in (*ONE_POINT, *JOINT):
        axes = JOINT.get(name, (name,))
        dims, label = tuple(f"{axis}_bin" for axis in axes), f"cells by {' and '.join(axes)}"
        own = np.array([found["methods"][method][name] for method in methods], np.int64)
        variables[f"{name}_count"] = _variable(("prediction", *dims), own, DIMENSIONLESS, label)
        truth = np.array(found["truth"][name], np.int64)
        variables[f"{name}_count_truth"] = _variable(
            dims, truth, DIMENSIONLESS, f"{label}, of the truth"
        )
    return variables, bins
