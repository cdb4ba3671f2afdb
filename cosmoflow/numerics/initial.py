"""Gaussian initial conditions whose large scales do not depend on the resolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.errors import ConfigError, DataError
from cosmoflow.numerics import fourier

_WHITE: Final = "give uncorrelated Gaussian noise of mean 0 and variance 1"

PowerSpectrum = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Function from wavenumbers in h/Mpc to powers in (Mpc/h)^3."""


def white_noise_modes(cells: int, seed: int) -> Tensor:
    """Return Hermitian white noise of unit variance; a mode is the same at every resolution.

    Parameters
    ----------
    cells : int
        Cells per axis, even, at least 2.
    seed : int
        Random seed, at least 0 and less than 2^64.

    Returns
    -------
    Tensor
        Shape ``(n, n, n // 2 + 1)``, complex64: ``<|w|^2> = 1``, shared equally by real and
        imaginary part. The mean and the Nyquist planes are zero.

    Notes
    -----
    Shell ``m = max(|ix|, |iy|, |iz|)`` is filled, in a fixed order, from a counter-based generator
    (Philox, Salmon et al. 2011) with the key ``(seed, m)``. A finer grid has more shells; the
    shells that it shares with a coarser grid have the same numbers.
    """
    if cells < 2 or cells % 2:
        raise ConfigError("A grid of modes needs an even number of cells.", value=cells)
    if not 0 <= seed < 2**64:
        raise ConfigError("A seed is out of range.", value=seed, limit="0 to 2^64 - 1")
    modes = np.zeros((cells, cells, cells // 2 + 1), dtype=np.complex64)
    for m in range(1, cells // 2):
        generator = np.random.Generator(np.random.Philox(key=[seed, m]))
        _fill_shell(modes, m, generator)
    return torch.from_numpy(modes)


def check_white_noise(noise: NDArray[np.floating[Any]]) -> None:
    """Check that an array is a cube of white noise of unit variance.

    Raises
    ------
    DataError
        The array is not a cube with an even number of cells per axis, or its variance is not 1.
    """
    cells = noise.shape[0]
    if noise.shape != (cells,) * 3 or cells % 2 or cells < 2:
        raise DataError(
            "White noise needs a cube with an even number of cells per axis.", value=noise.shape
        )
    variance = float(np.var(noise, dtype=np.float64))
    # n^3 draws have a variance within a few sqrt(2 / n^3) of one. Noise may also lack its Nyquist
    # planes, 3 / n of its modes.
    if not abs(variance - 1.0) < 0.05 + 3.0 / cells + 6.0 * math.sqrt(2.0 / cells**3):
        raise DataError(
            "The white noise does not have unit variance.",
            value=f"{variance:.4g}",
            limit="1",
            remedy=_WHITE,
        )


def check_flat_power(noise: NDArray[np.floating[Any]]) -> None:
    """Check that the power of noise does not depend on scale, as that of a density field would.

    Parameters
    ----------
    noise : ndarray
        Shape ``(n, n, n)``, of unit variance.

    Raises
    ------
    DataError
        The power on large scales differs from that of white noise.

    Notes
    -----
    The variance of averages over blocks of ``m^3`` cells is ``1 / m^3`` for white noise, with a
    relative scatter of ``sqrt(2 / blocks)``; a field with large-scale power has a larger variance.
    """
    cells = noise.shape[0]
    for side in (2, 3, 4):
        blocks, left = divmod(cells, side)
        if left or blocks < 2:
            continue
        means = noise.reshape((blocks, side) * 3).mean(axis=(1, 3, 5), dtype=np.float64)
        ratio = float(np.mean(means**2)) * side**3
        # The terms without blocks allow for noise that lacks its mean and its Nyquist planes.
        if not abs(ratio - 1.0) < 0.05 + 4.0 / cells + 6.0 * math.sqrt(2.0 / blocks**3):
            raise DataError(
                "The noise is not white: its power depends on scale.",
                value=f"averages over {side}^3 cells have {ratio:.3g} times the expected power",
                limit="1",
                remedy=_WHITE,
            )


def modes_of_noise(noise: NDArray[np.floating[Any]]) -> Tensor:
    """Return the modes of white noise given in real space.

    Parameters
    ----------
    noise : ndarray
        Shape ``(n, n, n)``, n even: values of unit variance at the centres of the cells.

    Returns
    -------
    Tensor
        Modes in the form of :func:`white_noise_modes`: ``<|w|^2> = 1``, with zeros for the mean
        and the Nyquist planes.

    Raises
    ------
    DataError
        See :func:`check_white_noise`.
    """
    check_white_noise(noise)
    cells = noise.shape[0]
    modes = fourier.forward(torch.from_numpy(np.asarray(noise, np.float32)))
    modes *= 1.0 / math.sqrt(float(cells) ** 3)
    half = cells // 2
    modes[half] = modes[:, half] = modes[:, :, half] = 0.0
    modes[0, 0, 0] = 0.0
    for x, turn in enumerate(_turns(cells)):
        modes[x] *= turn.conj()
    return modes


def linear_density_modes(
    noise: Tensor,
    box_size: float,
    power: PowerSpectrum,
    *,
    fixed_amplitude: bool = False,
    inverted: bool = False,
) -> Tensor:
    r"""Return the modes of a Gaussian density contrast with a given power spectrum.

    Parameters
    ----------
    noise : Tensor
        Shape ``(n, n, n // 2 + 1)``, complex64, n even: modes of white noise, from
        :func:`white_noise_modes` or :func:`modes_of_noise`. **Overwritten.**
    box_size : float
        Box size, Mpc/h.
    power : callable
        Returns the power in (Mpc/h)^3 at wavenumbers in h/Mpc, both float64 arrays.
    fixed_amplitude : bool
        Give every mode exactly the expected amplitude, keeping the random phase.
    inverted : bool
        Flip the sign of every mode, for the second box of a pair with the same noise.

    Returns
    -------
    Tensor
        ``noise``, now in the unnormalised-forward convention: its inverse transform is the contrast
        at the cell centres.

    Notes
    -----
    ``delta_k = w_k sqrt(P(k) / V) n^3 exp(i k . x_0)`` where ``x_0`` is the centre of cell 0, half
    a cell from the corner of the box. Without that phase the fields at two resolutions would be
    shifted against each other by half of the difference of their cells.

    References
    ----------
    Angulo & Pontzen 2016 (arXiv:1603.05253) for fixed and paired amplitudes.
    """
    cells = noise.shape[0]
    sign = -1.0 if inverted else 1.0
    half = cells // 2
    fundamental = 2.0 * math.pi / box_size
    # P depends on integer k^2 alone: one table instead of a spline for every mode.
    squares = np.arange(1, 3 * (half - 1) ** 2 + 1, dtype=np.float64)
    values = np.asarray(power(fundamental * np.sqrt(squares)), dtype=np.float64)
    amplitude = np.zeros(3 * half**2 + 1, dtype=np.float32)
    amplitude[1 : len(values) + 1] = sign * np.sqrt(values / box_size**3) * float(cells) ** 3
    table = torch.from_numpy(amplitude)
    index = torch.fft.fftfreq(cells, d=1.0 / cells).long()
    squared = index.view(-1, 1) ** 2 + torch.arange(half + 1).view(1, -1) ** 2
    for x, turn in enumerate(_turns(cells)):
        plane = noise[x]
        if fixed_amplitude:
            plane.copy_(torch.sgn(plane))
        plane *= table[squared + index[x] ** 2]
        plane *= turn
    return noise


def _turns(cells: int) -> Iterator[Tensor]:
    """Yield ``exp(i k . x_0)`` plane by plane along x; x_0 is the centre of cell 0."""
    index = torch.fft.fftfreq(cells, d=1.0 / cells).long()
    # exp(i pi i_x / n) per axis; in double precision so that the angle is exact at high modes.
    turn = torch.exp(1j * math.pi * index.double() / cells)
    turn_z = torch.exp(1j * math.pi * torch.arange(cells // 2 + 1).double() / cells)
    turn_yz = (turn.view(-1, 1) * turn_z).to(torch.complex64)
    for turn_x in turn.to(torch.complex64):
        yield turn_yz * turn_x


def _fill_shell(modes: NDArray[Any], m: int, generator: np.random.Generator) -> None:
    """Fill the modes of cubic shell ``m`` with ``iz >= 0``, face by face in a fixed order.

    First the whole face ``iz = m``; then, for ``0 <= iz < m``, the whole faces ``ix = m`` and
    ``ix = -m``, and the faces ``iy = m`` and ``iy = -m`` without the edges that they share with
    those. Every face is drawn with its indices in increasing order, negative ones first.
    """
    wide, narrow, below = 2 * m + 1, 2 * m - 1, m

    def draw(*shape: int) -> NDArray[np.complex64]:
        numbers = generator.standard_normal((*shape, 2), dtype=np.float32)
        numbers *= np.float32(math.sqrt(0.5))
        return numbers.view(np.complex64)[..., 0]

    # Slices of the indices -m..m along a full axis and along a drawn face; then of -m+1..m-1.
    outer = [(slice(-m, None), slice(0, m)), (slice(0, m + 1), slice(m, wide))]
    inner = [(slice(0, m), slice(m - 1, narrow))]
    if m > 1:  # slice(-0, None) would be the whole axis
        inner.append((slice(1 - m, None), slice(0, m - 1)))

    face = draw(wide, wide)
    for to_x, from_x in outer:
        for to_y, from_y in outer:
            modes[to_x, to_y, m] = face[from_x, from_y]
    for ix in (m, -m):
        face = draw(wide, below)
        for to_y, from_y in outer:
            modes[ix, to_y, :m] = face[from_y]
    for iy in (m, -m):
        face = draw(narrow, below)
        for to_x, from_x in inner:
            modes[to_x, iy, :m] = face[from_x]
    # On iz = 0 only half of the modes are independent: w(-k) = conj w(k). Keep the half with
    # ix = m and, of the rest, the half with iy = m; edges that share a corner follow from ix alone.
    ring = modes[:, :, 0]
    minus = -np.arange(-m, m + 1)
    ring[-m, minus] = np.conj(ring[m, np.arange(-m, m + 1)])
    between = np.arange(1 - m, m)
    ring[-between, -m] = np.conj(ring[between, m])
