"""User-supplied facts about a snapshot that its header omits or gets wrong."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from cosmoflow.config.base import Section
from cosmoflow.config.cosmology import EXTENSIONS

LengthUnit = Literal["kpc/h", "Mpc/h", "kpc", "Mpc"]
VelocityConvention = Literal["peculiar", "gadget", "canonical", "comoving"]


class SnapshotHints(Section):
    """Particle types to read, and hints that override or complete a snapshot's header."""

    particle_types: tuple[int, ...] | Literal["all"] = Field(
        (1,), description="particle types to read; 1 is dark matter, all is every type with mass"
    )
    length_unit: LengthUnit | float | None = Field(
        None, description="comoving length unit of the file: a name, or its length in Mpc/h"
    )
    velocity: VelocityConvention | None = Field(
        None,
        description="convention: peculiar v, gadget v/sqrt(a), canonical a v, comoving v/a",
    )
    box_size: float | None = Field(None, gt=0.0, description="side of the box, Mpc/h")
    redshift: float | None = Field(None, gt=-1.0, description="redshift of the snapshot")
    mass_share: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="fraction of the cosmology's matter in the particles read; by default all, or "
        "dark matter if there is gas, or the header's value for a random sample",
    )
    wrap: bool = Field(False, description="wrap positions outside the box")
    h: float | None = Field(None, gt=0.0, lt=2.0, description="H0 / (100 km/s/Mpc)")
    Omega_m: float | None = Field(
        None, gt=0.0, le=1.0, description="matter density today, including neutrinos"
    )
    Omega_b: float | None = Field(None, gt=0.0, lt=1.0, description="baryon density today")
    sigma8: float | None = Field(
        None, gt=0.0, description="linear rms in spheres of 8 Mpc/h at z = 0"
    )
    n_s: float | None = Field(None, gt=0.0, description="primordial spectral index")
    w0: float | None = Field(
        None, gt=-5.0, lt=0.0, description="equation of state of dark energy today"
    )
    wa: float | None = Field(None, gt=-10.0, lt=5.0, description="change of w: w0 + wa (1 - a)")
    Omega_k: float | None = Field(
        None, gt=-1.0, lt=1.0, description="curvature today; above 0 if open"
    )
    m_nu: float | None = Field(None, ge=0.0, lt=10.0, description="sum of the neutrino masses, eV")
    full_hash: bool = Field(
        False,
        description="identify snapshots by all bytes of their files, not by location, size, time "
        "of change and sampled rows",
    )

    def wants(self, particle_type: int) -> bool:
        """Check whether to read a particle type."""
        return self.particle_types == "all" or particle_type in self.particle_types

    @model_serializer(mode="wrap")
    def _without_extensions(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit unset hints on extended cosmologies, so that existing digests stay valid."""
        content: dict[str, Any] = handler(self)
        return {
            name: value
            for name, value in content.items()
            if name not in EXTENSIONS or value is not None
        }
