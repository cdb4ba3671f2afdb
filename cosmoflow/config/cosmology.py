"""The cosmological parameters that a run assumes."""

from __future__ import annotations

from pydantic import Field

from cosmoflow.config.base import Section


class CosmologyConfig(Section):
    """A flat Lambda-CDM cosmology without massive neutrinos; defaults as in Wu et al. 2021."""

    h: float = Field(0.6777, gt=0.0, lt=2.0, description="H0 / (100 km/s/Mpc)")
    Omega_m: float = Field(0.31, gt=0.0, le=1.0, description="matter density today")
    Omega_b: float = Field(0.05, gt=0.0, lt=1.0, description="baryon density today")
    sigma8: float = Field(0.83, gt=0.0, description="linear rms in spheres of 8 Mpc/h at z = 0")
    n_s: float = Field(0.96, gt=0.0, description="primordial spectral index")

    @property
    def Omega_Lambda(self) -> float:  # noqa: N802 - the field's standard symbol
        """Dark-energy density today."""
        return 1.0 - self.Omega_m
