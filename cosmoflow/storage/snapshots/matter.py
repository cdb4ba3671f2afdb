"""Share of the cosmology's matter in the particles of a snapshot.

An error in the unit of length changes the density by its cube, and a particle type that is left out
is missing from the sum of the masses: the sum over the mean density of matter shows both errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.errors import CosmoflowError, DataError
from cosmoflow.storage.snapshots.facts import SnapshotFacts
from cosmoflow.storage.snapshots.source import Part
from cosmoflow.units import MASS

_SMALLEST_SHARE: Final = 0.01
"""Least share of the matter that particles may be: of less, a unit is wrong."""
_NEAR: Final = 2.0
"""A sum that is wrong by less than this factor may come from another Omega_m."""
SLACK: Final = 0.05
"""Smooth neutrinos and rounded constants change the density by less than this fraction."""

_ESTIMATE_SLACK: Final = 0.3
"""Tolerance for a sum estimated from a sample; the exact sum is checked when it is known."""
_NOTEWORTHY: Final = 1e-3
_DARK_MATTER: Final = 1
_GAS, _STARS, _BLACK_HOLES = 0, 4, 5
# Sums of more masses than this are estimated from runs of rows spread over all parts.
_EXACT_ROWS: Final = 1 << 18
_RUNS, _RUN_ROWS = 64, 1 << 11


@dataclass(frozen=True, slots=True)
class Mass:
    """A sum of masses, M_sun/h, and whether it is exact or an estimate."""

    value: float
    exact: bool = True

    @property
    def slack(self) -> float:
        """Relative tolerance for a comparison with the mean density."""
        return SLACK if self.exact else _ESTIMATE_SLACK


def fits(share: float, shares: Sequence[float], slack: float = SLACK) -> bool:
    """Return whether a share equals one of ``shares`` within ``slack``."""
    return any(abs(share / one - 1.0) <= slack for one in shares)


def check_matter(
    facts: SnapshotFacts, hints: SnapshotHints, cautions: list[str]
) -> tuple[float, ...]:
    """Compare the masses of a snapshot with the mean density of matter.

    Parameters
    ----------
    facts : SnapshotFacts
        Facts, to whose notes the findings are appended.
    cautions : list of str
        Warnings of unexpected results, to which others are appended.

    Returns
    -------
    tuple of float
        Shares of the matter that the exact sum of the masses may equal; empty when unknown.

    Raises
    ------
    DataError
        The particles hold more or less matter than expected.
    """
    mass = sum_masses(facts, facts.parts)
    if mass is None:
        # One caution is enough when there are no masses at all.
        if not cautions:
            cautions.append(
                "the particles' masses are unknown: units could not be checked with them"
            )
        return ()
    share, notes = facts.share_of(mass.value), facts.notes
    if hints.mass_share is not None:
        if not fits(share, (hints.mass_share,), mass.slack):
            raise _unlike(facts, share, (hints.mass_share,), mass, hints)
        notes.append(f"the particles represent {hints.mass_share:g} of the matter, by hint")
        return (hints.mass_share,)
    gas, dark = _left_out(facts)
    deliberate = _kinds(facts.parts).isdisjoint({_DARK_MATTER, None})
    if deliberate:
        return _check_other_types(facts, mass, hints, cautions)
    shares = [1.0]
    if gas:
        shares.append(1.0 - facts.cosmology.Omega_b / facts.cosmology.Omega_m)
        held = None if dark else _known(facts, gas)
        shares += [1.0 - held] if held is not None and held < 1.0 else []
    if facts.fraction < 1.0:
        # Some writers add the mass of the omitted particles to the particles of a sample.
        shares = [one * facts.fraction for one in shares] + shares
        notes.append(f"a random sample: {facts.fraction:g} of all particles")
    if not fits(share, shares, mass.slack):
        raise _left_behind(facts, share, mass, dark, hints) or _unlike(
            facts, share, shares, mass, hints
        )
    held = _known(facts, dark)
    if dark and (held is None or held > _NOTEWORTHY):
        much = "an unknown share" if held is None else f"{held:.2g}"
        cautions.append(
            f"particles of {_names(dark)} hold {much} of the matter and are left out; "
            "--set snapshot.particle_types=all reads them"
        )
    whole = share / facts.fraction if facts.fraction < 1.0 and share < 0.95 else share
    if not fits(whole, (1.0,)):
        notes.append(f"the particles hold {whole:.3g} of the matter: gas and stars are left out")
    return tuple(shares)


def _check_other_types(
    facts: SnapshotFacts, mass: Mass, hints: SnapshotHints, cautions: list[str]
) -> tuple[float, ...]:
    """Check the sum over all types of a snapshot when dark matter is left out on purpose."""
    share = facts.share_of(mass.value)
    others = _known(facts, facts.left)
    if others is None:
        cautions.append(f"the particles hold {share:.3g} of the matter; units could not be checked")
        return ()
    whole = share / facts.fraction
    if not fits(whole + others, (1.0,), mass.slack):
        raise _unlike(facts, share, (max(1.0 - others, 0.0) * facts.fraction,), mass, hints)
    facts.notes.append(
        f"the particles hold {whole:.3g} of the matter: dark matter of type 1 is left out"
    )
    return (share,) if mass.exact else ()


def sum_masses(facts: SnapshotFacts, parts: Sequence[Part]) -> Mass | None:
    """Return the total mass of the parts; None when unknown.

    Columns of masses are read whole when they are short, and sampled otherwise.
    """
    if any(part.mass is None and part.masses is None for part in parts):
        return None
    read = facts.read_masses
    total = sum(part.mass * part.count for part in parts if part.mass is not None)
    columns = [part for part in parts if part.mass is None]
    rows = sum(part.count for part in columns)
    if rows <= _EXACT_ROWS:
        total += sum(float(read(one, 0, one.count).sum(dtype=np.float64)) for one in columns)
        return Mass(total) if math.isfinite(total) else None
    exact = True
    for group in sorted({part.group for part in columns}):
        members = [part for part in columns if part.group == group]
        sample = np.concatenate([read(*run) for run in _runs(members)]).astype(np.float64)
        mean = float(sample.mean())
        exact = exact and float(np.ptp(sample)) <= 1e-4 * abs(mean)
        total += mean * sum(part.count for part in members)
    return Mass(total, exact) if math.isfinite(total) else None


def _runs(parts: Sequence[Part]) -> list[tuple[Part, int, int]]:
    """Return runs of rows spread evenly over the parts."""
    ends = np.cumsum([part.count for part in parts])
    runs = []
    for at in np.linspace(0, int(ends[-1]) - 1, _RUNS, dtype=np.int64):
        index = int(np.searchsorted(ends, at, side="right"))
        part = parts[index]
        first = int(at) - (int(ends[index]) - part.count)
        first = max(0, min(first, part.count - _RUN_ROWS))
        runs.append((part, first, min(first + _RUN_ROWS, part.count)))
    return runs


def _kind(part: Part) -> int | None:
    """Return the particle type of a part: ``PartType1``, or ``1`` in a bigfile."""
    digits = part.group.removeprefix("PartType")
    return int(digits) if digits.isdigit() else None


def _kinds(parts: Sequence[Part]) -> set[int | None]:
    return {_kind(part) for part in parts}


def _names(parts: Sequence[Part]) -> str:
    return ", ".join(sorted({part.group for part in parts}))


def _left_out(facts: SnapshotFacts) -> tuple[list[Part], list[Part]]:
    """Return the baryon parts and the dark matter parts that are left out."""
    every = _kinds([*facts.parts, *facts.left])
    baryons = {_GAS, _STARS}
    # Type 5 holds black holes if there are gas or stars, and boundary particles otherwise.
    if every & baryons:
        baryons.add(_BLACK_HOLES)
    gas = [part for part in facts.left if _kind(part) in baryons]
    return gas, [part for part in facts.left if _kind(part) not in baryons]


def _known(facts: SnapshotFacts, parts: Sequence[Part]) -> float | None:
    """Return the share of the matter in parts that are left out; None when unknown."""
    total = 0.0
    for group in sorted({part.group for part in parts}):
        try:
            mass = sum_masses(facts, [one for one in parts if one.group == group])
        except CosmoflowError:
            # The files of these parts may be missing: they are not read.
            mass = None
        if mass is None:
            return None
        total += facts.share_of(mass.value) / facts.left_fractions.get(group, 1.0)
    return total


def _left_behind(
    facts: SnapshotFacts, share: float, mass: Mass, dark: Sequence[Part], hints: SnapshotHints
) -> DataError | None:
    """Return the error for dark matter left out in other types; None if that is not the cause."""
    held = _known(facts, dark)
    if not dark or not share < 1.0 or held is None:
        return None
    gas, _ = _left_out(facts)
    with_dark = share / facts.fraction + held
    everything = with_dark + (_known(facts, gas) or 0.0)
    slack = max(mass.slack, SLACK)
    baryons = facts.cosmology.Omega_b / facts.cosmology.Omega_m if gas else 0.0
    if not fits(with_dark, (1.0 - baryons, 1.0), slack) and not fits(everything, (1.0,), slack):
        return None
    kinds = sorted(kind for kind in _kinds([*facts.parts, *dark]) if kind is not None)
    return DataError(
        "dark matter is left out: other particle types also hold dark matter",
        where=facts.url,
        value=f"{share:.3g} of the matter in {_names(facts.parts)}, {held:.3g} in {_names(dark)}",
        limit=f"{1.0 - SLACK:g} to {1.0 + SLACK:g} in the types that are read: "
        f"particle_types is {hints.particle_types}",
        remedy=f"read them too: --set 'snapshot.particle_types={kinds}', or every type: "
        "--set snapshot.particle_types=all",
    )


def state_length(hints: SnapshotHints) -> str:
    """Return the remedy for a wrong unit of length."""
    if hints.length_unit is not None:
        return f"the hint length_unit is {hints.length_unit}: correct it"
    return (
        "give the unit of length with the hint length_unit: "
        "--set snapshot.length_unit=kpc/h (or Mpc/h, kpc, Mpc, a number of Mpc/h)"
    )


def limits_of(shares: Sequence[float]) -> str:
    """Return the accepted ranges of a share as text."""
    return " or ".join(
        f"{one * (1.0 - SLACK):.3g} to {one * (1.0 + SLACK):.3g}" for one in sorted(set(shares))
    )


def masses_found(mass: float, count: int, matter: float, shares: Sequence[float]) -> str:
    """Return the mean mass of a particle, and the mass that the cosmology needs, as text.

    Parameters
    ----------
    mass, matter : float
        Mass of all particles, and of all matter in the box, M_sun/h.
    """
    needed = _nearest(mass / matter, shares) * matter / count
    return f"particles of {mass / count:.4g} {MASS}, where {needed:.4g} {MASS} are needed"


def state_matter(share: float, shares: Sequence[float], cosmology: CosmologyConfig) -> list[str]:
    """Return the remedies for masses that units do not explain: Omega_m, and mass_share.

    Parameters
    ----------
    share : float
        Mass of the particles over that of matter.
    shares : sequence of float
        Expected shares.
    """
    remedies = []
    # With matter left out, the expected share depends on Omega_m, too.
    complete = all(math.isclose(one, 1.0) for one in shares)
    fitting = cosmology.Omega_m * share
    if complete and 1.0 / _NEAR < share < _NEAR and fitting <= 1.0:
        remedies.append(
            f"Omega_m {fitting:.4g} would fit: if the simulation had it, --set "
            f"snapshot.Omega_m={fitting:.4g}, which also sets the growth of the velocities"
        )
    if _SMALLEST_SHARE < share < 1.0:
        remedies.append(
            "if Omega_m is right, and these particles are only a part of the matter (a sample, or "
            f"gas is elsewhere), --set snapshot.mass_share={share:.3g}, which leaves the growth as "
            "it is"
        )
    if len(remedies) > 1:
        remedies.append("the parameter file of the simulation tells which")
    return remedies


def _nearest(share: float, shares: Sequence[float]) -> float:
    """Return the expected share whose ratio to ``share`` is nearest to 1."""
    known = [one for one in shares if one > 0.0] or [1.0]
    return min(known, key=lambda one: abs(math.log(share / one)) if share > 0.0 else one)


def _explain_units(
    facts: SnapshotFacts, share: float, shares: Sequence[float], hints: SnapshotHints
) -> list[str]:
    """Return the remedies for a factor that a wrong unit gives; empty if no unit does."""
    h, remedies = facts.cosmology.h, []
    if hints.box_size is None:
        units = {"kpc/h": 1e-3, "Mpc/h": 1.0, "kpc": 1e-3 * h, "Mpc": h}
        remedies = [
            f"in {name} the particles would fit: --set snapshot.length_unit={name}"
            for name, length in units.items()
            if fits(share * (facts.conversion.length / length) ** 3, shares)
        ]
    if any(fits(share * factor, shares) for factor in (h, 1.0 / h)):
        remedies.append(
            f"the masses are wrong by a factor of h ({h:g}): correct their unit in the file"
        )
    if any(fits(share * 10.0**power, shares) for power in (-10, 10)):
        remedies.append("the unit of mass is wrong by 1e10: correct it in the file")
    return remedies


def _unlike(
    facts: SnapshotFacts, share: float, shares: Sequence[float], mass: Mass, hints: SnapshotHints
) -> DataError:
    """Return the error for particles that do not hold the expected share of matter."""
    remedies = _explain_units(facts, share, shares, hints)
    ratio = share / _nearest(share, shares)
    if not remedies and not 1.0 / _NEAR < ratio < _NEAR:
        remedies = [
            "the unit of length or of mass, the box or Omega_m is wrong",
            state_length(hints),
        ]
    if hints.mass_share is not None:
        remedies.append(f"the hint mass_share is {hints.mass_share:g}: correct it")
    remedies += state_matter(share, shares, facts.cosmology)
    remedies = remedies or ["the unit of mass, the box or Omega_m is wrong"]
    count, unit = sum(part.count for part in facts.parts), facts.share_of(1.0)
    # A box without end holds no share.
    found = f": {masses_found(mass.value, count, 1.0 / unit, shares)}" if unit > 0.0 else ""
    return DataError(
        "the particles do not make up the mean density of matter",
        where=facts.url,
        value=f"{share:.4g} of the mean density, in a box of {facts.box_size:g} Mpc/h "
        f"with Omega_m {facts.cosmology.Omega_m:g}{found}",
        limit=limits_of(shares),
        remedy="; ".join(remedies),
    )
