"""A cube of white noise that a user gives is white, or is refused."""

import numpy as np
import pytest

from cosmoflow.errors import DataError
from cosmoflow.numerics import fourier, initial
from tests.cases import each


def coloured(cells, slope, seed=0):
    """Return Gaussian noise of unit variance with power proportional to k^slope."""
    modes = np.fft.rfftn(np.random.default_rng(seed).normal(size=(cells,) * 3))
    k = np.fft.fftfreq(cells)
    k2 = k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, : cells // 2 + 1] ** 2
    k2[0, 0, 0] = 1.0
    noise = np.fft.irfftn(modes * k2 ** (slope / 4), (cells,) * 3, (0, 1, 2))
    return (noise / noise.std()).astype(np.float32)


@each("slope", [-2.0, -1.0, 1.0])
def test_noise_with_a_spectrum_is_refused(serial_run, tmp_path, slope):
    import cosmoflow

    np.save(tmp_path / "noise.npy", coloured(32, slope))
    run = serial_run(
        simulate={
            "box_size": 64.0, "particles": 32, "steps": 2,
            "white_noise": str(tmp_path / "noise.npy"),
        }
    )  # fmt: skip
    with pytest.raises(DataError, match="not white"):
        cosmoflow.simulate(str(tmp_path / "out.zarr"), run)
    assert not (tmp_path / "out.zarr").exists()


@each("cells", [4, 6, 10, 14, 16, 32])
@each("seed", range(5))
def test_white_noise_passes(cells, seed):
    noise = np.random.default_rng(seed).normal(size=(cells,) * 3).astype(np.float32)
    initial.check_flat_power(noise)


@each("cells", [8, 32])
def test_our_own_white_noise_passes(cells):
    modes = initial.white_noise_modes(cells, 3)
    noise = fourier.inverse(modes * float(cells) ** 1.5, cells).numpy()
    initial.check_flat_power(noise)
