"""Optimisers: AdamW, or Muon for the kernels of convolutions and AdamW for the rest."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon

from cosmoflow.config.networks import TrainConfig

_MOMENTUM = 0.95


def _as_matrix(kernel: Tensor) -> Tensor:
    """Return a view of a kernel as the matrix that multiplies a patch of its input.

    Kernels are stored with the channels last, so the columns have that order; Muon treats all
    orders alike.
    """
    return kernel.permute(0, 2, 3, 4, 1).flatten(1)


class Optimiser:
    """The optimiser of a network and its learning-rate schedule.

    Muon replaces the gradient of a matrix by the nearest semi-orthogonal matrix, so that all
    directions in feature space learn at the same rate, not only those with large gradients.
    For these networks it needs half as many steps as AdamW to reach the same residual.

    Parameters
    ----------
    network : nn.Module
        Network in ``channels_last_3d`` memory format.
    config : TrainConfig
        Optimiser, learning rates and schedule.

    References
    ----------
    .. [1] Jordan, K. et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        self._config = config
        self._parameters = [one for one in network.parameters() if one.requires_grad]
        # The last kernel is a readout, not a map between features: AdamW takes it, as in [1]_.
        kernels = [one for one in network.parameters() if one.dim() == 5]
        hidden = [one for one in kernels[:-1] if one.requires_grad]
        self._kernels = [
            (kernel, nn.Parameter(_as_matrix(kernel.detach())))
            for kernel in hidden
            if config.optimiser == "muon"
        ]
        taken = {id(kernel) for kernel, _ in self._kernels}
        rest = [one for one in self._parameters if id(one) not in taken]
        decay = config.weight_decay
        self._parts: list[torch.optim.Optimizer] = [
            AdamW(rest, lr=config.learning_rate, weight_decay=decay)
        ]
        if self._kernels:
            self._parts.append(
                Muon(
                    [matrix for _, matrix in self._kernels],
                    lr=config.muon_rate,
                    weight_decay=decay,
                    momentum=_MOMENTUM,
                )
            )
        self._peaks = [part.param_groups[0]["lr"] for part in self._parts]

    def schedule(self, step: int) -> float:
        """Return the fraction of the peak rates at a step: linear warm-up, then half a cosine."""
        config = self._config
        warmup = max(1, round(config.warmup * config.steps))
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, config.steps - warmup)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self, step: int) -> None:
        """Clip the gradients and update the weights at the rate of this step."""
        share = self.schedule(step)
        for part, peak in zip(self._parts, self._peaks, strict=True):
            for group in part.param_groups:
                group["lr"] = share * peak
        nn.utils.clip_grad_norm_(self._parameters, self._config.gradient_clip)
        for kernel, matrix in self._kernels:
            matrix.grad = None if kernel.grad is None else _as_matrix(kernel.grad)
        for part in self._parts:
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the state for :meth:`load_state_dict`."""
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Restore a state."""
        for part, content in zip(self._parts, state, strict=True):
            part.load_state_dict(content)
