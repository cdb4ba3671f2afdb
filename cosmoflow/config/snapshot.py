"""Hints about a snapshot whose header is incomplete or wrong."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from cosmoflow.config.base import Section
from cosmoflow.config.cosmology import EXTENSIONS

LengthUnit = Literal["kpc/h", "Mpc/h", "kpc", "Mpc"]
VelocityConvention = Literal["peculiar", "gadget", "canonical", "comoving"]


class SnapshotHints(Section):
    """Selection from a snapshot, and facts that its header lacks. A hint outweighs the header."""

    particle_types: tuple[int, ...] | Literal["all"] = Field(
        (1,), description="particle types to read; 1 is dark matter, all is every type with mass"
    )
    length_unit: LengthUnit | float | None = Field(
        None, description="comoving length unit of the file; a number is in Mpc/h"
    )
    velocity: VelocityConvention | None = Field(
        None,
        description="what the file has: peculiar v, gadget v/sqrt(a), canonical a v, comoving v/a",
    )
    box_size: float | None = Field(None, gt=0.0, description="side of the box, Mpc/h")
    redshift: float | None = Field(None, gt=-1.0, description="of the snapshot")
    mass_share: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="share of the matter of the cosmology that the particles read stand for; by "
        "default all, or dark matter beside gas, or what the header says of a random sample",
    )
    wrap: bool = Field(False, description="wrap positions outside the box")
    h: float | None = Field(None, gt=0.0, lt=2.0, description="H0 / (100 km/s/Mpc)")
    Omega_m: float | None = Field(
        None, gt=0.0, le=1.0, description="matter density today, with neutrinos"
    )
    Omega_b: float | None = Field(None, gt=0.0, lt=1.0, description="baryon density today")
    sigma8: float | None = Field(None, gt=0.0, description="linear rms in 8 Mpc/h at z = 0")
    n_s: float | None = Field(None, gt=0.0, description="primordial spectral index")
    w0: float | None = Field(
        None, gt=-5.0, lt=0.0, description="equation of state of dark energy today"
    )
    wa: float | None = Field(None, gt=-10.0, lt=5.0, description="its change: w = w0 + wa (1 - a)")
    Omega_k: float | None = Field(
        None, gt=-1.0, lt=1.0, description="curvature today; above 0: open"
    )
    m_nu: float | None = Field(
        None, ge=0.0, lt=10.0, description="sum of the neutrinos' masses, eV"
    )
    full_hash: bool = Field(
        False,
        description="identify snapshots by all bytes of their files, not by location, size, time "
        "of change and sampled rows",
    )

    def wants(self, particle_type: int) -> bool:
        """Return whether to read a particle type."""
        return self.particle_types == "all" or particle_type in self.particle_types

    @model_serializer(mode="wrap")
    def _without_extensions(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out hints on extended cosmologies that are not given: other digests stay."""
        content: dict[str, Any] = handler(self)
        return {
            name: value
            for name, value in content.items()
            if name not in EXTENSIONS or value is not None
        }
