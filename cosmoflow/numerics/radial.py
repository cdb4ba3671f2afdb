"""Bins in |k| with a width independent of the box, so that boxes of all sizes can share them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics import fourier

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RadialBins:
    """Bins in wavenumber: bin ``b`` is centred on ``b`` widths; bin 0 contains the mean alone.

    Parameters
    ----------
    width : float
        Bin width, h/Mpc.
    count : int
        Number of bins; modes beyond the last are in none.
    """

    width: float
    count: int

    @classmethod
    def covering(cls, cells: int, box_size: float) -> RadialBins:
        """Return bins one fundamental mode wide that cover all modes of a box, with the corners."""
        count = int(np.ceil(np.sqrt(3.0) * (cells // 2))) + 2
        return cls(2.0 * np.pi / box_size, count)

    def place(self, squared: Tensor) -> Tensor:
        """Return ``|k|`` in bin widths from squared wavenumbers."""
        return squared.sqrt().div_(self.width)

    def index(self, cells: int, box_size: float) -> Tensor:
        """Return the bin of every mode, flat; ``count`` means no bin."""
        place = self.place(fourier.squared_wavenumber(cells, box_size)).add_(0.5)
        return place.long().clamp_(max=self.count).reshape(-1)

    def sum_product(self, left: Tensor, right: Tensor, index: Tensor) -> Floats:
        """Sum ``Re left right*`` over the modes of each bin.

        Parameters
        ----------
        left, right : Tensor
            Half-complex transforms ``(..., n, n, n // 2 + 1)``; leading dimensions are summed over.
        index : Tensor
            Bins from :meth:`index`.

        Returns
        -------
        (count,) float64
            Bin 0 is zero.
        """
        cells = left.shape[-2]
        # The half-complex layout leaves out the conjugates of all planes but two.
        weight = torch.full((cells // 2 + 1,), 2.0, dtype=torch.float64)
        weight[0] = 1.0
        if cells % 2 == 0:
            weight[-1] = 1.0
        total = np.zeros(self.count)
        shape = left.shape[-3:]
        for one, two in zip(left.reshape(-1, *shape), right.reshape(-1, *shape), strict=True):
            product = (one.real.double() * two.real + one.imag.double() * two.imag) * weight
            sums = torch.bincount(index, product.reshape(-1), self.count + 1)
            total += sums[: self.count].numpy()
        total[0] = 0.0
        return total

    def spread(self, tables: Tensor, squared: Tensor) -> list[Tensor]:
        """Interpolate values at the bins' centres linearly in k to given modes.

        Parameters
        ----------
        tables : Tensor
            Values, shape ``(count, columns)``, float32. The value of bin 0 is never used: values
            are constant beyond both ends.
        squared : Tensor
            ``k^2`` of the modes of a grid or a slab, float32, (h/Mpc)^2.

        Returns
        -------
        list of Tensor
            One per column, float32, with the shape of ``squared``.
        """
        last = self.count - 1
        place = self.place(squared).clamp_(1.0, float(last))
        below = place.floor().clamp_(max=last - 1.0)
        share = place.sub_(below)
        index = below.long()
        return [torch.lerp(column[index], column[index + 1], share) for column in tables.unbind(1)]
