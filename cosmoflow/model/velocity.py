"""A network together with everything that it needs to turn density into km/s."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cosmoflow.model.geometry import Geometry
from cosmoflow.model.registry import count_parameters, find_architecture, geometry_of
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
        Mean and deviation of the channel ``ln(rho + offset)``.
    velocity_scale : float
        Rms of a component of the input velocities, km/s.
    target_scale : float
        Rms of a component of what the network predicts, km/s.
    """

    density_mean: float
    density_std: float
    velocity_scale: float
    target_scale: float


UNIT = Normalisation(0.0, 1.0, 1.0, 1.0)
"""Normalisation of a model without a network."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Description of a model and its training data.

    Parameters
    ----------
    architecture : str
        Name in the registry.
    target : {"velocity", "momentum"}
        The field that it predicts.
    cell_size : float
        Cell size of the training fields, Mpc/h.
    redshift : float
        Of the training fields.
    cosmology : dict
        Parameters of the training simulations.
    normalisation : Normalisation
        Constants of its inputs and outputs.
    provenance : dict
        How it was made.
    filter : WienerFilter, optional
        Filter of its first flow, if its architecture has one.
    gain : PowerGain, optional
        Restores the power that its velocities lack on small scales.
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


class VelocityModel(nn.Module):
    """Maps tiles of density, and of global flows, to velocity or momentum in km/s.

    Parameters
    ----------
    spec : ModelSpec
        Architecture and constants. The weights start at random.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        architecture = find_architecture(spec.architecture)
        if (architecture.filter is None) != (spec.filter is None):
            raise ValueError(f"{architecture.name} takes the filter {architecture.filter}")
        self.smoothing = architecture.smoothing
        self.flows = architecture.flows
        self.offset = architecture.offset
        self.network = architecture.build()

    def __repr__(self) -> str:
        spec = self.spec
        parameters, _ = count_parameters(self.network)
        return (
            f"VelocityModel {spec.architecture}: {spec.target} in km/s on cells of "
            f"{spec.cell_size:g} Mpc/h at z = {spec.redshift:g}; {parameters:,} parameters"
            "\nspec: its description; network: its layers"
        )

    @property
    def geometry(self) -> Geometry:
        """Position of output cells in input cells."""
        return geometry_of(self.network)

    def channels(self, density: Tensor, flows: Tensor) -> Tensor:
        """Return the network's input.

        Parameters
        ----------
        density : Tensor
            Shape ``(batch, nx, ny, nz)``, over its mean.
        flows : Tensor
            Shape ``(batch, flows, 3, nx, ny, nz)``, km/s: the global velocities, none for a network
            without them.

        Returns
        -------
        Tensor
            Shape ``(batch, channels, nx, ny, nz)``, dimensionless.
        """
        constants = self.spec.normalisation
        log_density = (torch.log(density + self.offset) - constants.density_mean) / (
            constants.density_std
        )
        velocities = flows.flatten(1, 2) / constants.velocity_scale
        return torch.cat([log_density.unsqueeze(1), velocities], dim=1)

    def inner(self, field: Tensor) -> Tensor:
        """Return the output cells of a field ``(..., nx, ny, nz)`` on the input cells."""
        halo = self.geometry.halo
        x, y, z = (slice(halo, cells - halo) for cells in field.shape[-3:])
        return field[..., x, y, z]

    def baseline(self, density: Tensor, flows: Tensor) -> Tensor | None:
        """Return what the first flow says of the target on the output cells, km/s, or None."""
        if not self.flows:
            return None
        velocity = self.inner(flows[:, 0])
        if self.spec.target == "velocity":
            return velocity
        return velocity * self.inner(density).unsqueeze(1)

    def normalised_target(self, target: Tensor, density: Tensor, flows: Tensor) -> Tensor:
        """Return what the network should put out for a target in km/s."""
        baseline = self.baseline(density, flows)
        residual = target if baseline is None else target - baseline
        return residual / self.spec.normalisation.target_scale

    def forward(self, density: Tensor, flows: Tensor) -> Tensor:
        """Predict the target.

        Parameters
        ----------
        density, flows : Tensor
            See :meth:`channels`; tiles with the geometry's halo.

        Returns
        -------
        Tensor
            Shape ``(batch, 3, nx - 2 halo, ...)``, km/s, float32.
        """
        inputs = self.channels(density, flows).to(memory_format=torch.channels_last_3d)
        result: Tensor = self.network(inputs).float() * self.spec.normalisation.target_scale
        baseline = self.baseline(density, flows)
        return result if baseline is None else result + baseline

    def members(
        self, density: Tensor, flows: Tensor, symmetries: tuple[Symmetry, ...]
    ) -> Iterator[Tensor]:
        """Yield the prediction made in each of some turned frames, turned back.

        The true answer turns with the frame and a network's does so in the mean only: what it errs
        in one frame and not in the others goes away in the mean of these.

        Parameters
        ----------
        density, flows : Tensor
            As of :meth:`forward`.
        symmetries : tuple of Symmetry
            The frames.

        Yields
        ------
        Tensor
            Result of :meth:`forward`, in new memory.
        """
        for symmetry in symmetries:
            turned = self(symmetry.apply(density, vector=False), symmetry.apply(flows, vector=True))
            yield symmetry.inverse().apply(turned, vector=True)
