"""Derivatives against waves whose derivatives are known, and the identities of vector calculus."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from cosmoflow.numerics import calculus, fourier
from tests import derivatives
from tests.cases import each

BOX = 50.0


def coordinates(cells):
    x = (torch.arange(cells, dtype=torch.float64) + 0.5) * BOX / cells
    return torch.meshgrid(x, x, x, indexing="ij")


def wave(cells, m, phase=0.3):
    x, y, z = coordinates(cells)
    k = [2.0 * math.pi * i / BOX for i in m]
    argument = k[0] * x + k[1] * y + k[2] * z + phase
    return argument, k


def noise(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each("cells", [12, 15])
@each("m", [(1, 0, 0), (0, -2, 3), (4, 3, -5)])
def test_spectral_derivatives_of_a_plane_wave_are_exact(cells, m):
    argument, k = wave(cells, m)
    amplitude = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    v = amplitude.view(3, 1, 1, 1) * torch.sin(argument)
    slope = torch.cos(argument)
    k = torch.tensor(k, dtype=torch.float64)

    found = derivatives.divergence(v, BOX)
    torch.testing.assert_close(found, torch.dot(k, amplitude) * slope, rtol=0, atol=1e-12)

    expected = torch.linalg.cross(k, amplitude).view(3, 1, 1, 1) * slope
    torch.testing.assert_close(derivatives.curl(v, BOX), expected, rtol=0, atol=1e-12)

    expected = k.view(3, 1, 1, 1) * slope
    found = derivatives.gradient(torch.sin(argument), BOX)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@each("method", ["spectral", "difference"])
def test_identities_hold_for_noise(method):
    v = noise((3, 8, 8, 8))
    turning = derivatives.curl(v, BOX, method)
    assert turning.abs().max() > 0.1
    assert derivatives.divergence(turning, BOX, method).abs().max() < 1e-12

    slope = derivatives.gradient(v[0], BOX, method)
    assert slope.abs().max() > 0.1
    assert derivatives.curl(slope, BOX, method).abs().max() < 1e-12


def test_identities_hold_inside_a_cut_out_cube():
    v = noise((3, 9, 9, 9))
    turning = derivatives.curl(v, BOX, "difference", periodic=False)
    assert derivatives.divergence(turning, BOX, "difference", periodic=False).abs().max() < 1e-12


def test_divergence_of_gradient_is_the_laplacian_of_a_wave():
    argument, k = wave(16, (2, -1, 3))
    found = derivatives.divergence(derivatives.gradient(torch.sin(argument), BOX), BOX)
    expected = -sum(i * i for i in k) * torch.sin(argument)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_the_nyquist_wave_has_no_spectral_derivative():
    v = torch.zeros(3, 8, 8, 8, dtype=torch.float64)
    v[0] = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64).view(8, 1, 1)
    assert derivatives.divergence(v, BOX).abs().max() < 1e-14


@each("operation", [derivatives.divergence, derivatives.curl])
def test_differences_converge_with_second_order(operation):
    errors = []
    for cells in (16, 32):
        argument, _ = wave(cells, (1, 2, -1))
        v = torch.stack([torch.sin(argument), torch.cos(argument), torch.sin(argument + 1.0)])
        exact = operation(v, BOX)
        errors.append(float((operation(v, BOX, "difference") - exact).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.06)


def test_periodic_differences_of_a_wave_have_the_analytic_damping():
    cells, m = 16, (3, 0, 0)
    argument, k = wave(cells, m)
    h = BOX / cells
    found = derivatives.gradient(torch.sin(argument), BOX, "difference")
    expected = math.sin(k[0] * h) / h * torch.cos(argument)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-13)


def test_differences_in_a_cut_out_cube_are_numpys():
    v = noise((3, 7, 7, 7), seed=3)
    h = BOX / 7
    d = [[np.gradient(c, h, axis=a) for a in range(3)] for c in v.numpy()]
    found = derivatives.divergence(v, BOX, "difference", periodic=False).numpy()
    np.testing.assert_allclose(found, d[0][0] + d[1][1] + d[2][2], atol=1e-13)
    found = derivatives.curl(v, BOX, "difference", periodic=False).numpy()
    expected = [d[2][1] - d[1][2], d[0][2] - d[2][0], d[1][0] - d[0][1]]
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_leading_dimensions_are_a_batch():
    v = noise((2, 3, 6, 6, 6))
    for method in ("spectral", "difference"):
        found = derivatives.curl(v, BOX, method)
        torch.testing.assert_close(found[1], derivatives.curl(v[1], BOX, method))
        found = derivatives.divergence(v, BOX, method)
        torch.testing.assert_close(found[1], derivatives.divergence(v[1], BOX, method))


def test_inputs_are_left_alone():
    v = noise((3, 6, 6, 6))
    before = v.clone()
    for method in ("spectral", "difference"):
        derivatives.curl(v, BOX, method)
        derivatives.divergence(v, BOX, method)
    assert torch.equal(v, before)


def test_what_cannot_be_differentiated_is_refused():
    for operation in (derivatives.divergence, derivatives.curl):
        with pytest.raises(ValueError, match=r"\(2, 4, 4, 4\)"):
            operation(torch.zeros(2, 4, 4, 4), BOX, "difference")


@each("dtype", [torch.float32, torch.float64])
def test_a_block_with_a_halo_has_the_differences_of_its_box(dtype):
    """To the last bit, also across the border of the box and in blocks that are no cubes."""
    cells, shape = 11, (4, 7, 11)
    v = noise((3, cells, cells, cells), seed=4).to(dtype)
    origin = (9, 6, 0)
    rows = [torch.arange(o - 1, o + n + 1) % cells for o, n in zip(origin, shape, strict=True)]
    block = v[:, rows[0]][:, :, rows[1]][:, :, :, rows[2]]

    def cut(field):
        x, y, z = (row[1:-1] for row in rows)
        return field[..., x, :, :][..., y, :][..., z]

    cell = BOX / cells
    differentiate = partial(calculus.inner_difference, cell=cell)
    found = calculus.cell_divergence(block, differentiate)
    assert torch.equal(found, cut(derivatives.divergence(v, BOX, "difference")))
    found = calculus.cell_curl(block, differentiate)
    assert torch.equal(found, cut(derivatives.curl(v, BOX, "difference")))
    slopes = derivatives.gradient(v[0], BOX, "difference")
    for axis in (0, 1, 2):
        found = calculus.inner_difference(block[0], axis - 3, cell)
        assert torch.equal(found, cut(slopes[axis]))


def test_potential_part_is_a_projection_that_keeps_the_divergence() -> None:
    cells, side = 12, 30.0
    field = torch.randn((3, cells, cells, cells), generator=torch.Generator().manual_seed(3))
    modes = fourier.forward(field)
    part = calculus.potential_part(modes, side)
    waves = calculus.odd_wavenumbers(modes, side)
    scale = float(modes.abs().max())
    torch.testing.assert_close(calculus.potential_part(part, side), part, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(
        calculus.divergence_modes(part, waves),
        calculus.divergence_modes(modes, waves),
        rtol=0,
        atol=1e-5 * scale,
    )
    assert float(calculus.curl_modes(part, waves).abs().max()) < 1e-5 * scale
