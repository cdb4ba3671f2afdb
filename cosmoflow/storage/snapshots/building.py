"""Build a :class:`Snapshot` from the facts in a header, with the checks that all formats share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pydantic import ValidationError

from cosmoflow.config.base import digest
from cosmoflow.config.cosmology import EXTENSIONS, CosmologyConfig
from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.storage.metadata import BoxMetadata, check_box, make_provenance
from cosmoflow.storage.snapshots.expansion import Said, complete_expansion, find_doubt
from cosmoflow.storage.snapshots.facts import SnapshotFacts
from cosmoflow.storage.snapshots.matter import check_matter, state_length
from cosmoflow.storage.snapshots.source import Part, Snapshot

_EXAMPLES = {"h": "0.7", "Omega_m": "0.3"}


def build_snapshot(facts: SnapshotFacts, hints: SnapshotHints) -> Snapshot:
    """Check the facts and build the snapshot.

    Masses that contradict box and cosmology are the snapshot's ``refusal``: its header can still be
    shown.

    Raises
    ------
    DataError
        No particle has a chosen type, or the box is impossible.
    """
    url, parts = facts.url, tuple(part for part in facts.parts if part.count > 0)
    if not parts:
        raise DataError(
            "the snapshot holds no particles of the chosen type",
            where=url,
            value=", ".join(f"{name}: {count}" for name, count in facts.counts.items()) or "none",
            limit=f"particle_types: {hints.particle_types}",
            remedy="choose others with the hint particle_types: --set snapshot.particle_types=all, "
            "or --set 'snapshot.particle_types=[4]'",
        )
    notes, cautions = facts.notes, list[str]()
    check_masses(url, parts, cautions)
    masses = {part.mass for part in parts}
    equal = masses.pop() if len(masses) == 1 and not any(p.masses for p in parts) else None
    doubt = find_doubt(facts.said, facts.cosmology, facts.redshift, hints, notes)
    shares: tuple[float, ...] = ()
    refusal: DataError | None = None
    if facts.mass_unit is not None or not any(part.masses for part in parts):
        try:
            shares = check_matter(replace(facts, parts=parts), hints, cautions)
        except DataError as error:
            refusal = error
    else:
        cautions.append(
            "the file does not say the unit of the masses: their sum was not compared with the "
            "mean density of matter"
        )
    # The error of the masses says more about a wrong unit of length.
    if refusal is None:
        check_box(facts.box_size, facts.redshift, url, remedy=state_length(hints))
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
        refusal=refusal,
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
    header : dict
        Values of h, Omega_m, Omega_b, sigma8 and n_s in the header, and the result of
        :func:`read_expansion`.
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
            notes.append(
                f"{name} is not in the header; {default:g} is assumed; --set snapshot.{name}=VALUE "
                "states it"
            )
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
