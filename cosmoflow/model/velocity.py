"""A network with the constants that turn density into velocities in km/s."""

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
            "\nspec: description of the model; network: its layers"
        )

    @property
    def geometry(self) -> Geometry:
        """Position of the output cells within the input cells."""
        return geometry_of(self.network)

    def channels(self, density: Tensor, flows: Tensor) -> Tensor:
        """Return the network's input.

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
        constants = self.spec.normalisation
        log_density = (torch.log(density + self.offset) - constants.density_mean) / (
            constants.density_std
        )
        velocities = flows.flatten(1, 2) / constants.velocity_scale
        return torch.cat([log_density.unsqueeze(1), velocities], dim=1)

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
        if self.spec.target == "velocity":
            return velocity
        return velocity * self.inner(density).unsqueeze(1)

    def normalised_target(self, target: Tensor, density: Tensor, flows: Tensor) -> Tensor:
        """Return the ideal network output for a target in km/s."""
        baseline = self.baseline(density, flows)
        residual = target if baseline is None else target - baseline
        return residual / self.spec.normalisation.target_scale

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
        inputs = self.channels(density, flows).to(memory_format=torch.channels_last_3d)
        result: Tensor = self.network(inputs).float() * self.spec.normalisation.target_scale
        baseline = self.baseline(density, flows)
        return result if baseline is None else result + baseline

    def members(
        self, density: Tensor, flows: Tensor, symmetries: tuple[Symmetry, ...]
    ) -> Iterator[Tensor]:
        """Yield the predictions made in turned frames, each turned back.

        The true field turns with the frame, but a network is not exactly equivariant. Averaging
        the predictions removes errors that differ between frames.

        Parameters
        ----------
        density, flows : Tensor
            See :meth:`forward`.
        symmetries : tuple of Symmetry
            Transformations to the frames.

        Yields
        ------
        Tensor
            Prediction with the shape of :meth:`forward`, as a new tensor.
        """
        for symmetry in symmetries:
            turned = self(symmetry.apply(density, vector=False), symmetry.apply(flows, vector=True))
            yield symmetry.inverse().apply(turned, vector=True)
