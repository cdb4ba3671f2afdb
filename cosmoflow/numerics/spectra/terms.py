"""Which products of modes to sum, told apart from where the modes come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cosmoflow.numerics.quantities import ModeRule
from cosmoflow.numerics.slabs import RowWaves
from cosmoflow.numerics.spectra.bins import WaveBins
from cosmoflow.numerics.spectra.sums import (
    POLES,
    Pair,
    PowerSum,
    join_interlaced,
    sum_block,
)


@dataclass(frozen=True, slots=True)
class Term:
    """A field that is multiplied with others.

    Parameters
    ----------
    transforms : tuple of int
        Which transform it is made of; two, of an interlaced pair of grids.
    derive : callable, optional
        What makes its modes of the transform's.
    window : int
        Power of ``sinc(k_i h / 2)`` per axis that its modes are divided by.
    """

    transforms: tuple[int, ...]
    derive: ModeRule | None = None
    window: int = 0

    def make(self, modes: Sequence[Tensor], waves: RowWaves) -> Tensor:
        """Return the modes of some rows, given those of all transforms."""
        found = modes[self.transforms[0]]
        if len(self.transforms) > 1:
            second = modes[self.transforms[1]]
            # What is joined is overwritten, and another product may need it as it is.
            start = (0, waves.rows.start, 0)
            found = join_interlaced(found.clone(), second.clone(), start, waves.cells)
        return found if self.derive is None else self.derive(found, waves.odd())


@dataclass(frozen=True, slots=True)
class Products:
    """What to measure of some terms.

    Parameters
    ----------
    terms : tuple of Term
        The fields.
    pairs : tuple of (int, int)
        Which of them to multiply.
    bins : WaveBins
        Of the box.
    axis : int, optional
        Of multipoles; none means the monopole alone.
    """

    terms: tuple[Term, ...]
    pairs: tuple[Pair, ...]
    bins: WaveBins
    axis: int | None = None

    def zero(self) -> PowerSum:
        """Return the sum over no modes."""
        return PowerSum.zero(self.bins, self.pairs, 1 if self.axis is None else len(POLES))

    def sum_rows(self, modes: Sequence[Tensor], waves: RowWaves) -> PowerSum:
        """Sum the products over some rows of modes.

        Parameters
        ----------
        modes : sequence of Tensor
            Of each transform, shape ``(components, n, rows, n // 2 + 1)``.
        waves : RowWaves
            Which rows.
        """
        return sum_block(
            [term.make(modes, waves) for term in self.terms],
            self.pairs,
            self.bins,
            windows=[term.window for term in self.terms],
            start=(0, waves.rows.start, 0),
            axis=self.axis,
        )
