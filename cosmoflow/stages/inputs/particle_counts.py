"""Number of particles in the cells of a painted box, from its density."""

from __future__ import annotations

from cosmoflow.errors import DataError
from cosmoflow.storage.metadata import Box

COUNT = "count"
"""Name of the field: the sum of the painting weights of the particles in a cell."""


def particles_per_cell(box: Box) -> float:
    """Return the mean number of particles in a cell, the count in a cell of mean density.

    Density times this number is the count of particles only if all have one mass.

    Raises
    ------
    DataError
        The number is not known, or the masses differ or are not known to be equal.
    """
    sampling, where = box.metadata.sampling, f"{box.url}, attribute sampling"
    if sampling is None or sampling.particles_per_cell is None:
        raise DataError(
            "the mean number of particles in a cell is not known",
            where=where,
            value="no particles_per_cell",
            remedy="paint the particles, or set particles_per_cell, empty_share and "
            "equal_masses: true in the attribute",
        )
    equal = sampling.equal_masses
    if equal is None and box.metadata.particle_mass is not None:
        equal = True
    if not equal:
        raise DataError(
            "the particles were painted with individual masses, so the density does not tell their "
            "number"
            if equal is False
            else "whether all particles have one mass is not known, so a density does not tell "
            "their number",
            where=where,
            value=f"equal_masses: {'not said' if equal is None else 'false'}",
            limit="equal_masses: true",
            remedy="if all masses are equal, set equal_masses: true in the attribute; else the "
            "particles cannot be counted"
            if equal is False
            else "paint the particles again, or set equal_masses: true in the attribute",
        )
    return sampling.particles_per_cell
