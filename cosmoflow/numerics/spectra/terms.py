"""Products of modes to sum, independent of the source of the modes."""

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
    """A field that enters products.

    Parameters
    ----------
    transforms : tuple of int
        Index of the field's transform, or both indices of an interlaced pair of grids.
    derive : callable, optional
        Computes the field's modes from those of the transform.
    window : int
        Power of ``sinc(k_i h / 2)`` per axis by which its modes are divided.
    """

    transforms: tuple[int, ...]
    derive: ModeRule | None = None
    window: int = 0

    def make(self, modes: Sequence[Tensor], waves: RowWaves) -> Tensor:
        """Return the field's modes in a block of rows, given the modes of all transforms."""
        found = modes[self.transforms[0]]
        if len(self.transforms) > 1:
            second = modes[self.transforms[1]]
            # Joining overwrites its arguments, which another product may need unchanged.
            start = (0, waves.rows.start, 0)
            found = join_interlaced(found.clone(), second.clone(), start, waves.cells)
        return found if self.derive is None else self.derive(found, waves.odd())


@dataclass(frozen=True, slots=True)
class Products:
    """Products of terms to measure.

    Parameters
    ----------
    terms : tuple of Term
        The fields.
    pairs : tuple of (int, int)
        Pairs of terms to multiply.
    bins : WaveBins
        Bins of the box.
    axis : int, optional
        Axis of the multipoles; None measures the monopole alone.
    """

    terms: tuple[Term, ...]
    pairs: tuple[Pair, ...]
    bins: WaveBins
    axis: int | None = None

    def zero(self) -> PowerSum:
        """Return the sum over no modes."""
        return PowerSum.zero(self.bins, self.pairs, 1 if self.axis is None else len(POLES))

    def sum_rows(self, modes: Sequence[Tensor], waves: RowWaves) -> PowerSum:
        """Sum the products over a block of rows.

        Parameters
        ----------
        modes : sequence of Tensor
            Modes of each transform, shape ``(components, n, rows, n // 2 + 1)``.
        waves : RowWaves
            Wavenumbers of the rows.
        """
        return sum_block(
            [term.make(modes, waves) for term in self.terms],
            self.pairs,
            self.bins,
            windows=[term.window for term in self.terms],
            start=(0, waves.rows.start, 0),
            axis=self.axis,
        )
