"""Sums of products of modes in bins of wavenumber, and the spectra that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from cosmoflow.numerics.spectra.bins import WaveBins
from cosmoflow.numerics.spectra.curves import Spectrum, divide

Floats = NDArray[np.float64]
Pair = tuple[int, int]

POLES: Final = (0, 2, 4)
"""Multipoles measured if an axis is given; otherwise only the monopole is measured."""


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
