"""Read dark energy, curvature and neutrinos from a header, and check its expansion with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from cosmoflow.config.cosmology import NEUTRINO_DENSITY, CosmologyConfig
from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.storage.snapshots.conventions import number_of

_FLAT: Final = 1e-3
"""Tolerance for the sum of a header's densities: radiation, and parameters of three digits."""
_ROUNDING: Final = 1e-4
"""A stated curvature below this counts as 0: SWIFT writes its rounding errors."""
_SAME_RATE: Final = 1e-3
"""Relative tolerance for expansion rates."""
_SAME_GROWTH: Final = 1e-2
_RADIATION: Final = 4.15e-5
"""``Omega_r h^2`` of photons and three massless neutrinos."""

_W0: Final = ("w0", "W0", "w_0", "w0_fld", "W0_Fld", "DarkEnergyParam", "w")
_WA: Final = ("wa", "WA", "w_a", "wa_fld", "WA_Fld")
_CURVATURE: Final = ("Omega_k", "Omega_K", "OmegaK")
_LAMBDA: Final = ("OmegaLambda", "Omega_Lambda", "Omega_lambda", "Omega_DE")
_FLUID: Final = ("OmegaFld", "Omega_fld")
_MASSES: Final = ("M_nu_eV", "m_nu", "MNu")
_FLAVOURS: Final = ("MNue", "MNum", "MNut")

Said = Mapping[str, float | str | None]
"""Cosmology as stated in a header, under our names; see :func:`read_expansion`."""


def read_expansion(header: Mapping[str, Any]) -> dict[str, float | str | None]:
    """Return dark energy, curvature and neutrinos as stated in a header.

    Parameters
    ----------
    header : dict
        Attributes with names of Gadget, AREPO, MP-Gadget, FastPM, SWIFT, Abacus or our own.

    Returns
    -------
    dict
        ``w0``, ``wa``, ``Omega_k``, ``Omega_Lambda`` (dark energy of any kind), ``m_nu`` (eV), and
        ``doubt``: why these do not describe the expansion. None when the header does not say.
    """
    w0, wa = number_of(header, *_W0), number_of(header, *_WA)
    if w0 == 0.0:
        # 0 means not written: it is the equation of state of matter.
        w0 = None
    dark, fluid = number_of(header, *_LAMBDA), number_of(header, *_FLUID)
    doubt = _table(header)
    if fluid is not None:
        if fluid == 0.0:
            # MP-Gadget writes an equation of state even without a fluid.
            w0 = wa = None
        elif dark:
            doubt = f"the header has a fluid of {fluid:g} beside a Lambda of {dark:g}"
            dark += fluid
        else:
            dark = fluid
    masses = _mass_sum(header)
    if masses is None and any(name in header for name in _FLAVOURS):
        masses = sum(number_of(header, name) or 0.0 for name in _FLAVOURS)
    return {
        "w0": w0,
        "wa": wa,
        "Omega_k": number_of(header, *_CURVATURE),
        "Omega_Lambda": dark,
        "m_nu": masses,
        "doubt": doubt,
    }


def _table(header: Mapping[str, Any]) -> str | None:
    """Return a doubt if a parameter names a table of dark energy, else None."""
    for name, value in header.items():
        if name.lower() in ("darkenergyfile", "darkenergytable") and str(value).strip():
            return f"dark energy is tabulated, {name} {value}"
    return None


def _mass_sum(header: Mapping[str, Any]) -> float | None:
    """Return the sum of the neutrinos' masses, eV, weighted by the list of degeneracies if any."""
    weights: Any = header.get("deg_nu")
    for name in _MASSES:
        found = header.get(name)
        values = found if isinstance(found, list) else [found]
        if not values or not all(isinstance(value, int | float) for value in values):
            continue
        same = isinstance(weights, list) and len(weights) == len(values)
        each = weights if same else [1.0] * len(values)
        return float(sum(value * weight for value, weight in zip(values, each, strict=True)))
    return None


def complete_expansion(
    values: dict[str, float], said: Said, hints: SnapshotHints, notes: list[str]
) -> None:
    """Complete the parameters of a cosmology from the rest of a header.

    Parameters
    ----------
    values : dict
        ``h``, ``Omega_m``, and those of ``w0``, ``wa``, ``Omega_k`` and ``m_nu`` that hints or
        the header give; completed in place.
    notes : list of str
        Notes, to which conclusions and assumptions are appended.
    """
    dark = said.get("Omega_Lambda")
    if hints.Omega_k is None and isinstance(dark, float):
        flat = 1.0 - values["Omega_m"]
        if "Omega_k" not in values and hints.Omega_m is not None:
            # A curvature from the hint and the header together would belong to neither.
            if abs(dark - flat) > _FLAT:
                notes.append(
                    f"Omega_Lambda is {dark:g} in the header; with Omega_m by hint a flat universe "
                    f"with {flat:g} of dark energy is assumed"
                )
        elif "Omega_k" not in values and dark > 0.0 and abs(flat - dark) > _FLAT:
            values["Omega_k"] = round(flat - dark, 9)
            notes.append(
                f"Omega_Lambda is {dark:g} in the header: Omega_k = {values['Omega_k']:g} follows"
            )
    if hints.Omega_k is None and abs(values.get("Omega_k", 0.0)) < _ROUNDING:
        values.pop("Omega_k", None)
    density = said.get("Omega_nu")
    if isinstance(density, float):
        mass = density * NEUTRINO_DENSITY * values["h"] ** 2
        if hints.m_nu is not None and not math.isclose(mass, hints.m_nu, rel_tol=1e-3):
            notes.append(f"m_nu is {hints.m_nu:g} by hint; the header says {mass:.3g}")
        values.setdefault("m_nu", mass)
    unsaid = []
    if "w0" not in values and "wa" not in values:
        unsaid.append("dark energy's equation of state (a cosmological constant is assumed)")
    if "m_nu" not in values:
        unsaid.append("massive neutrinos (none are assumed)")
    if unsaid:
        notes.append(f"the header says nothing about {' and '.join(unsaid)}")


