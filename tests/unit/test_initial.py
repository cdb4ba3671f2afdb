from __future__ import annotations

import numpy as np
import pytest
import torch

from cosmoflow.errors import ConfigError, DataError
from cosmoflow.numerics import fourier, initial
from tests.cases import each


def common(modes: torch.Tensor, m: int) -> torch.Tensor:
    """The modes with all |indices| <= m."""
    index = torch.cat([torch.arange(m + 1), torch.arange(-m, 0)])
    return modes[index][:, index][:, :, : m + 1]


def test_white_noise_is_gaussian_of_unit_variance() -> None:
    w = common(initial.white_noise_modes(64, 1), 31)[:, :, 1:].numpy().ravel()
    for part in (w.real, w.imag):
        error = np.sqrt(0.5 / part.size)
        assert abs(part.mean()) < 4 * error
        assert part.var() == pytest.approx(0.5, abs=4 * error)
        assert (part**4).mean() / part.var() ** 2 == pytest.approx(3.0, abs=0.05)
    assert abs((w.real * w.imag).mean()) < 4 * 0.5 / np.sqrt(w.size)


def test_each_face_of_a_shell_has_the_same_variance() -> None:
    w = initial.white_noise_modes(64, 2).abs() ** 2
    m = 20
    full = torch.arange(-m, m + 1)
    faces = [w[full][:, full, m], w[m, full, :m], w[-m, full, :m], w[full, m, :m], w[full, -m, :m]]
    for face in faces:
        assert float(face.mean()) == pytest.approx(1.0, abs=0.15)


def test_large_scales_do_not_depend_on_resolution() -> None:
    coarse, fine = (initial.white_noise_modes(n, 7) for n in (16, 48))
    assert torch.equal(common(coarse, 7), common(fine, 7))
    assert not torch.equal(common(coarse, 7), common(initial.white_noise_modes(16, 8), 7))


@each("cells", [2, 4, 6, 32])
def test_white_noise_is_hermitian_without_mean_and_nyquist(cells: int) -> None:
    w = initial.white_noise_modes(cells, 3)
    half = cells // 2
    assert w[0, 0, 0] == 0.0
    assert not w[half].any()
    assert not w[:, half].any()
    assert not w[:, :, half].any()
    minus = -torch.arange(cells)
    assert torch.equal(w[minus][:, minus, 0], w[:, :, 0].conj())
    # Everything else is filled: (n-1)^3 modes less the mean, those with iz < 0 left out.
    inner = common(w, half - 1)
    assert int((inner == 0).sum()) == 1
    back = fourier.forward(fourier.inverse(w, cells))
    torch.testing.assert_close(back, w, rtol=0, atol=1e-5)


def power(k: np.ndarray) -> np.ndarray:
    return 100.0 * k**-1.0


def test_density_has_the_power_asked_for() -> None:
    cells, box = 64, 200.0
    modes = initial.linear_density_modes(initial.white_noise_modes(cells, 4), box, power)
    k = fourier.squared_wavenumber(cells, box).sqrt()
    measured = modes.abs() ** 2 * box**3 / cells**6
    for low, high in ((0.1, 0.3), (0.3, 0.6), (0.6, 0.9)):
        shell = (k >= low) & (k < high)
        shell[:, :, 0] = False  # counted twice there, with its conjugate
        ratio = measured[shell].double().numpy() / power(k[shell].double().numpy())
        assert ratio.mean() == pytest.approx(1.0, abs=4 / np.sqrt(ratio.size))


def test_resolutions_sample_one_field() -> None:
    """A coarse grid's cell centre is the corner that eight fine cells share: shift by k . x_0."""
    box, n = 100.0, 16
    coarse = initial.linear_density_modes(initial.white_noise_modes(n, 5), box, power)
    fine = initial.linear_density_modes(initial.white_noise_modes(4 * n, 5), box, power)

    def physical(modes: torch.Tensor) -> torch.Tensor:
        cells = modes.shape[0]
        kx, ky, kz = fourier.wavenumbers(cells, box)
        return common(
            modes * torch.exp(-0.5j * box / cells * (kx + ky + kz)) / cells**3, n // 2 - 1
        )

    torch.testing.assert_close(physical(coarse), physical(fine), rtol=1e-5, atol=1e-6)


def test_fixed_and_paired() -> None:
    cells, box = 32, 100.0

    def modes(**options: bool) -> torch.Tensor:
        noise = initial.white_noise_modes(cells, 6)
        return initial.linear_density_modes(noise, box, power, **options)

    plain = modes()
    assert torch.equal(modes(inverted=True), -plain)
    fixed = common(modes(fixed_amplitude=True), 15)
    k = common(fourier.squared_wavenumber(cells, box, dtype=torch.float64).sqrt(), 15).numpy()
    inner = k > 0
    measured = (fixed.abs() ** 2).double().numpy()[inner] * box**3 / cells**6
    np.testing.assert_allclose(measured, power(k[inner]), rtol=1e-5)
    torch.testing.assert_close(
        torch.angle(fixed)[1:, 1:, 1:],
        torch.angle(common(plain, 15))[1:, 1:, 1:],
        atol=1e-4,
        rtol=0,
    )


@each(("cells", "seed"), [(15, 0), (0, 0), (16, -1), (16, 2**64)])
def test_impossible_noise_is_refused(cells: int, seed: int) -> None:
    with pytest.raises(ConfigError):
        initial.white_noise_modes(cells, seed)


def test_noise_that_is_given_makes_the_same_box() -> None:
    """Of our own noise as a cube in real space, the modes come back."""
    cells = 16
    drawn = initial.white_noise_modes(cells, 8)
    # The cube holds values at the centres of the cells, the modes are counted from the corner.
    turns = torch.stack(list(initial._turns(cells)))
    cube = fourier.inverse(drawn * turns, cells).numpy() * cells**1.5
    torch.testing.assert_close(initial.modes_of_noise(cube), drawn, rtol=0, atol=1e-5)


def test_a_plane_wave_of_noise_keeps_its_phase() -> None:
    """The crest of a wave given at the cell centres is where the linear density has its crest."""
    cells, box = 16, 100.0
    centres = (np.arange(cells) + 0.5) / cells
    cube = np.sqrt(2.0) * np.cos(2.0 * np.pi * (centres - 0.3))[:, None, None]
    noise = initial.modes_of_noise(np.broadcast_to(cube, (cells,) * 3).astype(np.float32))
    density = fourier.inverse(initial.linear_density_modes(noise, box, power), cells)
    np.testing.assert_allclose(
        density / density.std(correction=0), np.broadcast_to(cube, (cells,) * 3), atol=1e-5
    )


@each(
    "noise",
    [np.ones((8, 8, 4)), np.ones((7, 7, 7)), np.full((8, 8, 8), np.nan), np.zeros((8, 8, 8))],
)
def test_noise_that_is_none_is_refused(noise: np.ndarray) -> None:
    with pytest.raises(DataError):
        initial.modes_of_noise(noise)
