"""The cosmological parameters that a run assumes."""

from __future__ import annotations

import math
from typing import Any, Final, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from cosmoflow.config.base import Section

EXTENSIONS: Final = {"w0": -1.0, "wa": 0.0, "Omega_k": 0.0, "m_nu": 0.0}
"""Parameters beyond flat Lambda-CDM with massless neutrinos, with their values in that model."""

NEUTRINO_DENSITY: Final = 93.14
"""Sum of the neutrino masses divided by ``Omega_nu h^2``, eV."""

_LATEST: Final = 4.0
"""Scale factor up to which growth is tabulated, and up to which a universe must expand."""


class CosmologyConfig(Section):
    """Cosmological parameters; the defaults are the flat Lambda-CDM of Wu et al. 2021.

    ``Omega_m`` is all matter today, including massive neutrinos. The equation of state of dark
    energy is ``w(a) = w0 + wa (1 - a)`` (Chevallier & Polarski 2001, Linder 2003). Radiation
    is neglected. ``w0``, ``wa``, ``Omega_k`` and ``m_nu`` are serialised only if they differ from
    flat Lambda-CDM with massless neutrinos.
    """

    h: float = Field(0.6777, gt=0.0, lt=2.0, description="H0 / (100 km/s/Mpc)")
    Omega_m: float = Field(
        0.31, gt=0.0, le=1.0, description="matter density today, including massive neutrinos"
    )
    Omega_b: float = Field(0.05, gt=0.0, lt=1.0, description="baryon density today")
    sigma8: float = Field(0.83, gt=0.0, description="linear rms in spheres of 8 Mpc/h at z = 0")
    n_s: float = Field(0.96, gt=0.0, description="primordial spectral index")
    w0: float = Field(
        EXTENSIONS["w0"], gt=-5.0, lt=0.0, description="equation of state of dark energy today"
    )
    wa: float = Field(
        EXTENSIONS["wa"], gt=-10.0, lt=5.0, description="change of w: w0 + wa (1 - a)"
    )
    Omega_k: float = Field(
        EXTENSIONS["Omega_k"], gt=-1.0, lt=1.0, description="curvature today; above 0 if open"
    )
    m_nu: float = Field(
        EXTENSIONS["m_nu"], ge=0.0, lt=10.0, description="sum of the neutrino masses, eV"
    )

    @property
    def assumed(self) -> dict[str, float]:
        """Parameters that were not stated, with their defaults; those of extensions are left out.

        Extensions are ``w0``, ``wa``, ``Omega_k`` and ``m_nu``, whose defaults are the usual model.
        """
        return {
            name: getattr(self, name)
            for name in type(self).model_fields
            if name not in self.model_fields_set and name not in EXTENSIONS
        }

    @property
    def Omega_Lambda(self) -> float:  # noqa: N802 - the field's standard symbol
        """Dark-energy density today."""
        left = 1.0 - self.Omega_m - self.Omega_k
        return left if self.Omega_k == 0.0 or abs(left) > 1e-12 else 0.0

    @property
    def Omega_nu(self) -> float:  # noqa: N802 - the field's standard symbol
        """Density of massive neutrinos today, included in ``Omega_m``."""
        return self.m_nu / (NEUTRINO_DENSITY * self.h**2)

    @property
    def has_cosmological_constant(self) -> bool:
        """Whether dark energy is a cosmological constant."""
        return self.w0 == EXTENSIONS["w0"] and self.wa == EXTENSIONS["wa"]

    def expansion_squared(self, a: float) -> float:
        """Return ``(H / H0)^2`` at a scale factor."""
        dark = self.Omega_Lambda * a ** (-3.0 * (1.0 + self.w0 + self.wa))
        dark *= math.exp(-3.0 * self.wa * (1.0 - a))
        return float(self.Omega_m * a**-3 + self.Omega_k * a**-2 + dark)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.w0 + self.wa >= 0.0:
            raise ValueError(
                f"w0 + wa is {self.w0 + self.wa:g}: dark energy must be subdominant at "
                "early times, w0 + wa < 0"
            )
        if self.Omega_Lambda < 0.0:
            raise ValueError(
                f"Omega_m + Omega_k is {self.Omega_m + self.Omega_k:g}: it must be at most 1"
            )
        if self.Omega_nu >= self.Omega_m:
            raise ValueError(
                f"neutrinos of m_nu = {self.m_nu:g} eV are {self.Omega_nu:g} of the critical "
                f"density, more than all matter, Omega_m = {self.Omega_m:g}"
            )
        if self.Omega_k < 0.0:
            steps = (_LATEST * 10.0 ** (-0.02 * index) for index in range(120))
            if any(self.expansion_squared(a) <= 0.0 for a in steps):
                raise ValueError(
                    f"a universe of Omega_m = {self.Omega_m:g} and Omega_k = {self.Omega_k:g} does "
                    f"not expand from early times to a = {_LATEST:g}"
                )
        return self

    @model_serializer(mode="wrap")
    def _without_extensions(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit extensions at their flat Lambda-CDM values, so that existing digests stay valid."""
        content: dict[str, Any] = handler(self)
        return {
            name: value
            for name, value in content.items()
            if name not in EXTENSIONS or value != EXTENSIONS[name]
        }
