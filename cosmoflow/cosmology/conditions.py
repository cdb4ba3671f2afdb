"""Condition of a box: what the relation between the density in its cells and the flow rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.cosmology.background import Background
from cosmoflow.cosmology.transfer import smooth_power

COORDINATES: Final = (
    "log_fluctuation",
    "log_matter",
    "log_cell_size",
    "slope",
    "log_particles_per_cell",
)
"""Coordinates of a condition, in their order."""

_SPHERE: Final = (3.0 / (4.0 * math.pi)) ** (1.0 / 3.0)
"""Radius of the sphere with the volume of a cell, in cells."""

_RATIO: Final = 1.1
"""Ratio of the radii between which the slope is measured."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Condition of the matter in the cells of a box.

    Parameters
    ----------
    redshift, Omega_m, sigma8, h, n_s : float
        Redshift of the box, and parameters of its cosmology.
    cell_size : float
        Side of a cell, Mpc/h.
    particles_per_cell : float or None
        Mean number of particles; None if it is not known.
    fluctuation : float
        Linear rms of the density contrast in spheres of a cell's volume, at the redshift.
    matter : float
        ``Omega_m(z)``.
    slope : float
        ``dln sigma / dln R`` of the linear fluctuations at that sphere.
    displacement : float
        Linear rms of one component of the displacement, Mpc/h, in an infinite box.
    growth_rate_hubble : float
        ``f a H``, km/s per Mpc/h.
    """

    redshift: float
    Omega_m: float
    sigma8: float
    h: float
    n_s: float
    cell_size: float
    particles_per_cell: float | None
    fluctuation: float
    matter: float
    slope: float
    displacement: float
    growth_rate_hubble: float

    def coordinates(self, particles_per_cell: float) -> tuple[float, ...]:
        """Return the coordinates, see :data:`COORDINATES`.

        Parameters
        ----------
        particles_per_cell : float
            Number to assume where it is not known.
        """
        particles = self.particles_per_cell or particles_per_cell
        return (
            math.log(self.fluctuation),
            math.log(self.matter),
            math.log(self.cell_size),
            self.slope,
            math.log(particles),
        )


@lru_cache(maxsize=64)
def find_condition(
    cosmology: CosmologyConfig,
    redshift: float,
    cell_size: float,
    particles_per_cell: float | None,
) -> Condition:
    """Return the condition of a box; cached.

    Parameters
    ----------
    cosmology : CosmologyConfig
        Cosmology of the box.
    redshift : float
        Redshift of the box.
    cell_size : float
        Side of a cell, Mpc/h.
    particles_per_cell : float or None
        Mean number of particles in a cell, if it is known.
    """
    background, power = Background(cosmology), smooth_power(cosmology)
    a = 1.0 / (1.0 + redshift)
    growth = float(background.growth(a))
    radius = _SPHERE * cell_size
    sigma = power.sigma(radius)
    k = power.k
    # sigma_psi^2 = int P dk / (6 pi^2), by the trapezoidal rule in ln k.
    square = float(np.trapezoid(k * power.power, np.log(k))) / (6.0 * math.pi**2)
    return Condition(
        redshift=redshift,
        Omega_m=cosmology.Omega_m,
        sigma8=cosmology.sigma8,
        h=cosmology.h,
        n_s=cosmology.n_s,
        cell_size=cell_size,
        particles_per_cell=particles_per_cell,
        fluctuation=growth * sigma,
        matter=float(cosmology.Omega_m * a**-3 / background.hubble_ratio(a) ** 2),
        slope=math.log(power.sigma(_RATIO * radius) / sigma) / math.log(_RATIO),
        displacement=growth * math.sqrt(square),
        growth_rate_hubble=float(background.growth_rate_hubble(a)),
    )
