"""What a person can say about a snapshot that its header leaves out or gets wrong."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cosmoflow.config.base import Section

LengthUnit = Literal["kpc/h", "Mpc/h", "kpc", "Mpc"]
VelocityConvention = Literal["peculiar", "gadget", "canonical", "comoving"]


class SnapshotHints(Section):
    """What to read of a snapshot, and what its header does not say. A hint outweighs the header."""

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
    wrap: bool = Field(False, description="wrap positions that lie outside the box")
    h: float | None = Field(None, gt=0.0, lt=2.0, description="H0 / (100 km/s/Mpc)")
    Omega_m: float | None = Field(None, gt=0.0, le=1.0, description="matter density today")
    Omega_b: float | None = Field(None, gt=0.0, lt=1.0, description="baryon density today")
    sigma8: float | None = Field(None, gt=0.0, description="linear rms in 8 Mpc/h at z = 0")
    n_s: float | None = Field(None, gt=0.0, description="primordial spectral index")

    def wants(self, particle_type: int) -> bool:
        """Tell whether a particle type is to be read."""
        return self.particle_types == "all" or particle_type in self.particle_types
