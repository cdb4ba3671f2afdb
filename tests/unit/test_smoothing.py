"""The truncated Gaussian against its transform, and against itself in another block."""

import math

import numpy as np
import pytest
import torch

from cosmoflow.numerics import fourier
from cosmoflow.numerics.smoothing import (
    NARROWEST,
    gaussian_reach,
    gaussian_weights,
    smooth_block,
)
from tests.cases import each

RADII = [NARROWEST, 2.0, 3.7]
"""In cells of 1 Mpc/h."""


def periodic(field, weights):
    """Smooth a whole periodic box of cells of 1 Mpc/h."""
    return smooth_block(np.pad(field, len(weights) // 2, mode="wrap"), weights)


@each("radius", RADII)
def test_weights_are_a_normalised_gaussian(radius):
    weights = gaussian_weights(radius, 1.0)
    reach = gaussian_reach(radius, 1.0)
    assert len(weights) == 2 * reach + 1
    assert weights.sum() == pytest.approx(1.0, abs=1e-14)
    np.testing.assert_array_equal(weights, weights[::-1])
    ratio = weights[reach + 1] / weights[reach]
    assert ratio == pytest.approx(math.exp(-0.5 / radius**2), rel=1e-12)
    variance = (weights * np.arange(-reach, reach + 1) ** 2).sum()
    assert variance == pytest.approx(radius**2, rel=1e-3)


@each("radius", RADII)
@each("m", [(0, 0, 0), (1, 0, 0), (2, -3, 1), (0, 7, 0), (12, 0, 0)])
def test_a_plane_wave_is_damped_as_its_transform_says(radius, m):
    """The last wave is at the Nyquist frequency of 24 cells."""
    cells = 24
    k = 2.0 * np.pi / cells * np.array(m)
    x = np.indices((cells,) * 3) + 0.5
    wave = np.cos(np.einsum("i,ixyz->xyz", k, x) + 0.4).astype(np.float32)
    expected = math.exp(-0.5 * radius**2 * (k @ k)) * wave
    found = periodic(wave, gaussian_weights(radius, 1.0))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@each("radius", RADII)
def test_every_mode_of_noise_is_smoothed_as_in_fourier_space(radius):
    field = np.random.default_rng(1).normal(size=(20, 20, 20)).astype(np.float32)
    modes = fourier.forward(torch.from_numpy(field.astype(np.float64)))
    expected = fourier.smooth_gaussian(modes, 20.0, radius)
    found = np.fft.rfftn(periodic(field, gaussian_weights(radius, 1.0)).astype(np.float64))
    assert np.abs((found - expected.numpy()) / modes.numpy()).max() < 1e-4


def test_a_constant_stays():
    weights = gaussian_weights(3.0, 1.3)
    found = smooth_block(np.full((25, 26, 27), 7.25, np.float32), weights)
    np.testing.assert_array_equal(found, np.full((3, 4, 5), 7.25, np.float32))


def test_a_cell_does_not_depend_on_the_block():
    weights = gaussian_weights(2.0, 1.0)
    reach = len(weights) // 2
    field = np.random.default_rng(2).normal(size=(30, 37, 41)).astype(np.float32)
    whole = smooth_block(field, weights)
    x, y, z = slice(3, 8), slice(1, 17), slice(5, 18)
    part = field[tuple(slice(s.start, s.stop + 2 * reach) for s in (x, y, z))]
    np.testing.assert_array_equal(smooth_block(part, weights), whole[x, y, z])


def test_a_point_spreads_in_the_directions_alike():
    weights = gaussian_weights(1.5, 1.0)
    size = 2 * len(weights) - 1
    point = np.zeros((size,) * 3, np.float32)
    point[(size // 2,) * 3] = 1.0
    found = smooth_block(point, weights)
    expected = np.einsum("i,j,k->ijk", weights, weights, weights)
    np.testing.assert_allclose(found, expected, rtol=3e-7)
