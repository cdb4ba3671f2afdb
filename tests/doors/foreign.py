"""A box as users of xarray write it, plain or packed, for the tests of what is made of it."""

import numpy as np
import pytest
import xarray as xr

from cosmoflow.errors import CosmoflowError

GRID, BOX = 12, 24.0
ATTRIBUTES = {
    "format": "cosmoflow/fields",
    "format_version": 1,
    "box_size": BOX,
    "redshift": 0.0,
    "cosmology": {"h": 0.6777, "Omega_m": 0.31, "Omega_b": 0.05, "sigma8": 0.83, "n_s": 0.96},
}
CENTRES = (np.arange(GRID) + 0.5) * (BOX / GRID)


def fields(grid=GRID):
    """A density of mean 1 and a velocity in float32; no axis and no component is like another."""
    rng = np.random.default_rng(3)
    density = rng.lognormal(0.0, 0.5, (grid,) * 3)
    density /= density.mean()
    velocity = rng.normal(0.0, 200.0, (3, grid, grid, grid))
    return density.astype(np.float32), velocity.astype(np.float32)


def dataset(dtype="float32", **attributes):
    """The box as docs/stores.md describes a fields store."""
    density, velocity = fields()
    axes = {axis: (axis, CENTRES, {"units": "Mpc/h"}) for axis in "xyz"}
    return xr.Dataset(
        {
            "density": (("x", "y", "z"), density.astype(dtype), {"units": "1"}),
            "velocity": (("component", "x", "y", "z"), velocity.astype(dtype), {"units": "km/s"}),
        },
        {"component": list("xyz"), **axes},
        {**ATTRIBUTES, **attributes},
    )


def write(data, url, **options):
    """Write a dataset as a zarr store and return its URL."""
    data.to_zarr(url, **{"zarr_format": 3, "consolidated": False, **options})
    return str(url)


DENSITY, VELOCITY = fields()
VECTOR = xr.DataArray(
    VELOCITY, dims=("component", "x", "y", "z"), coords={"component": list("xyz")}
)
LOWEST = float(VELOCITY.min())
STEP = float(np.ptp(VELOCITY)) / 65000.0
UNSIGNED = np.round((VELOCITY - LOWEST) / STEP).astype("uint16").view("int16")
"""Packed as netCDF 3, which has no unsigned integers, wants it."""
PACKING = {"scale_factor": STEP, "add_offset": LOWEST, "_Unsigned": "true"}


def refused(call, *words):
    """Assert that a call is refused with these words, and not by a traceback."""
    with pytest.raises(CosmoflowError) as caught:
        call()
    assert caught.value.exit_code in (2, 3)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)
