"""Painting options against linear theory."""

import numpy as np
import pytest
import xarray as xr

from cosmoflow.config import CosmologyConfig
from cosmoflow.cosmology.background import Background
from cosmoflow.storage.metadata import BoxMetadata
from cosmoflow.storage.particles import store_particles
from tests.cases import each

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


@each("axis", ["x", "z"])
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


def test_interlacing_removes_the_nearest_aliases(tmp_path, cosmoflow):
    """A plane wave two modes beyond the sampling frequency folds onto mode 2 of a single grid."""
    grid, box, waves = 16, 32.0, 18
    k = 2.0 * np.pi * waves / box
    lines = [(np.arange(count) + 0.5) * (box / count) for count in (512, grid, grid)]
    position = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 3)
    position[:, 0] = (position[:, 0] + 0.05 * np.sin(k * position[:, 0])) % box
    metadata = BoxMetadata(box, 0.0, CosmologyConfig(), 1e10, {"digest": "a wave"})
    particles = str(tmp_path / "wave.zarr")
    store_particles(
        particles, position.astype(np.float32), np.ones_like(position, np.float32), metadata
    )
    powers = {}
    for interlaced in ("false", "true"):
        out = tmp_path / f"{interlaced}.zarr"
        code, _, err = cosmoflow(
            "paint", particles, out, f"--grid={grid}", "--engine=serial",
            "--set=paint.fields=[density]", f"--set=paint.interlaced={interlaced}",
        )  # fmt: skip
        assert code == 0, err
        spectrum = tmp_path / f"{interlaced}.nc"
        code, _, err = cosmoflow("spectra", out, "--out", spectrum, "--field=density")
        assert code == 0, err
        found = xr.open_dataset(spectrum, engine="scipy")
        assert found.attrs["interlaced"] == ("density" if interlaced == "true" else "none")
        powers[interlaced] = found["power"].values[1]
    assert set(xr.open_zarr(tmp_path / "true.zarr", consolidated=False)) == {
        "density", "interlaced_density",
    }  # fmt: skip
    amplitude = k * 0.05 / 2.0 * np.sinc(waves / grid) ** 2  # of the mode, in linear theory
    expected = box**3 * amplitude**2 * 2.0 / found["modes"].values[1] / np.sinc(2 / grid) ** 4
    assert powers["false"] == pytest.approx(expected, rel=0.05)
    assert powers["true"] < 1e-4 * powers["false"]
