"""Architectures by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from cosmoflow.errors import ConfigError, suggest
from cosmoflow.model.geometry import Geometry, Sides
from cosmoflow.model.names import LINEAR
from cosmoflow.model.paper import PaperNetwork
from cosmoflow.model.residual import ResidualUNet
from cosmoflow.model.tally import tally


class Baseline(nn.Module):
    """Adds nothing to a model's global flow: linear theory and Wiener filters as they are.

    It lets inference, storage and comparison treat these baselines like any other model.
    """

    geometry = Geometry(halo=0, stride=1, fixed_output=None, default_output=32)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``(batch, channels, n, n, n)`` to zeros, ``(batch, 3, n, n, n)``."""
        return inputs.new_zeros((inputs.shape[0], 3, *inputs.shape[2:]))


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network and its inputs.

    Parameters
    ----------
    name, summary : str
        Name and one-line description.
    build : callable
        Returns a new network.
    smoothing : tuple of float
        Gaussian radii of the linear velocities among the inputs, Mpc/h.
    filter : str or None
        Set of fields (:data:`cosmoflow.numerics.wiener.SETS`) of the Wiener filter whose flow
        precedes the linear ones among the inputs. The network learns the residual from the first
        flow; without flows it learns the target itself.
    offset : float
        Offset in the density channel ``ln(rho + offset)``.
    """

    name: str
    summary: str
    build: Callable[[], nn.Module]
    smoothing: tuple[float, ...] = ()
    filter: str | None = None
    offset: float = 1.0

    @property
    def flows(self) -> int:
        """Number of global velocities among the inputs."""
        return len(self.smoothing) + (self.filter is not None)

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return 1 + 3 * self.flows

    @property
    def learns(self) -> bool:
        """Whether there is a network to train; a baseline returns its first flow."""
        return self.build is not Baseline


def _residual(
    name: str,
    summary: str,
    widths: tuple[int, int, int],
    encoder: tuple[int, int, int],
    decoder: tuple[int, int],
) -> Architecture:
    # Linear velocities smoothed at 2 and 6 Mpc/h beside the filtered one gained nothing.
    return Architecture(
        name, summary, lambda: ResidualUNet(4, widths, encoder, decoder), (), "wiener", 0.1
    )


def _linear(radius: float) -> Architecture:
    name = LINEAR if radius == 0.0 else f"{LINEAR}:{radius:g}"
    return Architecture(name, "linear theory, smoothed at R of linear:R Mpc/h", Baseline, (radius,))


_SHALLOW = ((1, 1, 2), (1, 2))
_DEEP = ((2, 2, 2), (2, 2))

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        _linear(0.0),
        Architecture("wiener-linear", "Wiener filter of delta", Baseline, filter="wiener-linear"),
        Architecture(
            "wiener-log", "Wiener filter of delta and ln rho", Baseline, filter="wiener-log"
        ),
        Architecture(
            "wiener",
            "Wiener filter of delta, ln rho, squared delta and squared tide",
            Baseline,
            filter="wiener",
        ),
        Architecture("paper", "Wu et al. 2021, 48,690,307 parameters", PaperNetwork),
        Architecture(
            "paper-text",
            "the same with the 3^3 output kernel of the paper's text",
            lambda: PaperNetwork(output_kernel=3),
        ),
        Architecture(
            "paper-narrow",
            "the same with an eighth of the features, for CPUs",
            lambda: PaperNetwork(narrowing=8),
        ),
        _residual("residual-tiny", "for tests and first tries", (8, 24, 48), *_SHALLOW),
        _residual("residual-small", "for CPUs", (16, 48, 96), *_SHALLOW),
        _residual("residual-medium", "for one GPU", (32, 96, 192), *_DEEP),
        _residual("residual-large", "for many GPUs", (64, 192, 384), *_DEEP),
    )
}


def find_architecture(name: str) -> Architecture:
    """Return an architecture by its name; ``linear:R`` is linear theory smoothed at R Mpc/h.

    Raises
    ------
    ConfigError
        There is no architecture of that name.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if name.startswith(f"{LINEAR}:"):
        return _linear(_radius(name))
    raise ConfigError(
        f"unknown model {name!r}",
        where="model",
        remedy=suggest(name, ARCHITECTURES, f"one of {', '.join(ARCHITECTURES)}"),
    )


def _radius(name: str) -> float:
    text = name.removeprefix(f"{LINEAR}:")
    try:
        radius = float(text)
    except ValueError:
        radius = math.nan
    if not 0.0 <= radius < math.inf:
        raise ConfigError(
            "linear theory is smoothed at a radius in Mpc/h",
            where="model",
            value=name,
            limit="a number, 0 or more",
            remedy="linear:4, for example",
        )
    return radius


def geometry_of(network: nn.Module) -> Geometry:
    """Return the geometry of a network."""
    geometry = network.geometry
    if not isinstance(geometry, Geometry):
        raise TypeError(f"{type(network).__name__} has no geometry")
    return geometry


def count_parameters(network: nn.Module) -> tuple[int, int]:
    """Return the number of parameters, including running statistics, and of trainable ones."""
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    statistics = sum(b.numel() for b in network.buffers() if b.is_floating_point())
    return trainable + statistics, trainable


def widest_layer(network: nn.Module) -> int:
    """Return the features of the widest layer; 0 for a baseline."""
    return max((p.shape[0] for p in network.parameters() if p.dim() == 5), default=0)


@dataclass(frozen=True, slots=True)
class ArchitectureSummary:
    """Summary of an architecture for ``cosmoflow models``.

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


def shapes_of(
    name: str, output: int | Sides, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, Tensor]:
    """Return a network and an input tile with shapes and no values: nothing is computed."""
    architecture = find_architecture(name)
    with torch.device("meta"):
        network = architecture.build().eval().to(dtype)
        shape = geometry_of(network).input_shape(output)
        return network, torch.empty((1, architecture.channels, *shape), dtype=dtype)


@cache
def count_flops(name: str, output: int | Sides) -> int:
    """Return the floating-point operations of a tile; ``output`` is one number or one per axis."""
    return tally(*shapes_of(name, output)).flops
