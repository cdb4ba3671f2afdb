"""Models of all conditions: a network and a filter that know redshift, cosmology and cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor

from cosmoflow.cosmology.conditions import COORDINATES, Condition
from cosmoflow.model.errors import ErrorScale
from cosmoflow.model.modulation import ModulatedNetwork
from cosmoflow.model.registry import count_parameters, find_architecture
from cosmoflow.model.velocity import (
    Excess,
    Fit,
    ModelSpec,
    Normalisation,
    Reconstruction,
    Target,
    VelocityModel,
    build_network,
    normalised_channels,
)
from cosmoflow.numerics.conditions import ConditionCurves, ConditionSpace, Floats
from cosmoflow.numerics.restoration import PowerGain
from cosmoflow.numerics.wiener import WienerFilter

LIMITED: Final = (
    "redshift", "Omega_m", "sigma8", "cell_size", "particles_per_cell", "h", "n_s",
)  # fmt: skip
"""Quantities whose range of training a family keeps."""

LIMITED_LATER: Final = frozenset(("h", "n_s"))
"""Those of them that families of earlier versions do not have."""

CONSTANTS: Final = 4
"""Numbers of a frame before the coordinates: those of a :class:`Normalisation`."""

_BINS: Final = 128
"""Bins of the filters and gains that a family makes."""

_ROUNDING: Final = 1e-3
"""Share by which a quantity may lie outside of its range without being outside."""


@dataclass(frozen=True)
class Family:
    """The constants of a model as functions of the condition.

    Attributes
    ----------
    space : ConditionSpace
        Conditions that the functions were fitted to.
    limits : mapping of str to (float, float)
        Smallest and largest value in training of each quantity of :data:`LIMITED`.
    particles_per_cell : float
        Number that is assumed where a box does not state its own.
    fields : tuple of str
        Fields of the Wiener filter.
    weights : ConditionCurves
        Weights of these fields over k, h/Mpc.
    density_mean, density_log_std : tuple of float
        Polynomials: mean of ``ln(rho + offset)`` and logarithm of its standard deviation.
    residual_log_rms : tuple of float
        Polynomial: logarithm of the rms residual of the filter's velocity, per component, over that
        of the linear velocity, ``f a H`` times the linear displacement.
    gain : ConditionCurves, optional
        Logarithms of the gains that restore power, potential and rotational, over ``k cell``.
    gain_symmetries : int
        Number of frames that predictions were averaged over for the gains.
    gain_reach : tuple of (float, float)
        Smallest and largest value of each coordinate of the conditions that the gains were measured
        at. Beyond them the gains are those at the edge. Empty for families of earlier versions.
    """

    space: ConditionSpace
    limits: Mapping[str, tuple[float, float]]
    particles_per_cell: float
    fields: tuple[str, ...]
    weights: ConditionCurves
    density_mean: tuple[float, ...]
    density_log_std: tuple[float, ...]
    residual_log_rms: tuple[float, ...]
    gain: ConditionCurves | None = None
    gain_symmetries: int = 1
    gain_reach: tuple[tuple[float, float], ...] = ()

    def terms(self, condition: Condition) -> Floats:
        """Return the terms of the polynomials at a condition."""
        return self.space.terms(condition.coordinates(self.particles_per_cell))

    def filter(self, condition: Condition) -> WienerFilter:
        """Return the Wiener filter of a condition."""
        k, width = _bins(condition.cell_size)
        rows = self.weights.at(self.terms(condition), k)
        # Bin 0 holds the mean alone.
        rows[0] = 0.0
        return WienerFilter(self.fields, width, tuple(map(tuple, rows.tolist())))

    def normalisation(self, condition: Condition) -> Normalisation:
        """Return the constants of a network at a condition."""
        terms = self.terms(condition)

        def value(coefficients: tuple[float, ...]) -> float:
            return float(terms @ np.array(coefficients))

        linear = condition.growth_rate_hubble * condition.displacement
        return Normalisation(
            density_mean=value(self.density_mean),
            density_std=math.exp(value(self.density_log_std)),
            velocity_scale=linear,
            target_scale=linear * math.exp(value(self.residual_log_rms)),
        )

    def frame(self, condition: Condition) -> tuple[float, ...]:
        """Return the numbers that training needs of a box: constants, standardised coordinates."""
        point = self.space.standardise(condition.coordinates(self.particles_per_cell))
        return (*astuple(self.normalisation(condition)), *point.tolist())

    def power_gain(self, condition: Condition) -> PowerGain | None:
        """Return the gains that restore the power of predictions at a condition."""
        if self.gain is None:
            return None
        k, width = _bins(condition.cell_size)
        point = np.array(condition.coordinates(self.particles_per_cell))
        if self.gain_reach:
            point = np.clip(point, *np.transpose(self.gain_reach))
        curves = self.gain.at(self.space.terms(point), k * condition.cell_size)
        potential, rotational = np.exp(curves).T.tolist()
        return PowerGain(width, tuple(potential), tuple(rotational), self.gain_symmetries)

    def fit(self, condition: Condition) -> Fit:
        """Return how a box of a condition fits the range of training."""
        found = list[Excess]()
        for name in (name for name in LIMITED if name in self.limits):
            value, (low, high) = getattr(condition, name), self.limits[name]
            margin = _ROUNDING * max(1.0, abs(high))
            if value is not None and not low - margin <= value <= high + margin:
                found.append(Excess(name, float(value), low, high))
        unknown = condition.particles_per_cell is None
        return Fit(tuple(found), self.particles_per_cell if unknown else None)


def _bins(cell_size: float) -> tuple[Floats, float]:
    """Return the centres of bins that cover the modes of a grid, and their width, h/Mpc."""
    k = np.linspace(0.0, math.sqrt(3.0) * math.pi / cell_size, _BINS)
    return k, float(k[1])


@dataclass(frozen=True, slots=True)
class FamilySpec:
    """Description of a model of all conditions.

    Parameters
    ----------
    architecture : str
        Name in the registry.
    target : {"velocity", "momentum"}
        Predicted field.
    family : Family
        Constants as functions of the condition.
    provenance : dict
        How the model was made.
    errors : ErrorScale, optional
        Calibration of the errors that the network expects.
    """

    architecture: str
    target: Target
    family: Family
    provenance: dict[str, Any] = field(default_factory=dict)
    errors: ErrorScale | None = None


class ModelFamily(Reconstruction):
    """A model of all conditions; :meth:`at` gives the model of one of them.

    Parameters
    ----------
    spec : FamilySpec
        Architecture and constants. The weights start at random, without modulation.
    """

    def __init__(self, spec: FamilySpec) -> None:
        architecture = find_architecture(spec.architecture)
        network = build_network(architecture, errors=spec.errors is not None)
        if architecture.learns:
            network = ModulatedNetwork(network, len(COORDINATES))
        super().__init__(architecture, spec.target, network)
        self.spec = spec

    def __repr__(self) -> str:
        limits = self.spec.family.limits.items()
        parameters, _ = count_parameters(self.network)
        said = "".join(f"\n  {name} {low:g} to {high:g}" for name, (low, high) in limits)
        return (
            f"ModelFamily {self.spec.architecture}: {self.spec.target} in km/s; {parameters:,} "
            f"parameters; trained on{said}\nat(condition): the model of one condition"
        )

    @torch.no_grad()
    def at(self, condition: Condition) -> VelocityModel:
        """Return the model of a condition, in evaluation mode, with its own weights."""
        family, spec = self.spec.family, self.spec
        coordinates = family.frame(condition)[CONSTANTS:]
        model = VelocityModel(
            ModelSpec(
                architecture=spec.architecture,
                target=spec.target,
                cell_size=condition.cell_size,
                redshift=condition.redshift,
                cosmology={"Omega_m": condition.Omega_m, "sigma8": condition.sigma8},
                normalisation=family.normalisation(condition),
                provenance=spec.provenance,
                filter=family.filter(condition),
                gain=family.power_gain(condition),
                fit=family.fit(condition),
                errors=None if spec.errors is None else spec.errors.at(coordinates),
            )
        )
        if isinstance(self.network, ModulatedNetwork):
            frame = torch.tensor(coordinates)
            weights = self.network.folded(frame.to(next(self.network.parameters()).device))
            model.network.load_state_dict(weights)
        return model.eval()

    def network_inputs(self, density: Tensor, flows: Tensor, frames: Tensor) -> tuple[Tensor, ...]:
        """Return the inputs of the network: channels and conditions."""
        mean, std, scale = (frames[:, i, None, None, None] for i in range(3))
        channels = normalised_channels(density, flows, self.offset, mean, std, scale)
        return channels, frames[:, CONSTANTS:]

    def target_scale(self, frames: Tensor) -> Tensor:
        """Return the rms per component of what the network predicts, ``(batch, 1, 1, 1, 1)``."""
        return frames[:, 3, None, None, None, None]

    def blank(self, errors: ErrorScale | None = None) -> Self:
        """Return a model with random weights: of the same description, but for its errors."""
        return type(self)(replace(self.spec, errors=errors))
