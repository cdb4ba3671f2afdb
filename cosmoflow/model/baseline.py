"""Placeholder network of models that use their global flow alone."""

from __future__ import annotations

from torch import Tensor, nn

from cosmoflow.model.geometry import Geometry


class Baseline(nn.Module):
    """Adds nothing to a model's global flow: linear theory and Wiener filters as they are.

    It lets inference, storage and comparison treat these baselines like any other model.
    """

    geometry = Geometry(halo=0, stride=1, fixed_output=None, default_output=32)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``(batch, channels, n, n, n)`` to zeros, ``(batch, 3, n, n, n)``."""
        return inputs.new_zeros((inputs.shape[0], 3, *inputs.shape[2:]))
