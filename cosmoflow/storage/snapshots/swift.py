"""SWIFT snapshots: no h in the units, physical peculiar velocities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.storage.snapshots.building import build_snapshot, resolve_cosmology, resolve_redshift
from cosmoflow.storage.snapshots.conventions import (
    VELOCITY_POWER,
    Conversion,
    cgs_length,
    cgs_mass,
    cgs_velocity,
    first_of,
    hinted_length,
    number_of,
)
from cosmoflow.storage.snapshots.expansion import read_expansion
from cosmoflow.storage.snapshots.facts import FileFacts, SnapshotFacts
from cosmoflow.storage.snapshots.gadget import resolve_box
from cosmoflow.storage.snapshots.hdf5 import Hdf5Reader
from cosmoflow.storage.snapshots.parts import all_files, counts_by_type, split_parts
from cosmoflow.storage.snapshots.source import Snapshot

_LENGTH, _MASS, _TIME = (
    f"Unit {name} in cgs ({symbol})"
    for name, symbol in (("length", "U_L"), ("mass", "U_M"), ("time", "U_t"))
)


def is_swift(facts: FileFacts) -> bool:
    """Return whether a file was written by SWIFT or in its format."""
    return _LENGTH in facts.groups.get("Units", {})


def open_swift(url: str, facts: Sequence[FileFacts], hints: SnapshotHints) -> Snapshot:
    """Open SWIFT's files as a snapshot."""
    notes: list[str] = []
    header, units = facts[0].header, facts[0].groups["Units"]
    said = _read_cosmology(facts[0].groups.get("Cosmology", {}))
    cosmology = resolve_cosmology(url, said, hints, notes)
    redshift = resolve_redshift(url, _redshift(url, header, hints), hints, notes)
    a, h = 1.0 / (1.0 + redshift), cosmology.h
    length_cm, mass_g, time_s = (_unit(url, units, name) for name in (_LENGTH, _MASS, _TIME))
    coordinates = _exponents(url, facts, hints, "position", 1.0)
    speeds = _exponents(url, facts, hints, "velocity", 0.0)
    hinted = hinted_length(hints, h)
    unit = cgs_length(length_cm, h) if hinted is None else hinted
    # A column times a^exponent is the physical length, which is a times the comoving length.
    length = unit * a ** (coordinates[0] - 1.0) * h ** coordinates[1]
    velocity = cgs_velocity(length_cm / time_s)
    if hints.velocity is not None:
        velocity *= a ** VELOCITY_POWER[hints.velocity]
        convention = f"{hints.velocity}, by hint"
    elif speeds == (0.0, 0.0):
        convention = "peculiar"
    else:
        # SWIFT itself writes 0; swiftsimio's writer writes 1 but means 0.
        raise DataError(
            "the velocities are not marked as peculiar, as SWIFT's are",
            where=url,
            value=f"a-scale exponent {speeds[0]:g}, h-scale exponent {speeds[1]:g}",
            limit="0 and 0",
            remedy="give the hint velocity: --set snapshot.velocity=peculiar, or comoving if "
            "they are v / a",
        )
    mass_unit = cgs_mass(mass_g, h)
    fractions = _fractions(header)

    def mass_of(one: FileFacts, kind: int) -> float | None:
        mass = _entry(one.header, "MassTable", kind)
        if not mass > 0.0 and kind == 1 and kind in one.types and one.types[kind].masses is None:
            # An output without a column of masses: masses of dark matter never change.
            mass = _entry(one.header, "InitialMassTable", kind)
        return mass * mass_unit if mass > 0.0 else None

    box_size = resolve_box(url, header, unit, hints)
    parts, left = split_parts(facts, hints, mass_of)
    return build_snapshot(
        SnapshotFacts(
            url=url,
            format="SWIFT",
            files=all_files(facts),
            box_size=box_size,
            redshift=redshift,
            cosmology=cosmology,
            parts=parts,
            left=left,
            fraction=_share(url, fractions, facts, hints),
            left_fractions={f"PartType{kind}": value for kind, value in enumerate(fractions)},
            reader=Hdf5Reader(),
            conversion=Conversion(length, velocity, mass_unit, wrap=hints.wrap),
            counts=counts_by_type(facts),
            conventions={
                "length": f"{length:g} Mpc/h",
                "length_from": "header, times h" if hinted is None else "hint",
                "velocity": convention,
            },
            header=header,
            notes=notes,
            said=said,
        ),
        hints,
    )


