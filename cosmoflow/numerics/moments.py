"""Running mean and spread of a sequence of fields."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Mean and sum of squared deviations of fields, without keeping the fields.

    Parameters
    ----------
    spread : bool
        Whether to keep the deviations in addition to the mean.

    Attributes
    ----------
    count : int
        Number of fields added.

    Notes
    -----
    Uses Welford's updates: plain sums of squares would cancel where fields agree.
    """

    def __init__(self, *, spread: bool) -> None:
        self.count = 0
        self._spread = spread
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, field: Tensor) -> None:
        """Add a field. The first one is kept as it is, and never changed."""
        self.count += 1
        if self._mean is None:
            self._mean = field
            self._squares = field.new_zeros(field.shape) if self._spread else None
            return
        change = field - self._mean
        # The first sum is a new field: the one before is the caller's.
        own = None if self.count == 2 else self._mean
        self._mean = torch.add(self._mean, change, alpha=1.0 / self.count, out=own)
        if self._squares is not None:
            self._squares.addcmul_(change, field - self._mean)

    @property
    def mean(self) -> Tensor:
        """Mean of the added fields.

        Raises
        ------
        ValueError
            No field was added.
        """
        if self._mean is None:
            raise ValueError("no field was added")
        return self._mean

    @property
    def squares(self) -> Tensor:
        """Sum of squared deviations from the mean.

        Raises
        ------
        ValueError
            No field was added, or the spread is not kept.
        """
        if self._squares is None:
            raise ValueError("no deviations are kept")
        return self._squares
