"""The architectures by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cosmoflow.errors import ConfigError
from cosmoflow.model.geometry import Geometry
from cosmoflow.model.paper import PaperNetwork
from cosmoflow.model.residual import ResidualUNet


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network and what it must be fed.

    Parameters
    ----------
    name, summary : str
        For people.
    build : callable
        Makes the network.
    smoothing : tuple of float
        Gaussian radii of the global linear velocities among its inputs, Mpc/h. The network learns
        the residual from the first; without any it learns the target itself.
    offset : float
        The density channel is ``ln(rho + offset)``.
    """

    name: str
    summary: str
    build: Callable[[], nn.Module]
    smoothing: tuple[float, ...]
    offset: float

    @property
    def channels(self) -> int:
        """Input channels."""
        return 1 + 3 * len(self.smoothing)


def _residual(
    name: str,
    summary: str,
    widths: tuple[int, int, int],
    encoder: tuple[int, int, int],
    decoder: tuple[int, int],
) -> Architecture:
    smoothing = (2.0, 6.0)
    channels = 1 + 3 * len(smoothing)
    return Architecture(
        name, summary, lambda: ResidualUNet(channels, widths, encoder, decoder), smoothing, 0.1
    )


_SHALLOW = ((1, 1, 2), (1, 2))
_DEEP = ((2, 2, 2), (2, 2))

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture("paper", "Wu et al. 2021, 48,690,307 parameters", PaperNetwork, (), 1.0),
        Architecture(
            "paper-text",
            "the same with the 3^3 output kernel of the paper's text",
            lambda: PaperNetwork(output_kernel=3),
            (),
            1.0,
        ),
        _residual("residual-tiny", "for tests and first tries", (8, 16, 32), *_SHALLOW),
        _residual("residual-small", "for CPUs", (16, 32, 64), *_SHALLOW),
        _residual("residual-medium", "for one GPU", (32, 64, 128), *_DEEP),
        _residual("residual-large", "for many GPUs", (64, 128, 256), *_DEEP),
    )
}


def find_architecture(name: str) -> Architecture:
    """Return an architecture by its name.

    Raises
    ------
    ConfigError
        There is none of that name.
    """
    try:
        return ARCHITECTURES[name]
    except KeyError:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        raise ConfigError(
            f"unknown model {name!r}",
            where="train.model",
            remedy=f"did you mean {near[0]!r}?" if near else f"one of {', '.join(ARCHITECTURES)}",
        ) from None


def geometry_of(network: nn.Module) -> Geometry:
    """Return how a network's output lies in its input."""
    geometry = network.geometry
    if not isinstance(geometry, Geometry):
        raise TypeError(f"{type(network).__name__} has no geometry")
    return geometry


def count_parameters(network: nn.Module) -> tuple[int, int]:
    """Return the parameters of a network, running statistics included, and the trainable ones."""
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    statistics = sum(b.numel() for b in network.buffers() if b.is_floating_point())
    return trainable + statistics, trainable


@dataclass(frozen=True, slots=True)
class ArchitectureSummary:
    """What ``cosmoflow models`` says of an architecture.

    ``flops_per_output_cell`` counts a multiplication and an addition as two and includes the halo
    of a tile of ``output_cells``.
    """

    name: str
    summary: str
    parameters: int
    trainable: int
    input_cells: int
    output_cells: int
    halo: int
    stride: int
    channels: int
    flops_per_output_cell: float


def summarise(name: str) -> ArchitectureSummary:
    """Measure an architecture without allocating its weights."""
    architecture = find_architecture(name)
    with torch.device("meta"):
        network = architecture.build()
    geometry = geometry_of(network)
    output = geometry.default_output
    cells = geometry.input_cells(output)
    total, trainable = count_parameters(network)
    return ArchitectureSummary(
        name=name,
        summary=architecture.summary,
        parameters=total,
        trainable=trainable,
        input_cells=cells,
        output_cells=output,
        halo=geometry.halo,
        stride=geometry.stride,
        channels=architecture.channels,
        flops_per_output_cell=count_flops(name, output) / output**3,
    )


def count_flops(name: str, output: int) -> int:
    """Return the floating-point operations of one tile of ``output`` cells per axis."""
    architecture = find_architecture(name)
    # Tensors of the meta device have shapes and no values: nothing is computed.
    with torch.device("meta"):
        network = architecture.build().eval()
        cells = geometry_of(network).input_cells(output)
        tile = torch.empty((1, architecture.channels, cells, cells, cells))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(tile)
    return int(counter.get_total_flops())
