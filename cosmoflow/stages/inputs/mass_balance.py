"""Check of the mass of all particles against the mean density of matter."""

from __future__ import annotations

from cosmoflow.errors import DataError
from cosmoflow.events import Listener, caution
from cosmoflow.storage.outputs import add_notes
from cosmoflow.storage.particles import ParticleStore
from cosmoflow.storage.snapshots import ParticleSource
from cosmoflow.storage.snapshots.conventions import mean_density
from cosmoflow.storage.snapshots.matter import fits, limits_of, masses_found, state_matter
from cosmoflow.units import MASS


def check_mass(source: ParticleSource, total: float, out: str, listener: Listener) -> None:
    """Check the exact mass of all particles against the mean density of matter.

    A snapshot was checked by its header and a sample when it was opened; this sum includes all
    particles: ``total`` if they have individual masses. Masses without a known unit are not
    checked. A particle store that does not match causes a warning, which the notes of the output
    keep; the density is still right if the particles are a fair sample of matter.

    Raises
    ------
    DataError
        The share of matter in a snapshot differs from that of its header and the hints.
    """
    metadata, shares = source.metadata, source.matter_shares
    if not shares or source.mass_unit != MASS:
        return
    if not source.has_mass:
        if metadata.particle_mass is None:
            return
        total = metadata.particle_mass * source.count
    share = mean_density(total, metadata.box_size, metadata.cosmology.Omega_m)
    if fits(share, shares):
        return
    limit = limits_of(shares)
    if isinstance(source, ParticleStore):
        text = (
            f"the particles make up {share:.3g} of the mean density of matter, not {limit}: "
            "box_size, Omega_m or the masses of the particle store are wrong, or the particles are "
            "a sample"
        )
        caution(listener, text)
        add_notes(out, [text])
        return
    found = masses_found(total, source.count, total / share, shares)
    remedies = state_matter(share, shares, metadata.cosmology)
    if share < min(shares):
        types = "other particle types may hold matter: --set snapshot.particle_types=all"
        remedies.insert(0, types)
    raise DataError(
        "the particles do not make up the mean density of matter",
        where=source.url,
        value=f"{share:.4g} of it, summed over all {source.count} particles: {found}",
        limit=limit,
        remedy="; ".join(remedies or ["the unit of mass, the box or Omega_m is wrong"]),
    )
