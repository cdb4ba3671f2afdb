"""Headers and units of Gadget-2, -3 and -4 and AREPO (TNG, CAMELS, Quijote)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.storage.snapshots.building import build_snapshot, resolve_cosmology, resolve_redshift
from cosmoflow.storage.snapshots.conventions import (
    CM_PER_KPC,
    GADGET_MASS,
    VELOCITY_POWER,
    Conversion,
    cgs_length,
    cgs_mass,
    cgs_velocity,
    first_of,
    hinted_length,
    mean_density,
)
from cosmoflow.storage.snapshots.expansion import read_expansion
from cosmoflow.storage.snapshots.facts import FileFacts, SnapshotFacts
from cosmoflow.storage.snapshots.parts import all_files, counts_by_type, split_parts, total_counts
from cosmoflow.storage.snapshots.source import Reader, Snapshot

_LENGTHS: Final = {1e-3: "kpc/h", 1.0: "Mpc/h"}
"""Usual units of length, Mpc/h, and their names."""
_SCALING: Final = ("a_scaling", "aexp-scale-exponent")
"""Attributes with the power of a of a column: TNG and Gadget-4, EAGLE."""


@dataclass(frozen=True, slots=True)
class GadgetUnits:
    """Mpc/h, M_sun/h and km/s per unit of a Gadget header, and the source of the length unit."""

    length: float
    mass: float
    velocity: float
    length_from: str

    def conversion(self, redshift: float, power: float, *, wrap: bool) -> Conversion:
        """Return the conversion of a file whose velocities times ``a**power`` are peculiar."""
        velocity = self.velocity * (1.0 + redshift) ** -power
        return Conversion(self.length, velocity, self.mass, wrap=wrap)

    def describe(self, velocity: str) -> dict[str, str]:
        """Return the units and the convention of the velocities, for display."""
        length = _LENGTHS.get(self.length, f"{self.length:g} Mpc/h")
        return {"length": length, "length_from": self.length_from, "velocity": velocity}


def read_cosmology(header: Mapping[str, Any]) -> dict[str, float | str | None]:
    """Return the cosmology as stated in a Gadget header."""
    return {
        "h": first_of(header, "HubbleParam"),
        # OmegaM is FastPM's name; its Omega0 lacks the neutrinos.
        "Omega_m": first_of(header, "OmegaM", "Omega0", "Omega_Matter"),
        "Omega_b": first_of(header, "OmegaBaryon", "Omega_Baryon", "Omega_b"),
        "sigma8": first_of(header, "Sigma8", "sigma8"),
        "n_s": first_of(header, "PrimordialIndex", "n_s"),
        **read_expansion(header),
    }


def read_redshift(url: str, header: Mapping[str, Any]) -> float | None:
    """Return the redshift of a Gadget header, whose time is the scale factor.

    Raises
    ------
    DataError
        Redshift and time contradict each other, for example if the time is not the scale factor.
    """
    redshift, a = header.get("Redshift"), first_of(header, "Time", "ScalingFactor")
    if isinstance(redshift, list):
        redshift = redshift[0]
    if redshift is None:
        return None if a is None else 1.0 / a - 1.0
    if a is not None and abs(a * (1.0 + redshift) - 1.0) > 1e-3:
        raise DataError(
            "Time and Redshift of the header contradict each other",
            where=url,
            value=f"Time {a}, Redshift {redshift}",
            limit="Time = 1 / (1 + Redshift): comoving integration",
            remedy="give the hint redshift when the header is wrong: --set snapshot.redshift=0",
        )
    return float(redshift)


def resolve_units(
    url: str,
    header: Mapping[str, Any],
    hints: SnapshotHints,
    Omega_m: float,
    table: Sequence[float],
    counts: Sequence[int],
) -> GadgetUnits:
    """Return the units of a Gadget header.

    Parameters
    ----------
    header : dict
        Attributes of the header. Without ``UnitLength_in_cm`` the masses of the particles decide
        between kpc/h and Mpc/h.
    table, counts : sequence of float, sequence of int
        Mass in the header's unit and number of the particles of each type.

    Raises
    ------
    ConfigError
        The unit of length is not given and cannot be inferred.
    """
    length, mass, velocity = (
        first_of(header, f"Unit{name}")
        for name in ("Length_in_cm", "Mass_in_g", "Velocity_in_cm_per_s")
    )
    mass_unit = GADGET_MASS if mass is None else cgs_mass(mass)
    velocity_unit = 1.0 if velocity is None else cgs_velocity(velocity)
    hinted = hinted_length(hints, hints.h or first_of(header, "HubbleParam"))
    if hinted is not None:
        return GadgetUnits(hinted, mass_unit, velocity_unit, "hint")
    if length is not None:
        return GadgetUnits(cgs_length(length), mass_unit, velocity_unit, "header")
    box = max(box_sides(header))
    total = sum(one * count for one, count in zip(table, counts, strict=False)) * mass_unit
    fits = [
        unit for unit in _LENGTHS if box and 0.01 < mean_density(total, box * unit, Omega_m) < 2.0
    ]
    if len(fits) != 1:
        raise ConfigError(
            "the header does not say the unit of length, and the masses do not determine it",
            where=url,
            limit=f"UnitLength_in_cm, for example {CM_PER_KPC:.7g} for kpc/h",
            remedy="give the hint length_unit: --set snapshot.length_unit=kpc/h (or Mpc/h)",
        )
    return GadgetUnits(fits[0], mass_unit, velocity_unit, "mean density of the particles")


def resolve_box(url: str, header: Mapping[str, Any], length: float, hints: SnapshotHints) -> float:
    """Return the side of the box, Mpc/h.

    Raises
    ------
    ConfigError
        The header does not say the box size.
    DataError
        The box is not a cube.
    """
    if hints.box_size is not None:
        return hints.box_size
    value, sides = header.get("BoxSize"), box_sides(header)
    if max(sides) != min(sides):
        raise DataError("the box is not a cube", where=url, value=sides)
    if not sides[0] > 0.0:
        raise ConfigError(
            "the header does not say the size of the box",
            where=url,
            value=value,
            remedy="give the hint box_size, in Mpc/h: --set snapshot.box_size=500",
        )
    return sides[0] * length


def box_sides(header: Mapping[str, Any]) -> list[float]:
    """Return the sides of the box in the header's unit, one number or three; 0 means unknown."""
    value = header.get("BoxSize")
    return [float(side) for side in (value if isinstance(value, list) else [value or 0.0])]


