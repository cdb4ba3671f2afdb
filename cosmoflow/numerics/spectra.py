"""Auto and cross power spectra of periodic cubes in memory.

``P(k) = V / N^2 |a(k)|^2`` in field unit squared times (Mpc/h)^3, with the unnormalised transform
``a(k)`` of ``N = n^3`` cells. Bins are one fundamental mode wide with edges on its half-integers,
so that bin ``b`` is centred on ``b`` fundamental modes and the last one on the Nyquist frequency.

What is added up is a :class:`PowerSum`: the sums of two disjoint sets of modes add with ``+``, be
they slabs of one box or several boxes of one size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics import fourier

Floats = NDArray[np.float64]

WINDOWS: Final[dict[str, int]] = {"ngp": 1, "cic": 2, "tsc": 3, "pcs": 4}
"""Power of ``sinc(k_i h / 2)`` per axis by which a mass-assignment scheme damps a mode."""

# Modes that are binned at once: bounds the float64 and int64 temporaries to some 100 MB.
_BLOCK_MODES: Final = 1 << 21


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Binned spectra of two fields ``a`` and ``b``; of one field, ``b`` is ``a``.

    Attributes
    ----------
    k : ndarray
        Shape ``(bins,)``, float64, mean wavenumber of the bin's modes, h/Mpc.
    modes : ndarray
        Shape ``(bins,)``, float64, number of wavevectors, ``k`` and ``-k`` counted both.
    auto_a, auto_b, cross : ndarray
        Shape ``(bins,)``, float64, field unit squared times (Mpc/h)^3; ``cross`` is the real part.
    """

    k: Floats
    modes: Floats
    auto_a: Floats
    auto_b: Floats
    cross: Floats

    @property
    def transfer(self) -> Floats:
        """``T(k) = P_bb / P_aa``: of powers, as the paper has it; NaN where ``P_aa`` is zero."""
        return _divide(self.auto_b, self.auto_a)

    @property
    def correlation(self) -> Floats:
        """``r(k) = P_ab / sqrt(P_aa P_bb)``; NaN where either power is zero."""
        return _divide(self.cross, np.sqrt(self.auto_a) * np.sqrt(self.auto_b))

    def sample(self, values: Floats, k: Sequence[float]) -> Floats:
        """Interpolate a curve linearly in k between the bins' mean wavenumbers; NaN outside."""
        result: Floats = np.interp(k, self.k, values, left=np.nan, right=np.nan)
        return result


@dataclass(frozen=True, eq=False)
class PowerSum:
    """Sums over the modes of each bin, bin 0 holding the mean alone.

    Attributes
    ----------
    cells : int
        Cells per axis of the box.
    box_size : float
        Mpc/h.
    aa, bb, ab : ndarray
        Shape ``(bins,)``, float64: sums of ``|a|^2``, ``|b|^2`` and ``Re a b*`` of the
        unnormalised transforms, over components too.
    k : ndarray
        Shape ``(bins,)``, float64: sum of the wavenumbers, h/Mpc.
    modes : ndarray
        Shape ``(bins,)``, float64: number of wavevectors.
    """

    cells: int
    box_size: float
    aa: Floats
    bb: Floats
    ab: Floats
    k: Floats
    modes: Floats

    @classmethod
    def zero(cls, cells: int, box_size: float, bins: int | None = None) -> Self:
        """Return the sum over no modes, the neutral element of ``+``."""
        count = nyquist_bins(cells) if bins is None else bins
        return cls(cells, float(box_size), *(np.zeros(count) for _ in range(5)))

    def __add__(self, other: PowerSum) -> PowerSum:
        mine = (self.cells, self.box_size, self.modes.size)
        theirs = (other.cells, other.box_size, other.modes.size)
        if mine != theirs:
            raise ValueError(f"power sums of unlike boxes (cells, size, bins): {mine}, {theirs}")
        return PowerSum(
            self.cells,
            self.box_size,
            self.aa + other.aa,
            self.bb + other.bb,
            self.ab + other.ab,
            self.k + other.k,
            self.modes + other.modes,
        )

    def spectrum(self) -> Spectrum:
        """Return means over modes in physical units, without bin 0, which is the mean field."""
        norm = self.box_size**3 / float(self.cells) ** 6
        modes = self.modes[1:]
        return Spectrum(
            k=_divide(self.k[1:], modes),
            modes=modes.copy(),
            auto_a=norm * _divide(self.aa[1:], modes),
            auto_b=norm * _divide(self.bb[1:], modes),
            cross=norm * _divide(self.ab[1:], modes),
        )


