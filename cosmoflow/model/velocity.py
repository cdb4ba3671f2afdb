"""A network with the constants that turn density into velocities in km/s."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Self, TypeGuard

import torch
from torch import Tensor, nn

from cosmoflow.errors import ConfigError
from cosmoflow.model.errors import ErrorScale
from cosmoflow.model.geometry import Geometry
from cosmoflow.model.registry import (
    Architecture,
    count_parameters,
    find_architecture,
    geometry_of,
)
from cosmoflow.model.residual import ResidualUNet
from cosmoflow.numerics.restoration import PowerGain
from cosmoflow.numerics.symmetry import Symmetry
from cosmoflow.numerics.wiener import WienerFilter

Target = Literal["velocity", "momentum"]


@dataclass(frozen=True, slots=True)
class Normalisation:
    """The constants that make inputs and targets of order one; they travel with the model.

    Parameters
    ----------
    density_mean, density_std : float
        Mean and standard deviation of the channel ``ln(rho + offset)``.
    velocity_scale : float
        Rms per component of the input velocities, km/s.
    target_scale : float
        Rms per component of the field that the network predicts, km/s.
    """

    density_mean: float
    density_std: float
    velocity_scale: float
    target_scale: float


UNIT = Normalisation(0.0, 1.0, 1.0, 1.0)
"""Constants of a model without a network."""


@dataclass(frozen=True, slots=True)
class Excess:
    """A quantity of a box outside of the range that a model was trained on.

    Parameters
    ----------
    name : str
        Name of the quantity.
    value, low, high : float
        Its value, and the range.
    """

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Fit:
    """How a box fits the family of models that a model was made from.

    Parameters
    ----------
    excess : tuple of Excess
        Quantities of the box outside of the range of training.
    assumed_particles : float or None
        Particles per cell that were assumed, if the box does not state their number.
    """

    excess: tuple[Excess, ...]
    assumed_particles: float | None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Description of a model and of its training data.

    Parameters
    ----------
    architecture : str
        Name in the registry.
    target : {"velocity", "momentum"}
        Predicted field.
    cell_size : float
        Cell size of the training fields, Mpc/h.
    redshift : float
        Redshift of the training fields.
    cosmology : dict
        Parameters of the training simulations.
    normalisation : Normalisation
        Constants of the inputs and outputs.
    provenance : dict
        How the model was made.
    filter : WienerFilter, optional
        Filter that makes the first flow, for architectures that use one.
    gain : PowerGain, optional
        Gain that restores the power that the velocities lack on small scales.
    fit : Fit, optional
        How the box fits, of a model that a family made for a box. None for a model of one
        condition.
    errors : ErrorScale, optional
        Calibration of the errors that the network expects, for networks with a head for them.
    """

    architecture: str
    target: Target
    cell_size: float
    redshift: float
    cosmology: dict[str, float]
    normalisation: Normalisation
    provenance: dict[str, Any] = field(default_factory=dict)
    filter: WienerFilter | None = None
    gain: PowerGain | None = None
    fit: Fit | None = None
    errors: ErrorScale | None = None


