"""From what a header says to a :class:`Snapshot`: the checks that every format shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from pydantic import ValidationError

from cosmoflow.config.base import digest
from cosmoflow.config.cosmology import EXTENSIONS, CosmologyConfig
from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.storage.metadata import BoxMetadata, check_box, make_provenance
from cosmoflow.storage.snapshots.conventions import Conversion
from cosmoflow.storage.snapshots.expansion import Said, complete_expansion, find_doubt
from cosmoflow.storage.snapshots.files import SourceFile
from cosmoflow.storage.snapshots.matter import MatterFacts, check_matter
from cosmoflow.storage.snapshots.source import Part, Reader, Snapshot
from cosmoflow.units import MASS

_EXAMPLES = {"h": "0.7", "Omega_m": "0.3"}


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
        Of all particles of their types; less than 1 for random samples.
    left : sequence of Part
        The particles of other types, which are not read.
    left_shares : dict
        As ``share``, of the groups of ``left`` that are random samples.
    mass_unit : str or None
        ``M_sun/h``; None when a column of masses may be in any unit.
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
    left: Sequence[Part] = ()
    left_shares: Mapping[str, float] = field(default_factory=dict)
    mass_unit: str | None = MASS
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
            remedy="choose others with the hint particle_types: --set snapshot.particle_types=all, "
            "or --set 'snapshot.particle_types=[4]'",
        )
    notes, cautions = list(facts.notes), list[str]()
    check_masses(url, parts, cautions)
    masses = {part.mass for part in parts}
    equal = masses.pop() if len(masses) == 1 and not any(p.masses for p in parts) else None
    doubt = find_doubt(facts.said, facts.cosmology, facts.redshift, hints, notes)
    shares: tuple[float, ...] = ()
    if facts.mass_unit is not None or not any(part.masses for part in parts):
        verdict = check_matter(_matter_facts(url, facts, parts), hints)
        shares = verdict.shares
        notes += verdict.notes
        # One caution is enough where there are no masses at all.
        cautions += [] if cautions else verdict.cautions
    else:
        cautions.append(
            "the masses are in a unit that the file does not say: their sum was not held against "
            "the mean density of matter"
        )
    # After the masses: they say more about a wrong unit of length.
    check_box(facts.box_size, facts.redshift, url)
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
            {**provenance, "notes": [*notes, *cautions]},
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
        cautions=tuple(cautions),
        matter_shares=shares,
        mass_unit=facts.mass_unit,
    )


def _matter_facts(url: str, facts: SnapshotFacts, parts: Sequence[Part]) -> MatterFacts:
    unit = facts.conversion.mass

    def read_masses(part: Part, start: int, stop: int) -> NDArray[Any]:
        return facts.reader.masses(part, start, stop) * unit

    return MatterFacts(
        url,
        facts.box_size,
        facts.cosmology,
        parts,
        [part for part in facts.left if part.count > 0],
        read_masses,
        facts.share,
        dict(facts.left_shares),
    )


def check_masses(url: str, parts: Sequence[Part], cautions: list[str]) -> None:
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
            remedy="choose one type with the hint particle_types: "
            "--set 'snapshot.particle_types=[1]'",
        )
    cautions.append("no masses are given: all particles are taken to have the same")


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
                f"the header does not say {name}",
                where=url,
                remedy=f"give the hint {name}: --set snapshot.{name}={_EXAMPLES[name]}",
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
            remedy=f"give the hint {wrong}: --set snapshot.{wrong}=..."
            if wrong
            else "give the hint w0, wa, Omega_k or m_nu, such as --set snapshot.w0=-1",
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
        raise ConfigError(
            "the header does not say the redshift",
            where=url,
            remedy="give the hint redshift: --set snapshot.redshift=0",
        )
    if not -1.0 < header < 1e5:
        raise DataError("the redshift makes no sense", where=url, value=header)
    return 0.0 if abs(header) < 1e-9 else header
