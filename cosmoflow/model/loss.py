"""What a network is to make small."""

from __future__ import annotations

from torch import Tensor


def mean_square(residual: Tensor, density: Tensor, weight: float) -> Tensor:
    """Return the mean square of a residual, by volume and by mass.

    Parameters
    ----------
    residual : Tensor
        Shape ``(batch, 3, n, n, n)``.
    density : Tensor
        Shape ``(batch, n, n, n)``, over its mean.
    weight : float
        Of the mean over mass; that over volume has 1. Mass is what is observed, and most of it is
        in few cells.
    """
    squares = residual.square()
    loss = squares.mean()
    if weight > 0.0:
        loss = (loss + weight * (squares * density.unsqueeze(1)).mean()) / (1.0 + weight)
    return loss
