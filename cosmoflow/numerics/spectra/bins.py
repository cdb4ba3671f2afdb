"""Bins of wavenumbers, with no mode on an edge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class WaveBins:
    """Bins in ``|k|`` of a periodic cube; no bin contains the mean of a field.

    Every mode has an integer squared length in units of the fundamental mode ``2 pi / L``. A bin is
    stored as the largest such integer in it, so a mode's bin does not depend on round-off.

    Parameters
    ----------
    cells : int
        Cells per axis n.
    box_size : float
        Side L of the cube, Mpc/h.
    limits : tuple of int
        Ascending: bin ``b`` holds the modes with ``limits[b] < |m|^2 <= limits[b + 1]``.
    """

    cells: int
    box_size: float
    limits: tuple[int, ...]

    @classmethod
    def linear(cls, cells: int, box_size: float, count: int | None = None) -> Self:
        """Return ``count`` bins one fundamental mode wide, centred on its multiples.

        By default the last one is centred on the Nyquist frequency.
        """
        last = cells // 2 if count is None else count
        # (b + 1/2)^2 = b (b + 1) + 1/4, of which no integer is the square.
        return cls(cells, float(box_size), tuple(b * (b + 1) for b in range(last + 1)))

    @classmethod
    def logarithmic(cls, cells: int, box_size: float, per_decade: int) -> Self:
        """Return ``per_decade`` bins for every factor of ten in k, of equal width in ``log k``.

        They span half the fundamental mode to Nyquist. Bins at the largest scales that are too
        narrow to contain a mode are left out.
        """
        low, high = 0.5, cells // 2 + 0.5
        count = math.ceil(per_decade * math.log10(high / low))
        edges = low * 10.0 ** (np.arange(count) / per_decade)
        limits = [math.floor(edge**2) for edge in edges] + [math.floor(high**2)]
        kept = [limits[0]]
        for limit in limits[1:]:
            if _holds_a_mode(kept[-1], limit):
                kept.append(limit)
        return cls(cells, float(box_size), tuple(kept))

    @property
    def count(self) -> int:
        """Number of bins."""
        return len(self.limits) - 1

    @property
    def edges(self) -> NDArray[np.float64]:
        """Shape ``(count + 1,)``: wavenumbers between the bins, h/Mpc; no mode is on an edge."""
        fundamental = 2.0 * math.pi / self.box_size
        result: NDArray[np.float64] = np.sqrt(np.array(self.limits) + 0.25) * fundamental
        return result


def _holds_a_mode(low: int, high: int) -> bool:
    """Check whether any ``low < m^2 <= high`` is the squared length of a wavevector."""
    return any(
        _is_sum_of_three_squares(squared) for squared in range(low + 1, min(high, low + 3) + 1)
    )


def _is_sum_of_three_squares(number: int) -> bool:
    """Check for a sum of three squares: all numbers but ``4^a (8 b + 7)`` are (Legendre)."""
    while number and number % 4 == 0:
        number //= 4
    return number % 8 != 7
