"""From what a header says to a :class:`Snapshot`: the checks that every format shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from cosmoflow.config.base import digest
from cosmoflow.config.cosmology import EXTENSIONS, CosmologyConfig
from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.storage.metadata import BoxMetadata, make_provenance
from cosmoflow.storage.snapshots.conventions import Conversion, mean_density
from cosmoflow.storage.snapshots.expansion import Said, complete_expansion, find_doubt
from cosmoflow.storage.snapshots.files import SourceFile
from cosmoflow.storage.snapshots.source import Part, Reader, Snapshot

_DARK_MATTER: Final = 1
# Where dark matter is all there is, its mean density is that of matter; smooth neutrinos and
# rounded constants take less than this. Beside baryons it is at least 45 % of it.
_DENSITY_SLACK: Final = 0.05
_LEAST_DARK_SHARE: Final = 0.45


@dataclass(frozen=True)
class SnapshotFacts:
    """What a format's own code found out.

    Parameters
    ----------
    format : str
        For people.
    files : sequence of SourceFile
        All files of the snapshot.
    box_size : float
        Mpc/h.
    redshift : float
    cosmology : CosmologyConfig
    parts : sequence of Part
        The chosen particles.
    reader : Reader
    conversion : Conversion
    counts : dict
        Particles of each type in the whole snapshot.
    conventions : dict
        Units and velocity convention, for people and for the digest.
    header : dict
        What tells this snapshot from another, as plain data.
    notes : list of str
        What was assumed.
    share : float
        Of the matter that the particles stand for; less than 1 for subsamples.
    said : dict
        What the header says of the cosmology.
    """

    format: str
    files: Sequence[SourceFile]
    box_size: float
    redshift: float
    cosmology: CosmologyConfig
    parts: Sequence[Part]
    reader: Reader
    conversion: Conversion
    counts: Mapping[str, int]
    conventions: Mapping[str, Any]
    header: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)
    share: float = 1.0
    said: Said = field(default_factory=dict)


def build_snapshot(url: str, facts: SnapshotFacts, hints: SnapshotHints) -> Snapshot:
    """Check what a header says and make it a snapshot.

    Raises
    ------
    DataError
        There is no particle of the wanted type, or masses, box and cosmology contradict each other.
    """
    parts = tuple(part for part in facts.parts if part.count > 0)
    if not parts:
        raise DataError(
            "the snapshot holds no particles of the wanted type",
            where=url,
            value=", ".join(f"{name}: {count}" for name, count in facts.counts.items()) or "none",
            limit=f"particle_types: {hints.particle_types}",
            remedy="choose others with the hint particle_types",
        )
    notes = list(facts.notes)
    check_masses(url, parts, notes)
    masses = {part.mass for part in parts}
    equal = masses.pop() if len(masses) == 1 and not any(p.masses for p in parts) else None
    check_density(url, facts, parts, hints, notes)
    doubt = find_doubt(facts.said, facts.cosmology, facts.redshift, hints, notes)
    settings = {
        "hints": hints.model_dump(mode="json"),
        "format": facts.format,
        "conventions": dict(facts.conventions),
    }
    content = {
        "files": [[file.name, file.size] for file in facts.files],
        "header": dict(facts.header),
        "parts": [[part.group, part.count] for part in parts],
    }
    provenance = make_provenance("snapshot", settings, {"snapshot": digest(content)})
    return Snapshot(
        url,
        facts.format,
        BoxMetadata(
            facts.box_size,
            facts.redshift,
            facts.cosmology,
            equal,
            {**provenance, "notes": notes},
            unknown_expansion=doubt,
        ),
        parts,
        facts.reader,
        facts.conversion,
        {
            "files": len(facts.files),
            "bytes": sum(file.size for file in facts.files),
            "counts": dict(facts.counts),
        },
        files=tuple(file.url for file in facts.files),
    )


def check_masses(url: str, parts: Sequence[Part], notes: list[str]) -> None:
    """Refuse particle types of unknown mass, unless there is only one type."""
    unknown = {part.group for part in parts if part.mass is None and part.masses is None}
    if not unknown:
        return
    if len({part.group for part in parts}) > 1:
        raise DataError(
            "the masses of a particle type are not given",
            where=url,
            value=", ".join(sorted(unknown)),
            limit="a mass in the header or a column of masses",
            remedy="choose one type with the hint particle_types",
        )
    notes.append("no masses are given: all particles are taken to have the same")


def check_density(
    url: str,
    facts: SnapshotFacts,
    parts: Sequence[Part],
    hints: SnapshotHints,
    notes: list[str],
) -> None:
    """Refuse a snapshot whose masses do not make up the mean density of its cosmology.

    An error in the unit of length changes the density by the cube of it, so that none gets through.
    """
    masses = [part.mass for part in parts]
    groups = {part.group for part in parts}
    if any(mass is None for mass in masses) or not hints.wants(_DARK_MATTER):
        notes.append("the unit of length could not be checked against the particles' masses")
        return
    total = sum((part.mass or 0.0) * part.count for part in parts)
    density = mean_density(total, facts.box_size, facts.cosmology.Omega_m) / facts.share
    others = sum(facts.counts.values()) > sum(part.count for part in parts)
    lowest = _LEAST_DARK_SHARE if others or len(groups) > 1 else 1.0 - _DENSITY_SLACK
    if lowest <= density <= 1.0 + _DENSITY_SLACK:
        return
    if hints.length_unit is not None:
        notes.append(f"the particles make up {density:.3g} of the mean density of matter")
        return
    raise DataError(
        "the particles do not make up the mean density of matter",
        where=url,
        value=f"{density:.4g} of it, in a box of {facts.box_size:g} Mpc/h",
        limit=f"{lowest:g} to {1.0 + _DENSITY_SLACK:g}",
        remedy="the unit of length or of mass, the box or Omega_m is wrong; say what the lengths "
        "are with the hint length_unit",
    )


def resolve_cosmology(
    url: str, header: Said, hints: SnapshotHints, notes: list[str]
) -> CosmologyConfig:
    """Return the cosmology: hints first, then the header, then for small matters the defaults.

    Parameters
    ----------
    url : str
        For errors.
    header : dict
        What the header says of h, Omega_m, Omega_b, sigma8 and n_s, and what
        :func:`read_expansion` returns.
    hints : SnapshotHints
    notes : list of str
        Extended by what was assumed.

    Raises
    ------
    ConfigError
        Neither the header nor a hint says h or Omega_m.
    DataError
        A value makes no sense.
    """
    values: dict[str, float] = {}
    for name in CosmologyConfig.model_fields:
        said, hinted = header.get(name), getattr(hints, name)
        if hinted is not None:
            values[name] = hinted
            if isinstance(said, float) and not math.isclose(said, hinted, rel_tol=1e-6):
                notes.append(f"{name} is {hinted:g} by hint; the header says {said:g}")
        elif isinstance(said, int | float):
            values[name] = float(said)
        elif name in ("h", "Omega_m"):
            raise ConfigError(
                f"the header does not say {name}", where=url, remedy=f"give the hint {name}"
            )
        elif name not in EXTENSIONS:
            default = CosmologyConfig.model_fields[name].default
            notes.append(f"{name} is not in the header; {default:g} is assumed")
    complete_expansion(values, header, hints, notes)
    try:
        return CosmologyConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        # What several parameters violate together names none of them.
        wrong = str(first["loc"][0]) if first["loc"] else ""
        stated = ", ".join(f"{key} = {value:g}" for key, value in values.items())
        raise DataError(
            "the cosmology makes no sense",
            where=url,
            value=f"{wrong} = {first['input']}" if wrong else stated,
            limit=first["msg"].removeprefix("Value error, "),
            remedy=f"give the hint {wrong or 'w0, wa, Omega_k or m_nu'}",
        ) from None


def resolve_redshift(
    url: str, header: float | None, hints: SnapshotHints, notes: list[str]
) -> float:
    """Return the redshift: the hint's or the header's; rounding around 0 is taken off."""
    if hints.redshift is not None:
        if header is not None and abs(header - hints.redshift) > 1e-6:
            notes.append(f"the redshift is {hints.redshift:g} by hint; the header says {header:g}")
        return hints.redshift
    if header is None:
        raise ConfigError("the header does not say the redshift", where=url, remedy="hint redshift")
    if not -1.0 < header < 1e5:
        raise DataError("the redshift makes no sense", where=url, value=header)
    return 0.0 if abs(header) < 1e-9 else header
