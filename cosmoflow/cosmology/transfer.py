"""The linear power spectrum by a fitting formula, without a Boltzmann code."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.cosmology.linear_power import LinearPower

_TEMPERATURE = 2.7255 / 2.7
"""Temperature of the cosmic microwave background over 2.7 K."""


@lru_cache(maxsize=256)
def smooth_power(cosmology: CosmologyConfig) -> LinearPower:
    """Return the power spectrum at z = 0 without acoustic oscillations, scaled to sigma8; cached.

    It says how large fluctuations are to a few per cent, takes milliseconds, and does not change
    with the version of a Boltzmann code. Massive neutrinos count as cold matter.

    References
    ----------
    Eisenstein & Hu 1998 (astro-ph/9709112), equations 26 and 28 to 31.
    """
    k = np.geomspace(1e-5, 1e3, 400)
    power = k**cosmology.n_s * _transfer(k, cosmology) ** 2
    return LinearPower(k, power).scaled_to(cosmology.sigma8)


def _transfer(k: NDArray[np.float64], cosmology: CosmologyConfig) -> NDArray[np.float64]:
    """Return the transfer function at wavenumbers in h/Mpc."""
    h, share = cosmology.h, cosmology.Omega_b / cosmology.Omega_m
    matter, baryons = cosmology.Omega_m * h**2, cosmology.Omega_b * h**2
    sound = 44.5 * np.log(9.83 / matter) / np.sqrt(1.0 + 10.0 * baryons**0.75)
    alpha = 1.0 - 0.328 * np.log(431.0 * matter) * share + 0.38 * np.log(22.3 * matter) * share**2
    suppressed = alpha + (1.0 - alpha) / (1.0 + (0.43 * k * h * sound) ** 4)
    q = k * _TEMPERATURE**2 / (cosmology.Omega_m * h * suppressed)
    logarithm = np.log(2.0 * np.e + 1.8 * q)
    found: NDArray[np.float64] = logarithm / (logarithm + (14.2 + 731.0 / (1.0 + 62.5 * q)) * q**2)
    return found
