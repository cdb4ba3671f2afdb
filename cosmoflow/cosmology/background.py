"""Expansion and growth in a universe of matter, curvature and dark energy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.cosmology.growth import GrowthSolution, solve_growth
from cosmoflow.errors import ConfigError
from cosmoflow.units import H0_KM_S_PER_MPC_H

Scale = TypeVar("Scale", float, NDArray[np.float64])
"""A scale factor or an array of them; results have the same shape."""

EARLIEST = 1e-4
"""Scale factor at which growth starts as in Einstein-de Sitter (Lambda contributes 1e-12 there).

A curvature of 1 contributes 1e-4 there; the resulting error decays as a^-2.5."""
LATEST = 4.0
"""Last tabulated scale factor."""


@dataclass(frozen=True)
class Background:
    r"""Expansion and growth of one cosmology: matter, curvature, dark energy; no radiation.

    Displacements are ``x = q + D1 psi1 + D2 psi2`` with ``psi1 = -grad phi1``,
    ``lap phi1 = delta_lin(z=0)``, ``psi2 = +grad phi2`` and
    ``lap phi2 = sum_{i>j} (phi1,ii phi1,jj - phi1,ij^2)``. With ``T = a^3 E d/da`` the growth
    functions obey

    .. math:: T^2 D_1 = \tfrac32 \Omega_m a D_1, \qquad
              T^2 D_2 = \tfrac32 \Omega_m a (D_2 - D_1^2),

    so that ``D2 = -3/7 D1^2`` while matter dominates. These equations hold for any expansion whose
    dark energy does not cluster: curvature and dark energy enter through ``E`` alone,

    .. math:: E^2 = \Omega_m a^{-3} + \Omega_k a^{-2}
              + \Omega_{de} a^{-3 (1 + w_0 + w_a)} e^{-3 w_a (1 - a)}.

    Massive neutrinos count as cold matter. For a sum of their masses of 0.06 to 0.4 eV, ``E`` is
    then accurate to 2e-5 up to z = 3. The growth rate is accurate on scales beyond the neutrinos'
    free streaming and at most ``3/5 Omega_nu / Omega_m`` too large on smaller scales.

    Parameters
    ----------
    cosmology : CosmologyConfig
        Cosmological parameters.

    Notes
    -----
    Methods take a scale factor or a float64 array of them and return the same shape. The growth
    functions raise ConfigError for scale factors outside ``EARLIEST`` to ``LATEST``.

    References
    ----------
    Tassev, Zaldarriaga & Eisenstein 2013 (arXiv:1301.0322), appendix A; Bouchet et al. 1995
    (astro-ph/9406013) for the second order; Linder 2003 (astro-ph/0208512) for dark energy.
    """

    cosmology: CosmologyConfig

    @property
    def Omega_m(self) -> float:  # noqa: N802 - the field's standard symbol
        """Matter density today."""
        return self.cosmology.Omega_m

    def hubble_ratio(self, a: Scale) -> Scale:
        """Return ``E = H / H0`` at scale factor ``a``."""
        c = self.cosmology
        dark: float | Scale = c.Omega_Lambda
        if not c.has_cosmological_constant:
            dark = dark * a ** (-3.0 * (1.0 + c.w0 + c.wa)) * np.exp(-3.0 * c.wa * (1.0 - a))
        squared: Scale = c.Omega_m * a**-3 + dark
        # Add curvature only if there is any: flat Lambda-CDM must not change by a bit.
        if c.Omega_k != 0.0:
            squared = squared + c.Omega_k * a**-2
        ratio: Scale = squared**0.5
        return ratio

    def growth(self, a: Scale) -> Scale:
        """Return the first-order growth ``D1``, 1 today."""
        return self._state(a)[0]

    def growth2(self, a: Scale) -> Scale:
        """Return the second-order growth ``D2``, negative."""
        return self._state(a)[2]

    def growth_rate(self, a: Scale) -> Scale:
        """Return ``f1 = dln D1 / dln a``."""
        first, momentum, _, _ = self._state(a)
        return momentum / (first * a**2 * self.hubble_ratio(a))

    def growth_rate2(self, a: Scale) -> Scale:
        """Return ``f2 = dln D2 / dln a``."""
        _, _, second, momentum = self._state(a)
        return momentum / (second * a**2 * self.hubble_ratio(a))

    def growth_rate_hubble(self, a: Scale) -> Scale:
        """Return ``f1 a H`` in km/s per Mpc/h, the ratio ``-div v / delta`` of linear theory."""
        return self.growth_rate(a) * a * H0_KM_S_PER_MPC_H * self.hubble_ratio(a)

    @cached_property
    def _solution(self) -> GrowthSolution:
        return _solve_growth(self.cosmology)

    @cached_property
    def _norm(self) -> float:
        return float(self._solution(np.zeros(1))[0, 0])

    def _state(self, a: Scale) -> tuple[Scale, Scale, Scale, Scale]:
        """Return ``D1``, ``T D1``, ``D2`` and ``T D2``, normalised to ``D1 = 1`` today."""
        values = np.asarray(a, dtype=np.float64)
        # This form also refuses NaN.
        if not bool(np.all((values >= EARLIEST) & (values <= LATEST))):
            raise ConfigError(
                "Growth is not tabulated at this scale factor.",
                value=f"{values.min()} to {values.max()}",
                limit=f"{EARLIEST} to {LATEST}",
            )
        y = self._solution(np.log(values).ravel()).reshape(4, *values.shape)
        n = self._norm
        # Return floats for a scalar and arrays for an array.
        d1, p1, d2, p2 = y if values.ndim else (float(component) for component in y)
        return d1 * (a / n), p1 * (a**1.5 / n), d2 * (a / n) ** 2, p2 * (a**2.5 / n**2)


@lru_cache(maxsize=32)
def _solve_growth(cosmology: CosmologyConfig) -> GrowthSolution:
    """Return the solution of the growth equations; cached."""
    ratio = Background(cosmology).hubble_ratio
    return solve_growth(cosmology.Omega_m, ratio, math.log(EARLIEST), math.log(LATEST))
