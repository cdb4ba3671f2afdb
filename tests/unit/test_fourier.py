"""Transforms by blocks in threads, beside those of torch on whole grids."""

import math

import pytest
import torch

from cosmoflow.numerics import fourier
from tests.cases import each

BOX = 30.0


def noise(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["one block", "one plane a block"])
def blocks(request, monkeypatch):
    if request.param == "one plane a block":
        monkeypatch.setattr(fourier, "BLOCK_BYTES_CPU", 1)


@pytest.mark.usefixtures("blocks")
@each("cells", [6, 7, 12])
@each("lead", [(), (2, 3)])
@each("dtype", [torch.float32, torch.float64])
def test_the_inverse_is_that_of_whole_grids(cells, lead, dtype):
    modes = fourier.forward(noise(*lead, cells, cells, cells, dtype=dtype))
    expected = torch.fft.irfftn(modes, s=(cells,) * 3, dim=(-3, -2, -1))
    torch.testing.assert_close(fourier.inverse(modes, cells), expected)


@pytest.mark.usefixtures("blocks")
@each("cells", [7, 12])
@each("radius", [0.0, 4.0])
def test_linear_velocity_is_the_gradient_of_a_potential(cells, radius):
    """In float64 to its rounding, with derivatives of torch on the whole grid."""
    density = 1.0 + noise(cells, cells, cells)
    k = 2.0 * math.pi / BOX * torch.fft.fftfreq(cells, 1.0 / cells, dtype=torch.float64)
    odd = k.clone()
    if cells % 2 == 0:
        odd[cells // 2] = 0.0
    squared = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    modes = torch.fft.fftn(density) * torch.exp(-0.5 * radius**2 * squared)
    squared[0, 0, 0] = torch.inf
    expected = torch.stack(
        [
            torch.fft.ifftn(50.0j * one * modes / squared).real
            for one in (odd[:, None, None], odd[:, None], odd)
        ]
    )
    found = fourier.linear_velocity(density, BOX, 50.0, radius)
    torch.testing.assert_close(found, expected)
    with torch.inference_mode():
        torch.testing.assert_close(fourier.linear_velocity(density, BOX, 50.0, radius), expected)


def test_modes_of_another_number_of_cells_are_refused():
    with pytest.raises(ValueError, match="of a field of 12 cells"):
        fourier.inverse(fourier.forward(noise(8, 8, 8)), 12)
