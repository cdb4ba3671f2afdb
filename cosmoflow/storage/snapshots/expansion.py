"""Dark energy, curvature and neutrinos of a header, and whether they describe its expansion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from cosmoflow.config.cosmology import NEUTRINO_DENSITY, CosmologyConfig
from cosmoflow.config.snapshot import SnapshotHints

_FLAT: Final = 1e-3
"""Densities of a header add up to 1 within this: radiation, and parameters of three digits."""
_ROUNDING: Final = 1e-4
"""A curvature that a header states is 0 below this: SWIFT writes what rounding leaves."""
_SAME_RATE: Final = 1e-3
"""Relative difference of two expansion rates that mean the same."""
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
"""What a header says of the cosmology, under our names; see :func:`read_expansion`."""


def number_of(header: Mapping[str, Any], *names: str) -> float | None:
    """Return the first attribute there is, as a number; a 0 counts."""
    for name in names:
        value = header.get(name)
        if isinstance(value, list):
            value = value[0] if len(value) == 1 else None
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None


def read_expansion(header: Mapping[str, Any]) -> dict[str, float | str | None]:
    """Return what a header says of dark energy, curvature and neutrinos.

    Parameters
    ----------
    header : dict
        Under the names of Gadget, AREPO, MP-Gadget, FastPM, SWIFT, Abacus or our own.

    Returns
    -------
    dict
        ``w0``, ``wa``, ``Omega_k``, ``Omega_Lambda`` (dark energy of any kind), ``m_nu`` (eV), and
        ``doubt``: why these do not describe the expansion. None where the header does not say.
    """
    w0, wa = number_of(header, *_W0), number_of(header, *_WA)
    if w0 == 0.0:
        # Not written: matter has that equation of state.
        w0 = None
    dark, fluid = number_of(header, *_LAMBDA), number_of(header, *_FLUID)
    doubt = _table(header)
    if fluid is not None:
        if fluid == 0.0:
            # MP-Gadget writes the equation of state of a fluid that is not there.
            w0 = wa = None
        elif dark:
            doubt = f"the header has a fluid of {fluid:g} beside a Lambda of {dark:g}"
            dark += fluid
        else:
            dark = fluid
    masses = _sum(header, _MASSES, header.get("deg_nu"))
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
    """Return that dark energy is tabulated, if a parameter names a file of it."""
    for name, value in header.items():
        if name.lower() in ("darkenergyfile", "darkenergytable") and str(value).strip():
            return f"dark energy is that of a table, {name} {value}"
    return None


def _sum(header: Mapping[str, Any], names: tuple[str, ...], weights: Any) -> float | None:
    """Return the sum of a number or list, each times its degeneracy where there is a list."""
    for name in names:
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
    """Add to the parameters of a cosmology what follows from the rest of a header.

    Parameters
    ----------
    values : dict
        ``h``, ``Omega_m``, and ``w0``, ``wa``, ``Omega_k`` and ``m_nu`` where hints or the header
        say them; completed in place.
    said : dict
        What the header says.
    hints : SnapshotHints
    notes : list of str
        Extended by what was concluded and assumed.
    """
    dark = said.get("Omega_Lambda")
    if hints.Omega_k is None and isinstance(dark, float):
        flat = 1.0 - values["Omega_m"]
        if "Omega_k" not in values and hints.Omega_m is not None:
            # A curvature of the hint and the header together would be neither's.
            if abs(dark - flat) > _FLAT:
                notes.append(
                    f"Omega_Lambda is {dark:g} in the header; with Omega_m by hint a flat universe "
                    f"of {flat:g} is assumed"
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
        notes.append(f"the header says nothing of {' and '.join(unsaid)}")


def find_doubt(
    said: Said, cosmology: CosmologyConfig, redshift: float, hints: SnapshotHints, notes: list[str]
) -> str | None:
    """Hold a header's own statements against the expansion and growth of its cosmology.

    Parameters
    ----------
    said : dict
        What the header says: ``Omega_k`` and ``Omega_Lambda`` today, at the snapshot ``E`` = H / H0
        and the growth rate ``f``, and ``doubt``.
    cosmology : CosmologyConfig
        As resolved.
    redshift : float
        Redshift of the snapshot.
    hints : SnapshotHints
        Those on dark energy or curvature outweigh the header.
    notes : list of str
        Extended by what was found.

    Returns
    -------
    str or None
        Why the cosmology does not describe the expansion; None when it does.
    """
    _note_neutrinos(cosmology, notes)
    doubt = _contradict_densities(said, cosmology, hints)
    doubt = doubt or _contradict_rates(said, cosmology, redshift, notes)
    hinted = [name for name in ("w0", "wa", "Omega_k") if getattr(hints, name) is not None]
    if doubt is None:
        return None
    if hinted:
        notes.append(f"{doubt}; the hints on {', '.join(hinted)} are taken instead")
        return None
    notes.append(f"{doubt}: redshift space and linear theory are refused for this box")
    return doubt


def _contradict_densities(
    said: Said, cosmology: CosmologyConfig, hints: SnapshotHints
) -> str | None:
    """Return what is wrong with the densities of a header, if anything is."""
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
    """Return which rate of a header its parameters do not give, if there is one."""
    rate, growth = said.get("E"), said.get("f")
    if rate is None and growth is None:
        return None
    # SciPy's integrators take their time to load, and most headers state no rate.
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
            "and dark energy, by radiation, which is left out"
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
    """Tell whether neutrinos slow the growth by more than two rates may differ."""
    return 0.6 * cosmology.Omega_nu > _SAME_GROWTH * cosmology.Omega_m


def _note_neutrinos(cosmology: CosmologyConfig, notes: list[str]) -> None:
    if cosmology.m_nu > 0.0:
        share = cosmology.Omega_nu / cosmology.Omega_m
        notes.append(
            f"neutrinos of {cosmology.m_nu:.3g} eV in all, {100.0 * share:.2g} % of matter, are "
            f"taken for cold matter: the linear growth rate is up to {60.0 * share:.2g} % too large"
        )
