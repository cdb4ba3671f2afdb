"""The loss of a network."""

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
        Weight of the mean over mass; the mean over volume has weight 1. Mass is observed, and
        most of the mass is in few cells.
    """
    squares = residual.square()
    loss = squares.mean()
    if weight > 0.0:
        loss = (loss + weight * (squares * density.unsqueeze(1)).mean()) / (1.0 + weight)
    return loss
