"""Shear against flows whose gradients are known, and its eigenvalues against LAPACK."""

import math
from functools import partial

import numpy as np
import torch

from cosmoflow.numerics import calculus, fourier
from cosmoflow.numerics.deformation import (
    PAIRS,
    cell_strain,
    strain_modes,
    symmetric_eigenvalues,
)
from tests.cases import each

BOX = 50.0


def plane_wave(cells, m, amplitude):
    """``A sin(k x + phase)`` at the centres of the cells, float64, and the cosine beside it."""
    x = (torch.arange(cells, dtype=torch.float64) + 0.5) * BOX / cells
    x, y, z = torch.meshgrid(x, x, x, indexing="ij")
    k = 2.0 * math.pi / BOX * np.array(m)
    argument = k[0] * x + k[1] * y + k[2] * z + 0.3
    v = torch.tensor(amplitude, dtype=torch.float64).view(3, 1, 1, 1) * torch.sin(argument)
    return v, k, torch.cos(argument).numpy()


def shear_of_wave(k, amplitude, slope):
    """Eigenvalues of ``(k A + A k) / 2`` times the cosine: ``(k.A -+ |k||A|) / 2`` and 0."""
    dot, norms = np.dot(k, amplitude), np.linalg.norm(k) * np.linalg.norm(amplitude)
    values = [0.5 * (dot - norms), 0.0, 0.5 * (dot + norms)]
    return np.sort(np.stack([value * slope for value in values]), axis=0)


def haloed(field, halo=1):
    return torch.from_numpy(np.pad(field.numpy(), [(0, 0), *[(halo, halo)] * 3], mode="wrap"))


def inner(operation, v, cell):
    """Differentiate a block with a halo of one cell."""
    return operation(v, partial(calculus.inner_difference, cell=cell))


def linear_flow(matrix, shape=(4, 5, 6), cell=2.0):
    """``v_i = M_ij x_j`` on a block with a halo of one cell."""
    x = (np.indices([n + 2 for n in shape]) + 100.5) * cell
    return torch.from_numpy(np.einsum("ij,jxyz->ixyz", matrix, x)), cell


def tensors(values):
    """From ``(..., 6)`` to ``(..., 3, 3)``."""
    full = np.zeros((*values.shape[1:], 3, 3))
    for row, (i, j) in zip(values, PAIRS, strict=True):
        full[..., i, j] = full[..., j, i] = row
    return full


WAVES = [((1, 0, 0), (1.0, 0.0, 0.0)), ((2, -1, 3), (3.0, 1.0, -2.0)), ((0, 4, 1), (0.0, 1.0, 0.5))]


@each(("m", "amplitude"), WAVES)
def test_shear_of_a_plane_wave_by_differences_has_the_exact_damping(m, amplitude):
    v, k, slope = plane_wave(16, m, amplitude)
    h = BOX / 16
    found = symmetric_eigenvalues(inner(cell_strain, haloed(v), h).numpy())
    expected = shear_of_wave(np.sin(k * h) / h, amplitude, slope)
    np.testing.assert_allclose(found, expected, atol=2e-7 * np.abs(expected).max())


@each("cells", [12, 15])
@each(("m", "amplitude"), WAVES)
def test_spectral_shear_of_a_plane_wave_is_exact(cells, m, amplitude):
    v, k, slope = plane_wave(cells, m, amplitude)
    modes = fourier.forward(v)
    strain = strain_modes(modes, calculus.odd_wavenumbers(modes, BOX))
    found = np.stack([fourier.inverse(one, cells).numpy() for one in strain])
    found = symmetric_eigenvalues(found.astype(np.float32))
    expected = shear_of_wave(k, amplitude, slope)
    np.testing.assert_allclose(found, expected, atol=2e-7 * np.abs(expected).max())


def test_expansion_has_three_equal_eigenvalues():
    v, cell = linear_flow(70.0 * np.eye(3))
    found = symmetric_eigenvalues(inner(cell_strain, v, cell).numpy())
    assert found.shape == (3, 4, 5, 6)
    np.testing.assert_allclose(found, 70.0, rtol=1e-6)
    np.testing.assert_allclose(inner(calculus.cell_divergence, v, cell), 210.0, rtol=1e-12)


def test_collapse_along_one_axis_is_the_first_eigenvalue():
    """The sign: matter that comes together along x has a negative eigenvalue."""
    v, cell = linear_flow(np.diag([-30.0, 10.0, 5.0]))
    found = symmetric_eigenvalues(inner(cell_strain, v, cell).numpy())[:, 0, 0, 0]
    np.testing.assert_allclose(found, [-30.0, 5.0, 10.0], rtol=1e-6)


def test_rotation_has_no_shear():
    """``v = spin x r`` has the curl ``2 spin`` and no more."""
    spin = np.array([3.0, -1.0, 2.0])
    v, cell = linear_flow(np.cross(spin, np.eye(3)).T)
    assert inner(cell_strain, v, cell).abs().max() < 1e-11
    assert inner(calculus.cell_divergence, v, cell).abs().max() < 1e-11
    curl = inner(calculus.cell_curl, v, cell)
    expected = 2.0 * spin.reshape(3, 1, 1, 1) * np.ones(curl.shape)
    np.testing.assert_allclose(curl, expected, atol=1e-11)


def test_a_linear_flow_has_the_symmetric_part_of_its_matrix():
    matrix = np.random.default_rng(1).normal(size=(3, 3))
    v, cell = linear_flow(matrix)
    expected = 0.5 * (matrix + matrix.T)
    found = tensors(inner(cell_strain, v, cell).numpy())
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-11)


def test_eigenvalues_add_up_to_the_divergence():
    v = torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(2))
    values = symmetric_eigenvalues(inner(cell_strain, v, 0.7).numpy())
    np.testing.assert_allclose(
        values.sum(axis=0), inner(calculus.cell_divergence, v, 0.7), atol=1e-5
    )


def random_tensors(kind):
    rng = np.random.default_rng(3)
    values = rng.normal(size=(6, 500)) * 10.0 ** rng.integers(-8, 8, 500)
    if kind == "diagonal":
        values[3:] = 0.0
    elif kind == "zero":
        values[:] = 0.0
    elif kind in ("two equal", "nearly equal"):
        axis = rng.normal(size=(3, 500))
        axis /= np.linalg.norm(axis, axis=0)
        nearly = 1e-6 * (kind == "nearly equal")
        values = np.stack(
            [axis[i] * axis[j] * 5.0 + (i == j) * (1.0 + nearly * i) for i, j in PAIRS]
        )
    elif kind == "one axis":
        values[1:] = 0.0
    return values.astype(np.float32)


@each("kind", ["random", "diagonal", "zero", "two equal", "nearly equal", "one axis"])
def test_eigenvalues_are_lapacks(kind):
    values = random_tensors(kind)
    expected = np.moveaxis(np.linalg.eigvalsh(tensors(values)), -1, 0)
    found = symmetric_eigenvalues(values)
    assert found.dtype == np.float32
    assert (np.diff(found, axis=0) >= 0.0).all()
    scale = np.abs(expected).max(axis=0)
    assert (np.abs(found - expected) <= 1.3e-7 * scale).all()
