"""Sums of products of modes in bins of wavenumber."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics import fourier
from cosmoflow.numerics.spectra import kernels
from cosmoflow.numerics.spectra.bins import WaveBins
from cosmoflow.numerics.spectra.curves import Spectrum, divide
from cosmoflow.numerics.threads import map_ahead
from cosmoflow.numerics.waves import WaveBlock

Floats = NDArray[np.float64]
Pair = tuple[int, int]

WINDOWS: Final[dict[str, int]] = {"ngp": 1, "cic": 2, "tsc": 3, "pcs": 4}
"""Power of ``sinc(k_i h / 2)`` per axis by which a mass-assignment scheme damps a mode."""

POLES: Final = (0, 2, 4)
"""Multipoles measured if an axis is given; otherwise only the monopole is measured."""

_BLOCK_MODES: Final = 1 << 19
"""Modes that a thread processes at once."""


@dataclass(frozen=True, eq=False)
class PowerSum:
    """Sums over the modes of each bin.

    Attributes
    ----------
    bins : WaveBins
        Bins of the box.
    pairs : tuple of (int, int)
        Pairs of fields of which the products are summed.
    products : ndarray
        Shape ``(pairs, poles, bins)``, float64: sums of ``(2 l + 1) L_l(mu) Re a b*`` of the
        unnormalised transforms, over components too.
    k : ndarray
        Shape ``(bins,)``, float64: sum of the wavenumbers, h/Mpc.
    modes : ndarray
        Shape ``(bins,)``, float64: number of wavevectors.
    """

    bins: WaveBins
    pairs: tuple[Pair, ...]
    products: Floats
    k: Floats
    modes: Floats

    @classmethod
    def zero(cls, bins: WaveBins, pairs: Sequence[Pair] = ((0, 0),), poles: int = 1) -> Self:
        """Return the sum over no modes, the neutral element of ``+``."""
        count = bins.count
        products = np.zeros((len(pairs), poles, count))
        return cls(bins, tuple(pairs), products, np.zeros(count), np.zeros(count))

    def __add__(self, other: PowerSum) -> PowerSum:
        return self._joined(other, np.add)

    def __sub__(self, other: PowerSum) -> PowerSum:
        """Subtract a sum that was added, such as one box for a jackknife."""
        return self._joined(other, np.subtract)

    def _joined(self, other: PowerSum, join: Callable[[Floats, Floats], Floats]) -> PowerSum:
        mine = (self.bins, self.pairs, self.products.shape)
        theirs = (other.bins, other.pairs, other.products.shape)
        if mine != theirs:
            raise ValueError(
                "cannot combine power sums with different boxes, bins or pairs: "
                f"{self._kind} and {other._kind}"
            )
        return replace(
            self,
            products=join(self.products, other.products),
            k=join(self.k, other.k),
            modes=join(self.modes, other.modes),
        )

    @property
    def _kind(self) -> str:
        bins = self.bins
        return (
            f"{bins.cells} cells, {bins.box_size:g} Mpc/h, {bins.count} bins, pairs {self.pairs}, "
            f"{self.products.shape[1]} multipoles"
        )

    @property
    def mean_k(self) -> Floats:
        """Shape ``(bins,)``, float64: mean wavenumber of each bin's modes, h/Mpc."""
        return divide(self.k, self.modes)

    def power(self, a: int = 0, b: int | None = None, pole: int = 0) -> Floats:
        """Return the auto or cross power of fields, a mean over modes.

        Parameters
        ----------
        a, b : int
            Indices of the fields; ``b`` is ``a`` by default.
        pole : int
            Multipole: 0, 2 or 4.

        Returns
        -------
        (bins,) float64
            Field unit squared times (Mpc/h)^3; NaN in bins without modes.
        """
        index = self.pairs.index((a, a if b is None else b))
        norm = self.bins.box_size**3 / float(self.bins.cells) ** 6
        return norm * divide(self.products[index, POLES.index(pole)], self.modes)

    def spectrum(self, a: int = 0, b: int | None = None) -> Spectrum:
        """Return the spectra of two fields, by default of the first two or of the only one."""
        if b is None:
            b = 1 if (a, 1) in self.pairs else a
        return Spectrum(
            k=self.mean_k,
            modes=self.modes.copy(),
            auto_a=self.power(a),
            auto_b=self.power(b),
            cross=self.power(a, b),
        )


