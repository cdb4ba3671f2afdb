"""The linear matter power spectrum today, from CAMB or from a table."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.cosmology.spline import NaturalSpline
from cosmoflow.errors import ConfigError, DataError

K_MIN, K_MAX, K_POINTS = 2e-5, 50.0, 1200
"""Range (h/Mpc) and number of wavenumbers requested from CAMB, whose own range is 1e-5 to 77."""


class LinearPower:
    """A power spectrum ``P(k)``: cubic in log-log inside its table, a power law beyond either end.

    Parameters
    ----------
    k : array_like
        Shape ``(n,)``, n >= 4, h/Mpc, positive and strictly increasing.
    power : array_like
        Shape ``(n,)``, (Mpc/h)^3, positive.

    Raises
    ------
    DataError
        The table does not meet these conditions.
    """

    def __init__(self, k: ArrayLike, power: ArrayLike) -> None:
        self.k, self.power = _validate(k, power)
        self._spline = NaturalSpline(np.log(self.k), np.log(self.power))
        log_k = np.log(self.k[[0, -1]])
        self._ends = (log_k, np.log(self.power[[0, -1]]), self._spline.slope(log_k))

    def __call__(self, k: ArrayLike) -> NDArray[np.float64]:
        """Return the power at wavenumbers ``k`` (h/Mpc, any shape) in (Mpc/h)^3; 0 at k = 0.

        Raises
        ------
        DataError
            A wavenumber is negative or not a number.
        """
        wavenumber = np.asarray(k, dtype=np.float64)
        if bool(np.any(~(wavenumber >= 0.0))):
            raise DataError("A wavenumber is negative or not a number.", limit="k >= 0 (h/Mpc)")
        positive = wavenumber > 0.0
        log_k = np.log(np.where(positive, wavenumber, self.k[0]))
        (low, high), (p_low, p_high), (s_low, s_high) = self._ends
        log_p = self._spline(np.clip(log_k, low, high))
        log_p = np.where(log_k < low, p_low + s_low * (log_k - low), log_p)
        log_p = np.where(log_k > high, p_high + s_high * (log_k - high), log_p)
        return np.where(positive, np.exp(log_p), 0.0)

    def sigma(self, radius: float = 8.0) -> float:
        """Return the rms of the linear density in spheres of ``radius`` Mpc/h.

        Notes
        -----
        ``sigma^2 = int dln k k^3 P / (2 pi^2) W^2(kR)`` with the top-hat window
        ``W(x) = 3 (sin x - x cos x) / x^3``, by the trapezoidal rule on 40 000 points of ln k from
        1e-6 to 100/R; the omitted range contributes a fraction below 1e-5.
        """
        k = np.geomspace(1e-6, 100.0 / radius, 40_000)
        x = k * radius
        # The closed form cancels badly at small x; there three terms of its series err by 1e-12.
        small = x < 0.05
        safe = np.where(small, 1.0, x)
        window = np.where(
            small,
            1.0 - x**2 / 10.0 + x**4 / 280.0,
            3.0 * (np.sin(safe) - safe * np.cos(safe)) / safe**3,
        )
        integrand = k**3 * self(k) / (2.0 * np.pi**2) * window**2
        return float(np.sqrt(np.trapezoid(integrand, np.log(k))))

    def scaled_to(self, sigma8: float) -> LinearPower:
        """Return the spectrum with its amplitude scaled to ``sigma8``.

        Raises
        ------
        ConfigError
            ``sigma8`` is not positive.
        """
        if not sigma8 > 0.0:
            raise ConfigError("sigma8 must be positive.", value=sigma8)
        return LinearPower(self.k, self.power * (sigma8 / self.sigma(8.0)) ** 2)

    @classmethod
    def from_cosmology(cls, cosmology: CosmologyConfig) -> LinearPower:
        """Return CAMB's spectrum at z = 0, scaled to the cosmology's sigma8; cached.

        Raises
        ------
        ConfigError
            Baryons and neutrinos exceed all matter, or CAMB fails for this cosmology.
        """
        return _camb_power(cosmology)


def _validate(k: ArrayLike, power: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    wavenumber = np.array(k, dtype=np.float64)
    values = np.array(power, dtype=np.float64)
    remedy = "give two columns: k in h/Mpc, P in (Mpc/h)^3"
    if wavenumber.ndim != 1 or wavenumber.shape != values.shape or wavenumber.size < 4:
        raise DataError(
            "A power spectrum table needs equal numbers of wavenumbers and powers, at least four.",
            value=f"shapes {wavenumber.shape} and {values.shape}",
            remedy=remedy,
        )
    if not (np.isfinite(wavenumber).all() and np.isfinite(values).all()):
        raise DataError("A power spectrum table has a value that is not finite.", remedy=remedy)
    if wavenumber[0] <= 0.0 or bool(np.any(np.diff(wavenumber) <= 0.0)):
        raise DataError(
            "The wavenumbers of a power spectrum table must be positive and increasing.",
            value=f"k from {wavenumber[0]} to {wavenumber[-1]}",
            remedy=remedy,
        )
    if bool(np.any(values <= 0.0)):
        raise DataError(
            "The powers of a table must be positive.",
            value=f"P = {values.min()} at k = {wavenumber[values.argmin()]}",
            remedy=remedy,
        )
    return wavenumber, values


@lru_cache(maxsize=32)
def _camb_power(cosmology: CosmologyConfig) -> LinearPower:
    """Run CAMB once per cosmology (it takes a second or two)."""
    if cosmology.Omega_b >= cosmology.Omega_m:
        raise ConfigError(
            "There are more baryons than matter.",
            where="cosmology.Omega_b",
            value=cosmology.Omega_b,
            limit=f"less than Omega_m = {cosmology.Omega_m}",
        )
    massive = cosmology.m_nu > 0.0
    cold = cosmology.Omega_m - cosmology.Omega_b
    if massive:
        cold -= cosmology.Omega_nu
    if cold < 0.0:
        raise ConfigError(
            "There are more baryons and neutrinos than matter.",
            where="cosmology.m_nu",
            value=cosmology.m_nu,
            limit=f"Omega_b + Omega_nu less than Omega_m = {cosmology.Omega_m}",
        )
    import camb

    h2 = cosmology.h**2
    try:
        parameters = camb.CAMBparams()
        parameters.set_cosmology(
            H0=100.0 * cosmology.h,
            ombh2=cosmology.Omega_b * h2,
            omch2=cold * h2,
            mnu=cosmology.m_nu,
            num_massive_neutrinos=3 if massive else 0,
            omk=cosmology.Omega_k,
        )
        # The amplitude is arbitrary: sigma8 sets it below.
        parameters.InitPower.set_params(As=2e-9, ns=cosmology.n_s)
        if cosmology.has_cosmological_constant:
            parameters.set_dark_energy(w=-1.0)
        else:
            # A fluid cannot cross w = -1; the PPF description of its perturbations can.
            parameters.set_dark_energy(w=cosmology.w0, wa=cosmology.wa, dark_energy_model="ppf")
        parameters.set_matter_power(redshifts=[0.0], kmax=K_MAX)
        parameters.NonLinear = camb.model.NonLinear_none
        k, _, power = camb.get_results(parameters).get_matter_power_spectrum(
            minkh=K_MIN, maxkh=K_MAX, npoints=K_POINTS
        )
    except camb.baseconfig.CAMBError as error:
        raise ConfigError(
            "CAMB cannot compute the linear power of this cosmology.",
            where="cosmology",
            value=f"{cosmology!r}: {error}",
            remedy="give parameters closer to the observed ones, or a table of the linear power",
        ) from error
    return LinearPower(k, power[0]).scaled_to(cosmology.sigma8)
