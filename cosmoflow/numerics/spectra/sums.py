"""Spectra of fields and of blocks of their modes, in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from cosmoflow.numerics import fourier
from cosmoflow.numerics.spectra.bins import WaveBins
from cosmoflow.numerics.spectra.curves import Spectrum
from cosmoflow.numerics.spectra.mode_blocks import ModeBlock, pair_steps
from cosmoflow.numerics.spectra.totals import POLES, Floats, Pair, PowerSum
from cosmoflow.numerics.threads import map_ahead
from cosmoflow.numerics.waves import WaveBlock

WINDOWS: Final[dict[str, int]] = {"ngp": 1, "cic": 2, "tsc": 3, "pcs": 4}
"""Power of ``sinc(k_i h / 2)`` per axis by which a mass-assignment scheme damps a mode."""

_BLOCK_MODES: Final = 1 << 19
"""Modes that a thread processes at once."""


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
    windows = windows or [0] * len(fields)
    for step in pair_steps(pairs):
        first, second = pairs[step[0]]
        powers = windows[first], windows[second]
        block.add([total.products[row] for row in step], fields[first], fields[second], powers)
    return total


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
