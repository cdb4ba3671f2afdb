"""Products of modes to sum, independent of the source of the modes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from cosmoflow.numerics.quantities import ModeRule
from cosmoflow.numerics.spectra.bins import WaveBins
from cosmoflow.numerics.spectra.mode_blocks import ModeBlock, pair_steps
from cosmoflow.numerics.spectra.sums import join_interlaced
from cosmoflow.numerics.spectra.totals import POLES, Pair, PowerSum
from cosmoflow.numerics.waves import WaveBlock


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

    def make(self, modes: Mapping[int, Tensor], waves: WaveBlock) -> Tensor:
        """Return the field's modes in a block, given those of its transforms."""
        found = modes[self.transforms[0]]
        if len(self.transforms) > 1:
            second = modes[self.transforms[1]]
            # Joining overwrites its arguments, which another product may need unchanged.
            found = join_interlaced(found.clone(), second.clone(), waves)
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


def sum_terms(
    wanted: Sequence[Products], transform: Callable[[int], Tensor], waves: WaveBlock
) -> list[PowerSum]:
    """Sum products over a block of modes.

    Pairs are multiplied in the order of their transforms, and modes are dropped after their last
    use. Where a truth is multiplied with many methods, the modes of one of them are in memory at a
    time.

    Parameters
    ----------
    wanted : sequence of Products
        The products.
    transform : callable
        Function from the index of a transform to its modes in the block, with leading dimensions.
    waves : WaveBlock
        Wavenumbers of the block.

    Returns
    -------
    list of PowerSum
        One sum for each of ``wanted``.
    """
    blocks = [ModeBlock(waves, products.bins, products.axis) for products in wanted]
    sums = [block.zero(one.pairs) for block, one in zip(blocks, wanted, strict=True)]

    def last_transform(step: tuple[int, tuple[int, ...]]) -> int:
        own, rows = step
        terms = wanted[own].terms
        return max(max(terms[term].transforms) for term in wanted[own].pairs[rows[0]])

    steps = [(own, rows) for own, one in enumerate(wanted) for rows in pair_steps(one.pairs)]
    steps.sort(key=last_transform)
    # The step after which a term, or the modes of a transform, are not needed any more.
    last_term: dict[tuple[int, int], int] = {}
    last_modes: dict[int, int] = {}
    for step, (own, rows) in enumerate(steps):
        for term in wanted[own].pairs[rows[0]]:
            if (own, term) not in last_term:
                last_modes |= dict.fromkeys(wanted[own].terms[term].transforms, step)
            last_term[own, term] = step
    modes: dict[int, Tensor] = {}
    made: dict[tuple[int, int], Tensor] = {}
    for step, (own, rows) in enumerate(steps):
        products, (first, second) = wanted[own], wanted[own].pairs[rows[0]]
        for term in {first, second}:
            if (own, term) not in made:
                for index in products.terms[term].transforms:
                    if index not in modes:
                        modes[index] = transform(index)
                # A derived scalar has no leading dimension, a stored one has a single component.
                field = products.terms[term].make(modes, waves)
                made[own, term] = field.reshape(-1, *field.shape[-3:])
        modes = {index: kept for index, kept in modes.items() if last_modes[index] > step}
        windows = products.terms[first].window, products.terms[second].window
        total = [sums[own].products[row] for row in rows]
        blocks[own].add(total, made[own, first], made[own, second], windows)
        made = {key: kept for key, kept in made.items() if last_term[key] > step}
    return sums
