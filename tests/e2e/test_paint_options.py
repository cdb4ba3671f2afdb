"""Painting options against linear theory."""

import numpy as np
import pytest
import xarray as xr

from cosmoflow.config import CosmologyConfig
from cosmoflow.cosmology.background import Background

pytestmark = pytest.mark.e2e

GRID, BOX = 48, 2000.0


@pytest.fixture(scope="module")
def particles(tmp_path_factory):
    """A box whose modes are all linear, at z = 1 so that powers of a matter."""
    from cosmoflow.cli.app import run_app

    path = tmp_path_factory.mktemp("linear") / "particles.zarr"
    arguments = [f"--box={BOX}", "--particles=64", "--method=2lpt", "--redshift=1", "--quiet"]
    assert run_app(["simulate", str(path), *arguments, "--engine=serial"]) == 0
    return path


def density_modes(particles, out, cosmoflow, *options):
    code, _, err = cosmoflow("paint", particles, out, f"--grid={GRID}", "--engine=serial", *options)
    assert code == 0, err
    return np.fft.fftn(xr.open_zarr(out, consolidated=False)["density"].values)


@pytest.mark.parametrize("axis", ["x", "z"])
def test_redshift_space_squashes_as_kaiser_says(particles, tmp_path, cosmoflow, axis):
    """delta_s = (1 + f mu^2) delta, mode by mode on the largest scales (Kaiser 1987)."""
    real = density_modes(particles, tmp_path / "real.zarr", cosmoflow)
    option = f"--set=paint.redshift_space={axis}"
    redshift = density_modes(particles, tmp_path / "redshift.zarr", cosmoflow, option)
    m = np.stack(np.meshgrid(*(np.fft.fftfreq(GRID, 1.0 / GRID),) * 3, indexing="ij"))
    length = np.sqrt((m**2).sum(axis=0))
    along = np.abs(m["xyz".index(axis)]) / np.maximum(length, 1.0)
    f = Background(CosmologyConfig()).growth_rate(0.5)
    for low, high in ((0.0, 0.2), (0.5, 0.7), (0.9, 1.0)):
        chosen = (length > 0) & (length <= 6) & (along >= low) & (along <= high)
        ratio = (redshift[chosen] * real[chosen].conj()).real.sum()
        ratio /= (np.abs(real[chosen]) ** 2).sum()
        expected = 1.0 + f * (along[chosen] ** 2).mean()
        assert ratio == pytest.approx(expected, abs=0.03)