def find_doubt(
    said: Said, cosmology: CosmologyConfig, redshift: float, hints: SnapshotHints, notes: list[str]
) -> str | None:
    """Compare a header's own densities and rates with those of its cosmology.

    Parameters
    ----------
    said : dict
        Values in the header: ``Omega_k`` and ``Omega_Lambda`` today, ``E`` = H / H0 and the growth
        rate ``f`` at the snapshot, and ``doubt``.
    hints : SnapshotHints
        Hints; those on dark energy or curvature override the header.
    notes : list of str
        Notes, to which findings are appended.

    Returns
    -------
    str or None
        Reason why the cosmology does not describe the expansion; None when it does.
    """
    _note_neutrinos(cosmology, notes)
    doubt = _contradict_densities(said, cosmology, hints)
    doubt = doubt or _contradict_rates(said, cosmology, redshift, notes)
    hinted = [name for name in ("w0", "wa", "Omega_k") if getattr(hints, name) is not None]
    if doubt is None:
        return None
    if hinted:
        notes.append(f"{doubt}; the hints on {', '.join(hinted)} are used instead")
        return None
    notes.append(f"{doubt}: redshift space and linear theory are refused for this box")
    return doubt


def _contradict_densities(
    said: Said, cosmology: CosmologyConfig, hints: SnapshotHints
) -> str | None:
    """Return the contradiction in the densities of a header, or None."""
    if isinstance(said.get("doubt"), str):
        return str(said["doubt"])
    dark, curvature = said.get("Omega_Lambda"), said.get("Omega_k")
    if not isinstance(dark, float) or hints.Omega_m is not None:
        return None
    if dark == 0.0 and 1.0 - cosmology.Omega_m - cosmology.Omega_k > _FLAT:
        return (
            f"Omega_Lambda is 0 and Omega_m {cosmology.Omega_m:g} in the header, which may mean an "
            "open universe or a Lambda that was not written"
        )
    if isinstance(curvature, float):
        total = cosmology.Omega_m + dark + curvature
        if abs(total - 1.0) > _FLAT:
            return f"Omega_m, Omega_k and dark energy of the header add up to {total:g}, not to 1"
    return None


def _contradict_rates(
    said: Said, cosmology: CosmologyConfig, redshift: float, notes: list[str]
) -> str | None:
    """Return the contradiction between a header's rates and its parameters, or None."""
    rate, growth = said.get("E"), said.get("f")
    if rate is None and growth is None:
        return None
    # SciPy's integrators are slow to import, and most headers state no rate.
    from cosmoflow.cosmology.background import EARLIEST, LATEST, Background

    a = 1.0 / (1.0 + redshift)
    if not EARLIEST <= a <= LATEST:
        return None
    background = Background(cosmology)
    expected = background.hubble_ratio(a)
    if isinstance(rate, float) and abs(rate / expected - 1.0) > _SAME_RATE:
        stated = said.get("Omega_r")
        density = stated if isinstance(stated, float) else _RADIATION / cosmology.h**2
        with_radiation = math.sqrt(expected**2 + density * a**-4)
        if abs(rate / with_radiation - 1.0) > _SAME_RATE:
            return f"H(z) / H0 is {rate:.5g} in the header, and {expected:.5g} by its parameters"
        notes.append(
            f"H(z) of the header is {100.0 * (rate / expected - 1.0):.2g} % above that of matter "
            "and dark energy because of radiation, which is left out"
        )
    if isinstance(growth, float) and not _is_massive(cosmology):
        expected = background.growth_rate(a)
        if abs(growth / expected - 1.0) > _SAME_GROWTH:
            return (
                f"the growth rate is {growth:.4g} in the header, and {expected:.4g} by its "
                "parameters"
            )
    return None


def _is_massive(cosmology: CosmologyConfig) -> bool:
    """Return whether neutrinos slow the growth by more than the tolerance of growth rates."""
    return 0.6 * cosmology.Omega_nu > _SAME_GROWTH * cosmology.Omega_m


def _note_neutrinos(cosmology: CosmologyConfig, notes: list[str]) -> None:
    if cosmology.m_nu > 0.0:
        share = cosmology.Omega_nu / cosmology.Omega_m
        notes.append(
            f"neutrinos of {cosmology.m_nu:.3g} eV in all, {100.0 * share:.2g} % of matter, "
            "are treated as cold matter: the linear growth rate is up to "
            f"{60.0 * share:.2g} % too large"
        )
