"""The loss that training minimises."""

from __future__ import annotations

from torch import Tensor


def mean_square(residual: Tensor, density: Tensor, weight: float) -> Tensor:
    """Return the mean square of a residual, weighted by volume and by mass.

    Parameters
    ----------
    residual : Tensor
        Shape ``(batch, 3, n, n, n)``.
    density : Tensor
        Shape ``(batch, n, n, n)``, in units of the mean.
    weight : float
        Weight of the mean over mass, relative to the mean over volume. Observations trace mass,
        most of which is in few cells.
    """
    squares = residual.square()
    loss = squares.mean()
    if weight > 0.0:
        loss = (loss + weight * (squares * density.unsqueeze(1)).mean()) / (1.0 + weight)
    return loss