class Reconstruction(nn.Module, ABC):
    """What models of one condition and families of models have in common.

    Parameters
    ----------
    architecture : Architecture
        Network and inputs.
    target : {"velocity", "momentum"}
        Predicted field.
    network : nn.Module
        The network.
    """

    def __init__(self, architecture: Architecture, target: Target, network: nn.Module) -> None:
        super().__init__()
        self.target = target
        self.smoothing = architecture.smoothing
        self.flows = architecture.flows
        self.offset = architecture.offset
        self.learns = architecture.learns
        self.network = network

    @property
    def geometry(self) -> Geometry:
        """Position of the output cells within the input cells."""
        return geometry_of(self.network)

    @abstractmethod
    def network_inputs(self, density: Tensor, flows: Tensor, frames: Tensor) -> tuple[Tensor, ...]:
        """Return the arguments of the network.

        Parameters
        ----------
        density, flows : Tensor
            Tiles with the geometry's halo, see :meth:`VelocityModel.channels`.
        frames : Tensor
            Numbers of the boxes that a family of models needs, shape ``(batch, numbers)``; empty
            for a model of one condition.
        """

    @abstractmethod
    def target_scale(self, frames: Tensor) -> Tensor | float:
        """Return the rms per component of what the network predicts, km/s."""

    @abstractmethod
    def blank(self, errors: ErrorScale | None = None) -> Self:
        """Return a model with random weights: of the same description, but for its errors."""

    def inner(self, field: Tensor) -> Tensor:
        """Crop a field ``(..., nx, ny, nz)`` from the input cells to the output cells."""
        halo = self.geometry.halo
        x, y, z = (slice(halo, cells - halo) for cells in field.shape[-3:])
        return field[..., x, y, z]

    def baseline(self, density: Tensor, flows: Tensor) -> Tensor | None:
        """Return the target that the first flow predicts on the output cells, km/s, or None."""
        if not self.flows:
            return None
        velocity = self.inner(flows[:, 0])
        if self.target == "velocity":
            return velocity
        return velocity * self.inner(density).unsqueeze(1)

    def wanted(self, target: Tensor, density: Tensor, flows: Tensor, frames: Tensor) -> Tensor:
        """Return the ideal network output for a target in km/s."""
        baseline = self.baseline(density, flows)
        residual = target if baseline is None else target - baseline
        return residual / self.target_scale(frames)

    def predict(self, density: Tensor, flows: Tensor, frames: Tensor) -> Tensor:
        """Return the target, shape ``(batch, 3, nx - 2 halo, ...)``, km/s, float32.

        Without a network it may be a part of the flows, not to be changed.
        """
        baseline = self.baseline(density, flows)
        if not self.learns:
            assert baseline is not None
            return baseline
        output = self.network(*self.network_inputs(density, flows, frames))
        result: Tensor = output.float() * self.target_scale(frames)
        return result if baseline is None else result.add_(baseline)


def normalised_channels(
    density: Tensor,
    flows: Tensor,
    offset: float,
    mean: Tensor | float,
    std: Tensor | float,
    scale: Tensor | float,
) -> Tensor:
    """Return ``(ln(rho + offset) - mean) / std`` and the flows over their scale, channels last.

    Parameters
    ----------
    density, flows : Tensor
        Shapes ``(batch, nx, ny, nz)`` and ``(batch, flows, 3, nx, ny, nz)``.
    offset, mean, std, scale : float or Tensor
        Constants of all tiles, or tensors ``(batch, 1, 1, 1)`` with those of each.

    Returns
    -------
    Tensor
        Shape ``(batch, 1 + 3 flows, nx, ny, nz)``.
    """
    velocities = flows.flatten(1, 2)
    # Each channel is computed where it goes: there is no second copy to reorder.
    channels = torch.empty(
        (len(density), 1 + velocities.shape[1], *density.shape[1:]),
        device=density.device,
        memory_format=torch.channels_last_3d,
    )
    torch.add(density, offset, out=channels[:, 0]).log_().sub_(mean).div_(std)
    torch.div(
        velocities, scale if isinstance(scale, float) else scale.unsqueeze(1), out=channels[:, 1:]
    )
    return channels


def may_expect_errors(network: nn.Module) -> TypeGuard[ResidualUNet]:
    """Return whether a network can have a head for the size of its errors: residual ones can."""
    return isinstance(network, ResidualUNet)


def build_network(architecture: Architecture, *, errors: bool) -> nn.Module:
    """Return a new network, with a head for errors if wanted.

    Raises
    ------
    ConfigError
        Only residual networks have such a head.
    """
    network = architecture.build()
    if errors:
        if not may_expect_errors(network):
            raise ConfigError(
                "only residual networks expect errors",
                where="train.error_steps",
                value=architecture.name,
                remedy="leave the setting out, or train a residual network",
            )
        network.add_errors()
    return network


class Estimate(NamedTuple):
    """A prediction and the size of its errors.

    Parameters
    ----------
    mean : Tensor
        Prediction, shape ``(batch, 3, nx, ny, nz)``, km/s.
    size : Tensor or None
        Expected size of its errors, same shape; None if it was not asked for.
    """

    mean: Tensor
    size: Tensor | None


