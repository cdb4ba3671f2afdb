"""Mean and spread of fields that come one after the other."""

from __future__ import annotations

from torch import Tensor


class Moments:
    """Mean and sum of squared deviations of some fields, without holding them.

    Parameters
    ----------
    spread : bool
        Keep the deviations too; otherwise the mean alone.

    Attributes
    ----------
    count : int
        How many fields have been added.

    Notes
    -----
    Welford's updates: sums of squares would cancel where fields agree.
    """

    def __init__(self, *, spread: bool) -> None:
        self.count = 0
        self._spread = spread
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, field: Tensor) -> None:
        """Add a field; the first one is kept, and changed later."""
        self.count += 1
        if self._mean is None:
            self._mean = field
            self._squares = field.new_zeros(field.shape) if self._spread else None
            return
        change = field - self._mean
        self._mean.add_(change, alpha=1.0 / self.count)
        if self._squares is not None:
            self._squares.addcmul_(change, field - self._mean)

    @property
    def mean(self) -> Tensor:
        """The mean of what was added.

        Raises
        ------
        ValueError
            Nothing was.
        """
        if self._mean is None:
            raise ValueError("no field was added")
        return self._mean

    @property
    def squares(self) -> Tensor:
        """The sum of squared deviations from the mean.

        Raises
        ------
        ValueError
            Nothing was added, or the spread is not kept.
        """
        if self._squares is None:
            raise ValueError("no deviations are kept")
        return self._squares
