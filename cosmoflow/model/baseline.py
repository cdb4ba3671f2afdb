"""The network of a model that has none."""

from __future__ import annotations

from torch import Tensor, nn

from cosmoflow.model.geometry import Geometry


class Baseline(nn.Module):
    """Adds nothing to a model's global flow: linear theory and Wiener filters as they are.

    As a network it makes them models like any other, for inference, storage and comparison.
    """

    geometry = Geometry(halo=0, stride=1, fixed_output=None, default_output=32)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``(batch, channels, n, n, n)`` to zeros, ``(batch, 3, n, n, n)``."""
        return inputs.new_zeros((inputs.shape[0], 3, *inputs.shape[2:]))