def mass_table(url: str, header: Mapping[str, Any]) -> list[float]:
    """Return the mass of the particles of each type, in the header's unit; 0 where they differ.

    Raises
    ------
    DataError
        The table in the header does not hold numbers.
    """
    found = header.get("MassTable", [])
    try:
        return [float(mass) for mass in found]
    except (TypeError, ValueError):
        raise DataError(
            "the table of masses in the header does not hold numbers",
            where=f"{url}, Header/MassTable",
            value=found,
            limit="one number for each type",
            remedy="correct the header: 0 for types with a column of masses",
        ) from None


def open_gadget(
    url: str, facts: Sequence[FileFacts], hints: SnapshotHints, reader: Reader, form: str
) -> Snapshot:
    """Open files of the Gadget family, HDF5 or binary, as a snapshot."""
    notes: list[str] = []
    # The run's parameters, if stored, supply what the header lacks.
    header = {**facts[0].groups.get("Parameters", {}), **facts[0].header}
    stated = read_cosmology(header)
    cosmology = resolve_cosmology(url, stated, hints, notes)
    said = None if hints.redshift is not None else read_redshift(url, header)
    redshift = resolve_redshift(url, said, hints, notes)
    table = mass_table(url, header)
    counts = total_counts(facts[0]) or []
    units = resolve_units(url, header, hints, cosmology.Omega_m, table, counts)

    def mass_of(one: FileFacts, kind: int) -> float | None:
        mass = table[kind] if kind < len(table) else 0.0
        return mass * units.mass if mass > 0.0 else None

    power, convention = _velocity_power(url, facts, hints)
    box_size = resolve_box(url, header, units.length, hints)
    parts, left = split_parts(facts, hints, mass_of)
    return build_snapshot(
        SnapshotFacts(
            url=url,
            format=form,
            files=all_files(facts),
            box_size=box_size,
            redshift=redshift,
            cosmology=cosmology,
            parts=parts,
            left=left,
            reader=reader,
            conversion=units.conversion(redshift, power, wrap=hints.wrap),
            counts=counts_by_type(facts),
            conventions=units.describe(convention),
            header=facts[0].header,
            notes=notes,
            said=stated,
        ),
        hints,
    )


def _velocity_power(
    url: str, facts: Sequence[FileFacts], hints: SnapshotHints
) -> tuple[float, str]:
    """Return the power of a of the velocities, and its source."""
    if hints.velocity is not None:
        return VELOCITY_POWER[hints.velocity], f"{hints.velocity}, by hint"
    said = {
        float(columns.velocity[name])
        for one in facts
        for kind, columns in one.types.items()
        for name in _SCALING
        if name in columns.velocity and hints.wants(kind)
    }
    if len(said) > 1:
        raise DataError(
            "the velocities scale with different powers of a",
            where=url,
            value=sorted(said),
            remedy="give the hint velocity (--set snapshot.velocity=gadget), or read one type",
        )
    if said:
        power = said.pop()
        return power, f"times a^{power:g}, as the columns say"
    return VELOCITY_POWER["gadget"], "gadget: times sqrt(a)"