def _read_cosmology(group: Mapping[str, Any]) -> dict[str, float | str | None]:
    """Return the cosmology of the group Cosmology; SWIFT's Omega_m excludes neutrinos."""
    cold, neutrinos = first_of(group, "Omega_m"), number_of(group, "Omega_nu_0")
    rate, today = (first_of(group, f"{name} [internal units]") for name in ("H", "H0"))
    said = read_expansion(group)
    if neutrinos is not None:
        # The density is exact; the masses without the temperature give it only to 0.1 %.
        said["m_nu"] = None
    return {
        **said,
        "h": first_of(group, "h"),
        "Omega_m": None if cold is None else cold + (neutrinos or 0.0),
        "Omega_b": first_of(group, "Omega_b"),
        "Omega_nu": neutrinos,
        "Omega_r": number_of(group, "Omega_r"),
        "E": rate / today if rate and today else None,
    }


def _entry(header: Mapping[str, Any], name: str, kind: int) -> float:
    """Return a particle type's entry of a list in the header; 0 where there is none."""
    table = header.get(name, [])
    return float(table[kind]) if isinstance(table, list) and kind < len(table) else 0.0


def _fractions(header: Mapping[str, Any]) -> list[float]:
    """Return the share of all particles of each type that a sub-sampled output keeps."""
    said = header.get("SubSampleFractions", [])
    values = said if isinstance(said, list) else [said]
    return [float(one) if 0.0 < float(one) < 1.0 else 1.0 for one in values]


def _share(
    url: str, fractions: Sequence[float], facts: Sequence[FileFacts], hints: SnapshotHints
) -> float:
    """Return the share of all particles of the chosen types that the files keep."""
    found = {
        kind: fractions[kind] if kind < len(fractions) else 1.0
        for one in facts
        for kind, columns in one.types.items()
        if hints.wants(kind) and columns.rows
    }
    if len(set(found.values())) > 1:
        raise DataError(
            "the particle types are sampled with different fractions",
            where=f"{url}, Header/SubSampleFractions",
            value=", ".join(f"PartType{kind}: {one:g}" for kind, one in sorted(found.items())),
            remedy="read one type: --set 'snapshot.particle_types=[1]'",
        )
    return next(iter(found.values()), 1.0)


def _redshift(url: str, header: Mapping[str, Any], hints: SnapshotHints) -> float | None:
    """Return the redshift; SWIFT's Time is a time, not the scale factor."""
    said, a = (number_of(header, name) for name in ("Redshift", "Scale-factor"))
    if said is None or a is None:
        return said if not a else 1.0 / a - 1.0
    if hints.redshift is None and abs(a * (1.0 + said) - 1.0) > 1e-3:
        raise DataError(
            "Redshift and Scale-factor of the header contradict each other",
            where=url,
            value=f"Scale-factor {a:g}, Redshift {said:g}",
            limit="Scale-factor = 1 / (1 + Redshift)",
            remedy="give the hint redshift when the header is wrong: --set snapshot.redshift=0",
        )
    return said


def _unit(url: str, units: Mapping[str, Any], name: str) -> float:
    value = first_of(units, name)
    if value is None or not value > 0.0:
        raise ConfigError("the snapshot does not say its units", where=f"{url}, Units", limit=name)
    return value


def _exponents(
    url: str, facts: Sequence[FileFacts], hints: SnapshotHints, column: str, usual: float
) -> tuple[float, float]:
    """Return the powers of a and h that convert a column to physical units without h."""
    found = {
        tuple(
            default if value is None else float(value[0] if isinstance(value, list) else value)
            for value, default in (
                (attributes.get("a-scale exponent"), usual),
                (attributes.get("h-scale exponent"), 0.0),
            )
        )
        for one in facts
        for kind, columns in one.types.items()
        if hints.wants(kind)
        for attributes in [getattr(columns, column)]
    }
    if len(found) > 1:
        raise DataError(
            "the particle types are in different units",
            where=f"{url}, {column}",
            value=sorted(found),
            remedy="read one type: --set 'snapshot.particle_types=[1]'",
        )
    a_power, h_power = found.pop() if found else (usual, 0.0)
    return a_power, h_power
