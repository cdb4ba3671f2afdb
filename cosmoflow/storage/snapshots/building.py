"""Build a :class:`Snapshot` from the facts in a header, with the checks that all formats share."""

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
    """Facts about a snapshot, collected by the code for its format.

    Parameters
    ----------
    format : str
        Name of the format, for display.
    files : sequence of SourceFile
        All files of the snapshot.
    box_size : float
        Box size, Mpc/h.
    redshift : float
    cosmology : CosmologyConfig
    parts : sequence of Part
        Chosen particles.
    reader : Reader
    conversion : Conversion
    counts : dict
        Particles of each type in the whole snapshot.
    conventions : dict
        Units and velocity convention, for display and for the digest.
    header : dict
        Values that identify the snapshot, as plain data.
    notes : list of str
        Assumptions.
    share : float
        Share of all particles of the chosen types; less than 1 for random samples.
    left : sequence of Part
        Particles of other types, which are not read.
    left_shares : dict
        ``share`` of each group of ``left`` that is a random sample.
    mass_unit : str or None
        ``M_sun/h``; None when a column of masses may be in any unit.
    said : dict
        Cosmology as stated in the header.
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
    """Check the facts and build the snapshot.

    Raises
    ------
    DataError
        No particle has a chosen type, or masses, box and cosmology contradict each other.
    """
    parts = tuple(part for part in facts.parts if part.count > 0)
    if not parts:
        raise DataError(
            "the snapshot holds no particles of the chosen type",
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
        # One caution is enough when there are no masses at all.
        cautions += [] if cautions else verdict.cautions
    else:
        cautions.append(
            "the file does not say the unit of the masses: their sum was not compared with the "
            "mean density of matter"
        )
    # Checked after the masses, whose error says more about a wrong unit of length.
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
    cautions.append("no masses are given: all particles are assumed to have the same mass")


def resolve_cosmology(
    url: str, header: Said, hints: SnapshotHints, notes: list[str]
) -> CosmologyConfig:
    """Return the cosmology from hints, else the header, else (minor parameters) the defaults.

    Parameters
    ----------
    url : str
        URL, for error messages.
    header : dict
        Values of h, Omega_m, Omega_b, sigma8 and n_s in the header, and the result of
        :func:`read_expansion`.
    hints : SnapshotHints
    notes : list of str
        Notes, to which assumptions are appended.

    Raises
    ------
    ConfigError
        Neither the header nor a hint gives h or Omega_m.
    DataError
        A value is invalid.
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
        # An error of several parameters together names none of them.
        wrong = str(first["loc"][0]) if first["loc"] else ""
        stated = ", ".join(f"{key} = {value:g}" for key, value in values.items())
        raise DataError(
            "the cosmology is invalid",
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
    """Return the redshift from the hint or the header; rounding errors around 0 are removed."""
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
        raise DataError("the redshift is invalid", where=url, value=header)
    return 0.0 if abs(header) < 1e-9 else header