def nyquist_bins(cells: int) -> int:
    """Return how many bins there are up to the one centred on the Nyquist frequency."""
    return cells // 2 + 1


def bin_table(bins: int) -> Tensor:
    """Return the bin of every squared integer wavevector, the last entry standing for all larger.

    A half-integer squared is never an integer, so bin ``b`` holds exactly the ``2 b`` integers
    ``b (b - 1) < m^2 <= b (b + 1)``, and no mode's bin depends on round-off.

    Returns
    -------
    Tensor
        Shape ``(bins (bins - 1) + 2,)``, int64; the value ``bins`` means beyond the last bin.
    """
    lengths = 2 * torch.arange(bins + 1, dtype=torch.int64)
    lengths[0] = lengths[bins] = 1
    return torch.repeat_interleave(torch.arange(bins + 1, dtype=torch.int64), lengths)


def sum_modes(
    a: Tensor,
    b: Tensor | None = None,
    *,
    cells: int,
    box_size: float,
    window: tuple[int, int] = (0, 0),
    start: tuple[int, int, int] = (0, 0, 0),
    bins: int | None = None,
) -> PowerSum:
    """Bin the products of the modes of two fields.

    Parameters
    ----------
    a, b : Tensor
        Shape ``(..., mx, my, mz)``, complex: a block of the half-complex transform of shape
        ``(..., n, n, n // 2 + 1)``; leading dimensions (components) are summed over. Without ``b``
        the spectrum is that of ``a`` alone.
    cells : int
        Cells per axis ``n`` of the whole box.
    box_size : float
        Mpc/h.
    window : (int, int)
        Powers of ``sinc(k_i h / 2)`` per axis that the modes of ``a`` and of ``b`` are divided by.
    start : (int, int, int)
        Index in the transform of the block's first mode.
    bins : int, optional
        Number of bins, the mean's among them; by default up to the Nyquist frequency.
    """
    if b is not None and a.shape != b.shape:
        raise ValueError(f"modes of unlike shapes {tuple(a.shape)} and {tuple(b.shape)}")
    mx, my, mz = a.shape[-3:]
    rows = max(1, _BLOCK_MODES // (my * mz))
    total = PowerSum.zero(cells, box_size, bins)
    table = bin_table(total.modes.size).to(a.device)
    for first in range(0, mx, rows):
        part = slice(first, min(first + rows, mx))
        total = total + _sum_block(
            a[..., part, :, :],
            None if b is None else b[..., part, :, :],
            table,
            PowerSum.zero(cells, box_size, bins),
            window,
            (start[0] + first, start[1], start[2]),
        )
    return total


def _sum_block(
    a: Tensor,
    b: Tensor | None,
    table: Tensor,
    empty: PowerSum,
    window: tuple[int, int],
    start: tuple[int, int, int],
) -> PowerSum:
    cells, bins = empty.cells, empty.modes.size
    mx, my, mz = _integer_wavevectors(a, cells, start)
    squared = (mx * mx + my * my + mz * mz).reshape(-1)
    index = table[squared.clamp(max=table.numel() - 1)]
    # A real field's half-complex transform leaves out the conjugates of all planes but two.
    alone = (mz == 0) | (2 * mz == cells)
    weight = torch.where(alone, 1.0, 2.0).double().expand(a.shape[-3:])

    def binned(values: Tensor) -> Floats:
        sums = torch.bincount(index, weights=values.reshape(-1), minlength=bins + 1)
        result: Floats = sums[:bins].cpu().numpy()
        return result

    def product(left: Tensor, right: Tensor, power: int) -> Floats:
        values = _real_product(left, right)
        if power:
            x, y, z = (torch.sinc(m.double() / cells) for m in (mx, my, mz))
            values = values / (x * y * z) ** power
        return binned(values * weight)

    aa = product(a, a, 2 * window[0])
    return PowerSum(
        cells,
        empty.box_size,
        aa,
        aa if b is None else product(b, b, 2 * window[1]),
        aa if b is None else product(a, b, sum(window)),
        binned(weight.reshape(-1) * torch.sqrt(squared.double()))
        * (2.0 * math.pi / empty.box_size),
        binned(weight),
    )


def _integer_wavevectors(
    block: Tensor, cells: int, start: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    x, y, z = (
        torch.arange(first, first + count, dtype=torch.int64, device=block.device)
        for first, count in zip(start, block.shape[-3:], strict=True)
    )
    x = torch.where(2 * x >= cells, x - cells, x)
    y = torch.where(2 * y >= cells, y - cells, y)
    return x.view(-1, 1, 1), y.view(1, -1, 1), z.view(1, 1, -1)


def _real_product(left: Tensor, right: Tensor) -> Tensor:
    """Return ``Re left right*`` in float64, summed over leading dimensions."""
    shape = left.shape[-3:]
    result = torch.zeros(shape, dtype=torch.float64, device=left.device)
    for one, two in zip(left.reshape(-1, *shape), right.reshape(-1, *shape), strict=True):
        result.addcmul_(one.real.double(), two.real.double())
        result.addcmul_(one.imag.double(), two.imag.double())
    return result


def join_interlaced(first: Tensor, second: Tensor) -> Tensor:
    """Return the modes of an interlaced pair of grids: without the nearest aliases.

    What a grid takes for a mode is the sum of that mode and of its images, whole numbers of
    sampling frequencies away. On the second grid images that are an odd number away have the
    opposite sign, and the mean of both is rid of them (Sefusatti et al. 2016, section 3.1).

    Parameters
    ----------
    first : Tensor
        Shape ``(..., n, n, n // 2 + 1)``, complex: half-complex transform of a painted field. Its
        memory is used for the result.
    second : Tensor
        The same of the field painted with particles moved by half a cell along every axis. It is
        overwritten.
    """
    cells = first.shape[-2]
    mx, my, mz = _integer_wavevectors(first, cells, (0, 0, 0))
    # What moved the particles is undone: exp(i k h / 2), axis by axis.
    for m in (mx, my, mz):
        angle = math.pi / cells * m.double()
        second *= torch.complex(angle.cos(), angle.sin()).to(first.dtype)
    return first.add_(second).mul_(0.5)


def auto_power(field: Tensor, box_size: float, *, window: int = 0) -> Spectrum:
    """Return the power spectrum of a scalar or vector field.

    Parameters
    ----------
    field : Tensor
        Shape ``(n, n, n)``, or ``(3, n, n, n)`` for the sum over components; real.
    box_size : float
        Mpc/h.
    window : int
        Power of ``sinc`` to divide the modes by, see :data:`WINDOWS`; 0 for none.
    """
    return sum_modes(
        fourier.forward(field),
        cells=field.shape[-1],
        box_size=box_size,
        window=(window, window),
    ).spectrum()


def cross_power(
    a: Tensor, b: Tensor, box_size: float, *, window: tuple[int, int] = (0, 0)
) -> Spectrum:
    """Return auto and cross spectra of two scalar or two vector fields.

    Parameters
    ----------
    a, b : Tensor
        Shape ``(n, n, n)``, or ``(3, n, n, n)`` for the sum over components; real.
    box_size : float
        Mpc/h.
    window : (int, int)
        Powers of ``sinc`` to divide the modes of ``a`` and of ``b`` by.
    """
    return sum_modes(
        fourier.forward(a),
        fourier.forward(b),
        cells=a.shape[-1],
        box_size=box_size,
        window=window,
    ).spectrum()


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """Divide, NaN where the denominator is zero."""
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0.0)
    return result
