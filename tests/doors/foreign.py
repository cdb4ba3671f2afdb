"""A box as users of xarray write it, for the tests of what is made of such stores."""

import numpy as np
import xarray as xr

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