class VelocityModel(Reconstruction):
    """Maps tiles of density, and of global flows, to velocity or momentum in km/s.

    Parameters
    ----------
    spec : ModelSpec
        Architecture and constants. The weights start at random.
    """

    def __init__(self, spec: ModelSpec) -> None:
        architecture = find_architecture(spec.architecture)
        if (architecture.filter is None) != (spec.filter is None):
            raise ValueError(f"{architecture.name} takes the filter {architecture.filter}")
        network = build_network(architecture, errors=spec.errors is not None)
        super().__init__(architecture, spec.target, network)
        self.spec = spec

    def __repr__(self) -> str:
        spec = self.spec
        parameters, _ = count_parameters(self.network)
        return (
            f"VelocityModel {spec.architecture}: {spec.target} in km/s on cells of "
            f"{spec.cell_size:g} Mpc/h at z = {spec.redshift:g}; {parameters:,} parameters"
            "\nspec: description of the model; network: its layers"
        )

    def channels(self, density: Tensor, flows: Tensor) -> Tensor:
        """Return the network's input: normalised, channels last in memory.

        Parameters
        ----------
        density : Tensor
            Shape ``(batch, nx, ny, nz)``, in units of the mean.
        flows : Tensor
            Global velocities, shape ``(batch, flows, 3, nx, ny, nz)``, km/s; ``flows`` may be 0.

        Returns
        -------
        Tensor
            Shape ``(batch, channels, nx, ny, nz)``, dimensionless.
        """
        one = self.spec.normalisation
        return normalised_channels(
            density, flows, self.offset, one.density_mean, one.density_std, one.velocity_scale
        )

    def network_inputs(self, density: Tensor, flows: Tensor, frames: Tensor) -> tuple[Tensor, ...]:
        """Return the input of the network."""
        return (self.channels(density, flows),)

    def target_scale(self, frames: Tensor) -> float:
        """Return the rms per component of what the network predicts, km/s."""
        return self.spec.normalisation.target_scale

    def blank(self, errors: ErrorScale | None = None) -> Self:
        """Return a model with random weights: of the same description, but for its errors."""
        return type(self)(replace(self.spec, errors=errors))

    def normalised_target(self, target: Tensor, density: Tensor, flows: Tensor) -> Tensor:
        """Return the ideal network output for a target in km/s."""
        return self.wanted(target, density, flows, density.new_empty((len(density), 0)))

    def forward(self, density: Tensor, flows: Tensor) -> Tensor:
        """Predict the target.

        Parameters
        ----------
        density, flows : Tensor
            Tiles with the geometry's halo, see :meth:`channels`.

        Returns
        -------
        Tensor
            Shape ``(batch, 3, nx - 2 halo, ...)``, km/s, float32.
        """
        return self.predict(density, flows, density.new_empty((len(density), 0)))

    def estimate(self, density: Tensor, flows: Tensor) -> Estimate:
        """Predict the target and the size of its errors; see :meth:`forward`."""
        assert self.spec.errors is not None
        channels = self.channels(density, flows)
        output = self.network(channels, errors=True).float()
        scale = self.spec.normalisation.target_scale
        mean, baseline = output[:, :3] * scale, self.baseline(density, flows)
        size = self.spec.errors.size(output[:, 3:], self.inner(channels[:, :1])) * scale
        return Estimate(mean if baseline is None else mean + baseline, size)

    def members(
        self,
        density: Tensor,
        flows: Tensor,
        symmetries: tuple[Symmetry, ...],
        *,
        errors: bool = False,
    ) -> Iterator[Estimate]:
        """Yield the predictions made in turned frames, each turned back.

        The true field turns with the frame, but a network is not exactly equivariant. Averaging
        the predictions removes errors that differ between frames.

        Parameters
        ----------
        density, flows : Tensor
            See :meth:`forward`.
        symmetries : tuple of Symmetry
            Transformations to the frames.
        errors : bool
            Whether to give the size of the errors, too.

        Yields
        ------
        Estimate
            Prediction with the shape of :meth:`forward`, not to be changed.
        """
        for symmetry in symmetries:
            turned = symmetry.apply(density, vector=False), symmetry.apply(flows, vector=True)
            back = symmetry.inverse()
            if not errors:
                yield Estimate(back.apply(self(*turned), vector=True), None)
                continue
            mean, size = self.estimate(*turned)
            assert size is not None
            # The size of a component has no sign.
            yield Estimate(back.apply(mean, vector=True), back.apply(size, vector=True).abs())
