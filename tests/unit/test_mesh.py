from __future__ import annotations

import numba
import numpy as np
import pytest
import torch

from cosmoflow.numerics import mesh
from tests.cases import each

BOX = 50.0


def scattered(count: int, spread: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, generator=generator) - 0.5) * spread * BOX + 0.5 * BOX


def reference(positions: torch.Tensor, cells: int) -> np.ndarray:
    """Cloud in cell by numpy, double precision."""
    u = positions.double().numpy() * cells / BOX - 0.5
    low = np.floor(u).astype(np.int64)
    share = u - low
    grid = np.zeros(cells**3)
    for corner in np.ndindex(2, 2, 2):
        cell = (low + corner) % cells
        weight = np.prod(np.where(np.array(corner) == 1, share, 1.0 - share), axis=1)
        flat = (cell[:, 0] * cells + cell[:, 1]) * cells + cell[:, 2]
        grid += np.bincount(flat, weight, cells**3)
    return grid.reshape((cells,) * 3) * cells**3 / len(u) - 1.0


@each("cells", [2, 3, 7, 8, 12, 20, 33])
def test_painting_equals_bincount(cells: int) -> None:
    positions = scattered(5000, spread=5.0)  # two boxes beyond either side
    delta = mesh.paint_contrast(positions, BOX, cells)
    expected = reference(positions, cells)
    np.testing.assert_allclose(delta.numpy(), expected, atol=2e-6 * (1 + np.abs(expected).max()))
    assert abs(float(delta.double().mean())) < 1e-6


def test_a_particle_at_a_cell_centre_fills_that_cell() -> None:
    cells = 8
    centre = (torch.tensor([[2.0, 7.0, 0.0]]) + 0.5) * BOX / cells
    mass = mesh.paint_contrast(centre, BOX, cells) + 1.0
    assert float(mass[2, 7, 0]) == cells**3
    assert float(mass.sum()) == cells**3


def test_edges_stay_in_range() -> None:
    below = np.nextafter(np.float32(BOX), np.float32(0))
    values = [0.0, -0.0, -1e-30, float(below), BOX, -BOX, 1e9, -1e9]
    positions = torch.tensor([[a, b, a] for a in values for b in values])
    delta = mesh.paint_contrast(positions, BOX, 16)
    assert abs(float(delta.double().mean())) < 1e-5
    out = torch.full((len(positions),), float("nan"))
    mesh.interpolate(torch.ones(16, 16, 16), positions, BOX, out)
    torch.testing.assert_close(out, torch.ones_like(out))


def test_the_number_of_threads_changes_nothing() -> None:
    positions = scattered(50_000)
    threads = numba.get_num_threads()
    results = []
    try:
        for number in range(1, threads + 1):
            numba.set_num_threads(number)
            results.append(mesh.paint_contrast(positions, BOX, 32))
    finally:
        numba.set_num_threads(threads)
    again = mesh.paint_contrast(positions, BOX, 32, scratch=torch.empty(60_000))
    assert all(torch.equal(results[0], result) for result in [*results, again])


@each("cells", [4, 24])
def test_interpolation_is_the_adjoint_of_painting(cells: int) -> None:
    positions = scattered(3000, spread=1.5)
    field = torch.randn(cells, cells, cells, generator=torch.Generator().manual_seed(1))
    painted = (mesh.paint_contrast(positions, BOX, cells).double() + 1.0) * 3000 / cells**3
    values = mesh.interpolate(field, positions, BOX, torch.empty(3000))
    assert float((painted * field).sum()) == pytest.approx(float(values.double().sum()), abs=2e-3)


def test_interpolation_is_exact_for_a_linear_field() -> None:
    cells = 16
    positions = scattered(1000, spread=0.8)  # away from where the ramp jumps
    centres = (torch.arange(cells) + 0.5) * BOX / cells
    out = torch.zeros(1000, 3)
    for axis in range(3):
        ramp = centres.view([-1 if a == axis else 1 for a in range(3)]).expand((cells,) * 3)
        mesh.interpolate(ramp, positions, BOX, out[:, axis])
    torch.testing.assert_close(out, positions, rtol=0, atol=2e-5)
    mesh.interpolate(ramp, positions, BOX, out[:, 2], scale=-0.5, accumulate=True)
    torch.testing.assert_close(out[:, 2], 0.5 * positions[:, 2], rtol=0, atol=2e-5)


def test_both_back_ends_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh, "GPU_CHUNK", 700)
    positions, cells = scattered(3000, spread=3.0), 12
    compiled = mesh.paint_contrast(positions, BOX, cells)
    other = torch.full_like(compiled, -1.0)
    mesh._paint_torch(positions, BOX, cells**3 / 3000, other)
    torch.testing.assert_close(other, compiled, rtol=1e-5, atol=1e-5)
    for accumulate in (False, True):
        first, second = torch.ones(3000, 3), torch.ones(3000, 3)
        mesh.interpolate(compiled, positions, BOX, first[:, 1], scale=2.0, accumulate=accumulate)
        mesh._interpolate_torch(compiled, positions, BOX, second[:, 1], 2.0, accumulate)
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
