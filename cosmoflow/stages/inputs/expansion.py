"""Expansion and growth of a stored box, refused if not known."""

from __future__ import annotations

from typing import Final

from cosmoflow.cosmology.background import Background
from cosmoflow.errors import DataError
from cosmoflow.storage.metadata import BoxMetadata
from cosmoflow.units import H0_KM_S_PER_MPC_H

LARGEST_NEUTRINO_SHARE: Final = 0.01
"""Largest share of massive neutrinos in matter (0.13 eV) for which linear theory treats them as
cold matter: its growth rate is then at most 0.6 % too large."""


def expansion_of(metadata: BoxMetadata, purpose: str) -> Background:
    """Return the expansion of a box, needed for a purpose that an error message names.

    Raises
    ------
    DataError
        The parameters that the box states do not describe its expansion.
    """
    if metadata.unknown_expansion is not None:
        raise DataError(
            f"{purpose} needs the expansion of the box, which is not known",
            where="the box's cosmology",
            value=metadata.unknown_expansion,
            limit="matter, curvature and dark energy of w = w0 + wa (1 - a)",
            remedy="specify dark energy when the snapshot is read: --set snapshot.w0=..., "
            "snapshot.wa=..., snapshot.Omega_k=... (w0=-1 for a cosmological constant)",
        )
    return Background(metadata.cosmology)


def hubble_rate(metadata: BoxMetadata) -> float:
    """Return ``a H`` of a snapshot, km/s per Mpc/h: a velocity over its redshift displacement."""
    background, a = expansion_of(metadata, "redshift space"), metadata.scale_factor
    return float(a * H0_KM_S_PER_MPC_H * background.hubble_ratio(a))


def growth_rate_hubble(metadata: BoxMetadata) -> float:
    """Return ``f a H`` of a snapshot, km/s per Mpc/h.

    Raises
    ------
    DataError
        The expansion is not known, or neutrinos make the growth depend on scale.
    """
    background, cosmology = expansion_of(metadata, "linear theory"), metadata.cosmology
    share = cosmology.Omega_nu / cosmology.Omega_m
    if share > LARGEST_NEUTRINO_SHARE:
        raise DataError(
            "linear theory does not describe the growth of structure with such massive neutrinos",
            where="the box's cosmology, m_nu",
            value=f"m_nu = {cosmology.m_nu:g} eV, {share:.2g} of all matter",
            limit=f"{LARGEST_NEUTRINO_SHARE:g} of all matter",
            remedy="to treat them as cold matter, whose growth rate is up to "
            f"{60.0 * share:.1f} % larger, read the snapshot with --set snapshot.m_nu=0, "
            "or import the cube with --set cosmology.m_nu=0",
        )
    return float(background.growth_rate_hubble(metadata.scale_factor))