def sum_products(
    fields: Sequence[Tensor],
    pairs: Sequence[Pair],
    bins: WaveBins,
    *,
    windows: Sequence[int] | None = None,
    start: tuple[int, int, int] = (0, 0, 0),
    axis: int | None = None,
) -> PowerSum:
    """Bin products of the modes of fields.

    Parameters
    ----------
    fields : sequence of Tensor
        Shape ``(..., mx, my, mz)`` each, complex: a block of the half-complex transform
        ``(..., n, n, n // 2 + 1)``; leading dimensions (components) are summed over.
    pairs : sequence of (int, int)
        Pairs of fields to multiply.
    bins : WaveBins
        Bins of the whole box.
    windows : sequence of int, optional
        Power of ``sinc(k_i h / 2)`` per axis by which the modes of each field are divided.
    start : (int, int, int)
        Index in the transform of the block's first mode.
    axis : int, optional
        0, 1 or 2: measure the multipoles :data:`POLES` about this axis, not the monopole alone.

    Raises
    ------
    ValueError
        The fields of a pair have different shapes.
    """
    planes = fields[0].shape[-3]
    step = max(1, _BLOCK_MODES // (fields[0].shape[-2] * fields[0].shape[-1]))
    total = PowerSum.zero(bins, pairs, 1 if axis is None else len(POLES))

    def sum_planes(first: int) -> PowerSum:
        own = [field[..., first : first + step, :, :] for field in fields]
        place = (start[0] + first, *start[1:])
        return sum_block(own, pairs, bins, windows=windows, start=place, axis=axis)

    for found in map_ahead(sum_planes, range(0, planes, step)):
        total = total + found
    return total


def sum_block(
    fields: Sequence[Tensor],
    pairs: Sequence[Pair],
    bins: WaveBins,
    *,
    windows: Sequence[int] | None = None,
    start: tuple[int, int, int] = (0, 0, 0),
    axis: int | None = None,
) -> PowerSum:
    """Bin products like :func:`sum_products`, in the calling thread alone."""
    nx, ny, nz = fields[0].shape[-3:]
    block = ModeBlock(WaveBlock(bins.cells, bins.box_size, start, (nx, ny, nz)), bins, axis)
    total = block.zero(pairs)
    for products, (first, second) in zip(total.products, pairs, strict=True):
        power = 0 if windows is None else windows[first] + windows[second]
        block.add(products, fields[first], fields[second], power)
    return total


class ModeBlock:
    """A block of the half-complex transform, whose modes are binned.

    Parameters
    ----------
    waves : WaveBlock
        Wavenumbers of the block.
    bins, axis
        See :func:`sum_products`.
    """

    def __init__(self, waves: WaveBlock, bins: WaveBins, axis: int | None = None) -> None:
        self._bins, self._m = bins, waves.integers()
        # Axes of the arrays: that of the multipoles, and kz.
        self._axis = None if axis is None else waves.axes.index(axis)
        self._halved = waves.axes.index(2)
        self._limits = np.array(bins.limits, np.int64)
        # A real field's half-complex transform leaves out the conjugates of all planes but two.
        kz = self._m[self._halved]
        weight = np.where((kz == 0) | (2 * kz == bins.cells), 1.0, 2.0)
        self._weights = [
            weight if one == self._halved else np.ones(m.size) for one, m in enumerate(self._m)
        ]

    def zero(self, pairs: Sequence[Pair]) -> PowerSum:
        """Return the modes of each bin, with products that are zero."""
        modes, lengths = kernels.count_modes(*self._m, tuple(self._weights), self._limits)
        total = PowerSum.zero(self._bins, pairs, 1 if self._axis is None else len(POLES))
        return replace(total, k=lengths * (2.0 * math.pi / self._bins.box_size), modes=modes)

    def add(self, products: Floats, a: Tensor, b: Tensor, power: int) -> None:
        """Add the products of two fields to ``products``, shape ``(poles, bins)``.

        Parameters
        ----------
        a, b : Tensor
            Modes of the block, with any leading dimensions.
        power : int
            Power of ``sinc(k_i h / 2)`` per axis by which the products are divided.

        Raises
        ------
        ValueError
            The fields have different shapes.
        """
        if a.shape != b.shape:
            raise ValueError(f"modes of different shapes {tuple(a.shape)} and {tuple(b.shape)}")
        factors = tuple(
            np.sinc(m / self._bins.cells) ** -float(power) * weight
            for m, weight in zip(self._m, self._weights, strict=True)
        )
        given = (*self._m, factors, self._limits)
        for one, two in zip(_components(a), _components(b), strict=True):
            if self._axis is None:
                products += kernels.add_products(one, two, *given)
            else:
                products += kernels.add_multipoles(one, two, *given, self._axis)


def _components(modes: Tensor) -> list[NDArray[Any]]:
    """Return the components of a field as contiguous arrays of three dimensions.

    Loops are compiled for this layout alone: compiling takes seconds for every layout.
    """
    parts = modes.reshape(-1, *modes.shape[-3:]).cpu().numpy()
    return [np.ascontiguousarray(part) for part in parts]


def sum_modes(
    a: Tensor,
    b: Tensor | None = None,
    *,
    cells: int,
    box_size: float,
    window: tuple[int, int] = (0, 0),
    bins: WaveBins | None = None,
) -> PowerSum:
    """Bin the products of the modes of one field, or of two fields with each other.

    Parameters
    ----------
    a, b : Tensor
        Modes like the fields of :func:`sum_products`.
    cells : int
        Cells per axis ``n`` of the whole box.
    box_size : float
        Box size, Mpc/h.
    window : (int, int)
        Powers of ``sinc(k_i h / 2)`` per axis by which the modes of ``a`` and ``b`` are divided.
    bins : WaveBins, optional
        By default one fundamental mode wide, up to the Nyquist frequency.
    """
    bins = bins or WaveBins.linear(cells, box_size)
    if b is None:
        return sum_products([a], [(0, 0)], bins, windows=window)
    return sum_products([a, b], [(0, 0), (1, 1), (0, 1)], bins, windows=window)


def join_interlaced(first: Tensor, second: Tensor, waves: WaveBlock | None = None) -> Tensor:
    """Return the modes of an interlaced pair of grids, without the nearest aliases.

    A mode on a grid is the sum of the true mode and of its images, which are whole numbers of
    sampling frequencies away. On the second grid images an odd number away have the opposite sign,
    and cancel in the mean of both grids (Sefusatti et al. 2016, section 3.1).

    Parameters
    ----------
    first : Tensor
        Shape ``(..., m1, m2, m3)``, complex: a block of the half-complex transform of a painted
        field. Overwritten with the result.
    second : Tensor
        The same block for the field painted with particles moved by half a cell along every axis.
        Overwritten.
    waves : WaveBlock, optional
        Wavenumbers of the block; by default it is the whole transform of a box.
    """
    waves = waves or WaveBlock.box(first.shape[-2], 1.0)
    for axis, m in enumerate(waves.integers()):
        # Undo the shift of the particles: exp(i k h / 2), axis by axis.
        angle = torch.from_numpy(math.pi / waves.cells * m)
        phase = torch.complex(angle.cos(), angle.sin()).to(first.device, first.dtype)
        second *= phase.view([-1 if other == axis else 1 for other in range(3)])
    return first.add_(second).mul_(0.5)


def auto_power(field: Tensor, box_size: float, *, window: int = 0) -> Spectrum:
    """Return the power spectrum of a scalar or vector field.

    Parameters
    ----------
    field : Tensor
        Shape ``(n, n, n)``, or ``(3, n, n, n)`` for the sum over components; real.
    box_size : float
        Box size, Mpc/h.
    window : int
        Power of ``sinc`` by which to divide the modes, see :data:`WINDOWS`; 0 for none.
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
        Box size, Mpc/h.
    window : (int, int)
        Powers of ``sinc`` by which to divide the modes of ``a`` and ``b``.
    """
    return sum_modes(
        fourier.forward(a),
        fourier.forward(b),
        cells=a.shape[-1],
        box_size=box_size,
        window=window,
    ).spectrum()


def jackknife(
    sums: Sequence[PowerSum], statistic: Callable[[PowerSum], Floats]
) -> tuple[Floats, Floats]:
    """Return a statistic of all boxes and its error, by leaving out one box at a time.

    Parameters
    ----------
    sums : sequence of PowerSum
        One per box, at least one.
    statistic : callable
        Function from a sum over boxes to an array, such as a power, T(k) or r(k).

    Returns
    -------
    value : ndarray
        The statistic of the sum over all boxes.
    error : ndarray
        ``sqrt((n - 1) / n sum_i (x_i - mean x)^2)`` over the ``x_i`` without box i (Norberg et al.
        2009, eq. 6), with the shape of ``value``; NaN for a single box.
    """
    total = sum(sums[1:], start=sums[0])
    value = np.asarray(statistic(total), np.float64)
    count = len(sums)
    if count < 2:
        return value, np.full(value.shape, np.nan)
    left = np.stack([np.asarray(statistic(total - one), np.float64) for one in sums])
    scatter = np.sum((left - left.mean(axis=0)) ** 2, axis=0)
    return value, np.sqrt((count - 1) / count * scatter)
