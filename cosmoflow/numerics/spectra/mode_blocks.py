"""Products of modes in a block of a transform."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics.spectra import kernels
from cosmoflow.numerics.spectra.bins import WaveBins
from cosmoflow.numerics.spectra.totals import POLES, Floats, Pair, PowerSum
from cosmoflow.numerics.waves import WaveBlock


def pair_steps(pairs: Sequence[Pair]) -> list[tuple[int, ...]]:
    """Group the indices of pairs whose products are summed together.

    A pair ``(b, b)`` is summed together with the first pair ``(a, b)`` of different fields.
    """
    own: dict[int, list[int]] = {}
    for row, (first, second) in enumerate(pairs):
        if first == second:
            own.setdefault(second, []).append(row)
    steps = []
    for row, (first, second) in enumerate(pairs):
        if first != second:
            steps.append((row, *own.get(second, [])[:1]))
            own[second] = own.get(second, [])[1:]
    return sorted([*steps, *((row,) for rows in own.values() for row in rows)], key=min)


@lru_cache(maxsize=512)
def _count_modes(waves: WaveBlock, bins: WaveBins) -> tuple[Floats, Floats]:
    """Return the number of modes of each bin in a block, and the sum of their wavenumbers, h/Mpc.

    Fields of one grid share them: the arrays are read-only.
    """
    limits = np.array(bins.limits, np.int64)
    modes, lengths = kernels.count_modes(*waves.integers(), _weights(waves), limits)
    lengths *= 2.0 * math.pi / bins.box_size
    for shared in (modes, lengths):
        shared.flags.writeable = False
    return modes, lengths


def _weights(waves: WaveBlock) -> tuple[Floats, Floats, Floats]:
    """Return the weights of the modes along the axes of a block.

    A real field's half-complex transform leaves out the conjugates of all planes but two.
    """
    first, second, third = (
        np.where((axis == 2) & (m != 0) & (2 * m != waves.cells), 2.0, 1.0)
        for axis, m in zip(waves.axes, waves.integers(), strict=True)
    )
    return first, second, third


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
        self._waves, self._bins = waves, bins
        # Axis of the multipoles among those of the arrays.
        self._axis = None if axis is None else waves.axes.index(axis)
        self._m, self._weights = waves.integers(), _weights(waves)
        self._limits = np.array(bins.limits, np.int64)
        self._made: dict[int, kernels.Factors] = {}

    def zero(self, pairs: Sequence[Pair]) -> PowerSum:
        """Return the modes of each bin, with products that are zero."""
        modes, k = _count_modes(self._waves, self._bins)
        total = PowerSum.zero(self._bins, pairs, 1 if self._axis is None else len(POLES))
        return replace(total, k=k, modes=modes)

    def add(self, sums: Sequence[Floats], a: Tensor, b: Tensor, windows: tuple[int, int]) -> None:
        """Add the products of two fields to sums, each of shape ``(poles, bins)``.

        Parameters
        ----------
        sums : sequence of ndarray
            Sums of the products ``a b*`` and, if there are two, of ``b b*``.
        a, b : Tensor
            Modes of the block, with any leading dimensions.
        windows : (int, int)
            Powers of ``sinc(k_i h / 2)`` per axis by which the modes of ``a`` and ``b`` are
            divided.

        Raises
        ------
        ValueError
            The fields have different shapes.
        """
        if a.shape != b.shape:
            raise ValueError(f"modes of different shapes {tuple(a.shape)} and {tuple(b.shape)}")
        first, second = _components(a), _components(b)
        cross, auto = self._factors(sum(windows)), self._factors(2 * windows[1])
        if self._axis is None:
            found = kernels.add_products(
                first, second, *self._m, cross, auto, self._limits, len(sums) > 1
            )
            for into, one in zip(sums, found, strict=False):
                into[0] += one
            return
        for into, left, factors in zip(sums, (first, second), (cross, auto), strict=False):
            for one, two in zip(left, second, strict=True):
                into[:] += kernels.add_multipoles(
                    one, two, *self._m, factors, self._limits, self._axis
                )

    def _factors(self, power: int) -> kernels.Factors:
        """Return the factors of products along each axis: their weights over their windows."""
        if power not in self._made:
            x, y, z = (
                np.sinc(m / self._bins.cells) ** -float(power) * weight
                for m, weight in zip(self._m, self._weights, strict=True)
            )
            self._made[power] = x, y, z
        return self._made[power]


def _components(modes: Tensor) -> tuple[NDArray[Any], ...]:
    """Return the components of a field as contiguous arrays of three dimensions.

    Loops are compiled for this layout, and for each number of components: compiling takes seconds.
    """
    parts = modes.reshape(-1, *modes.shape[-3:]).cpu().numpy()
    return tuple(np.ascontiguousarray(part) for part in parts)
