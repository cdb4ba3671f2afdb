"""Modulation of a network by the condition of a box, folded into the network's weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cosmoflow.model.geometry import Geometry
from cosmoflow.model.registry import geometry_of

HIDDEN = 32
"""Features between the condition and the scales and shifts."""

Convolution = nn.Conv3d | nn.ConvTranspose3d


def convolutions(network: nn.Module) -> Iterator[tuple[str, Convolution]]:
    """Yield the convolutions of a network with their names, without its head for errors."""
    for name, module in network.named_modules():
        if isinstance(module, Convolution) and not name.startswith("errors."):
            yield name, module


class Modulation(nn.Module):
    """Scales and shifts of every feature that the convolutions of a network give.

    The last layer starts at zero, so an untrained modulation changes nothing.

    Parameters
    ----------
    network : nn.Module
        Network to modulate.
    coordinates : int
        Coordinates of a condition.
    """

    def __init__(self, network: nn.Module, coordinates: int) -> None:
        super().__init__()
        self._features = {name: one.out_channels for name, one in convolutions(network)}
        self.hidden = nn.Linear(coordinates, HIDDEN)
        self.output = nn.Linear(HIDDEN, 2 * sum(self._features.values()))
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, condition: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return scales and shifts by the name of the convolution, each ``(features,)``.

        Parameters
        ----------
        condition : Tensor
            Standardised coordinates, shape ``(coordinates,)``.
        """
        values = self.output(nn.functional.silu(self.hidden(condition)))
        sizes = list(self._features.values())
        scales, shifts = (part.split(sizes) for part in values.chunk(2))
        return dict(zip(self._features, zip(scales, shifts, strict=True), strict=True))


class ModulatedNetwork(nn.Module):
    """A network whose features are scaled and shifted by the condition of a box.

    A scaled and shifted convolution is a convolution with other weights, so a modulated network
    costs as much as a plain one. Nothing here depends on the place in the box, so results do not
    depend on the tiling.

    Parameters
    ----------
    network : nn.Module
        The network.
    coordinates : int
        Coordinates of a condition.
    """

    def __init__(self, network: nn.Module, coordinates: int) -> None:
        super().__init__()
        self.network = network
        self.modulation = Modulation(network, coordinates)

    @property
    def geometry(self) -> Geometry:
        """Position of the output cells within the input cells."""
        return geometry_of(self.network)

    def folded(self, condition: Tensor) -> dict[str, Tensor]:
        """Return the parameters of the network with the modulation of a condition folded in.

        They are float32 also where the network runs in bfloat16, as inference folds them.
        """
        with torch.autocast(condition.device.type, enabled=False):
            return self._fold(condition)

    def _fold(self, condition: Tensor) -> dict[str, Tensor]:
        parameters: dict[str, Tensor] = dict(self.network.named_parameters())
        convolution = dict(convolutions(self.network))
        for name, (scale, shift) in self.modulation(condition).items():
            weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
            # The features that a transposed convolution gives are the second axis of its kernel.
            axis = 1 if isinstance(convolution[name], nn.ConvTranspose3d) else 0
            shape = [-1 if one == axis else 1 for one in range(weight.dim())]
            parameters[f"{name}.weight"] = weight * (1.0 + scale).view(shape)
            parameters[f"{name}.bias"] = bias * (1.0 + scale) + shift
        return parameters

    def forward(self, inputs: Tensor, conditions: Tensor, **options: bool) -> Tensor:
        """Map inputs at given conditions to the network's output.

        Parameters
        ----------
        inputs : Tensor
            Shape ``(batch, channels, n, n, n)``.
        conditions : Tensor
            Standardised coordinates, shape ``(batch, coordinates)``.
        **options : bool
            Options of the network.
        """
        found: list[Tensor] = []
        rows = conditions.tolist()
        first = 0
        while first < len(rows):
            # Neighbours of one condition go through the network together.
            last = first + 1
            while last < len(rows) and rows[last] == rows[first]:
                last += 1
            parameters = self.folded(conditions[first])
            part = (inputs[first:last],)
            found.append(functional_call(self.network, parameters, part, options))
            first = last
        return torch.cat(found)
