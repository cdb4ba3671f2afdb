"""Gather the files of one snapshot of the Gadget family, and check that they are consistent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.errors import DataError
from cosmoflow.storage.snapshots.facts import POSITION, VELOCITY, FileFacts
from cosmoflow.storage.snapshots.files import SourceFile, stat_file, whole_set
from cosmoflow.storage.snapshots.source import Part

_SHARED: Final = (
    *("BoxSize", "Time", "Redshift", "Scale-factor", "MassTable", "NumFilesPerSnapshot"),
    *("NumPart_Total", "NumPart_Total_HighWord", "HubbleParam", "Omega0", "OmegaLambda"),
    *("UnitLength_in_cm", "UnitMass_in_g", "UnitVelocity_in_cm_per_s"),
)
"""Attributes that are equal in the headers of all parts."""
_TRACERS: Final = 3
"""Type of massless tracers without positions in AREPO; other codes may use it."""
_NEUTRINOS: Final = 6
"""Type of SWIFT's neutrinos, which have weights beside masses: only read on request."""

MassOf = Callable[[FileFacts, int], float | None]
"""Function of a file and a particle type: the mass in the header, M_sun/h, or None."""


_MOST_LISTED = 8
"""Most snapshots that an error names."""


def several_snapshots(url: str, found: Sequence[str]) -> DataError:
    """Return the error for a place that holds several snapshots, named as seen from there."""
    names = sorted(name.removeprefix(url).strip("/") for name in found)
    more = len(names) - _MOST_LISTED
    return DataError(
        "there are several snapshots",
        where=url,
        value=", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else ""),
        remedy=f"name one of them, for example {min(found)}",
    )


def gather_files(
    url: str, found: Sequence[SourceFile], inspect: Callable[[SourceFile], FileFacts]
) -> list[FileFacts]:
    """Inspect all files of the snapshot that the found files belong to.

    Parameters
    ----------
    found : sequence of SourceFile
        Files of the snapshot; may be incomplete.
    inspect : callable
        Function that reads the header of a file.

    Raises
    ------
    DataError
        A file is missing, belongs to another snapshot, has other units, or holds fewer particles
        than its header says.
    """
    first = inspect(found[0])
    behind = _behind(first, inspect) if first.virtual_only else None
    if behind is not None:
        files = [one.file for one in behind]
    elif first.virtual:
        files = [first.file]
    else:
        files = whole_set(found[0], _number(first.header.get("NumFilesPerSnapshot"), 1))
    strangers = {file.url for file in found} - {file.url for file in files} - {first.file.url}
    strangers -= {_pointer(file.url) for file in files}
    if strangers:
        raise several_snapshots(url, [found[0].url, *strangers])
    seen = {one.file.url: one for one in [first, *(behind or [])]}
    facts = [seen[file.url] if file.url in seen else inspect(file) for file in files]
    for other in facts[1:]:
        _check_same(facts[0], other)
    _check_counts(url, facts)
    return facts


def _behind(
    pointer: FileFacts, inspect: Callable[[SourceFile], FileFacts]
) -> list[FileFacts] | None:
    """Return the parts that a file of virtual datasets points to, if it maps all their rows.

    The parts have more complete headers, and are read directly. If the file maps only some of
    their rows, or combines columns of several files, return None: it is read as it is.
    """
    urls = {tuple(piece.url for piece in pieces) for pieces in pointer.virtual.values()}
    every = list(dict.fromkeys(url for files in urls for url in files))
    if pointer.file.url in every or len(every) < max(map(len, urls)):
        return None
    parts = []
    for url in every:
        file = stat_file(url)
        try:
            parts.append(inspect(file or SourceFile(url, 0)))
        except DataError:
            # Its rows exist: they were checked with the file that points to them.
            return None
    rows = {
        (one.file.url, f"/PartType{kind}/{name}"): columns.rows
        for one in parts
        for kind, columns in one.types.items()
        for name in (POSITION, VELOCITY, columns.masses)
    }
    for column, pieces in pointer.virtual.items():
        whole = {
            (piece.url, f"/{piece.dataset.lstrip('/')}"): piece.rows
            for piece in pieces
            if piece.start == 0 and piece.step == 1
        }
        if whole != {key: count for key, count in rows.items() if key[1] == column and count}:
            return None
    return parts


def _pointer(url: str) -> str:
    """Return the name of the file that points to the parts of a SWIFT snapshot: NAME.hdf5."""
    folder, slash, name = url.rpartition("/")
    stem, _, rest = name.partition(".")
    return f"{folder}{slash}{stem}.{rest.rpartition('.')[-1]}"


def _number(value: Any, default: int) -> int:
    while isinstance(value, list):
        value = value[0] if value else default
    return int(value) if value else default


def _check_same(first: FileFacts, other: FileFacts) -> None:
    """Refuse a part of another snapshot, or one written in other units."""
    for name, group in first.groups.items():
        if name not in ("Header", "Units"):
            continue
        theirs = other.groups.get(name, {})
        for key, value in group.items():
            shared = name == "Units" or key in _SHARED
            if shared and not _close(value, theirs.get(key)):
                raise DataError(
                    "the parts of the snapshot do not agree",
                    where=f"{other.file.url}, {name}/{key}",
                    value=theirs.get(key),
                    limit=f"{value}, as in {first.file.name}",
                    remedy="they are of different snapshots or in different units; copy them again",
                )
    for kind in first.types.keys() & other.types.keys():
        for ours, its in (
            (first.types[kind].position, other.types[kind].position),
            (first.types[kind].velocity, other.types[kind].velocity),
        ):
            for key, value in ours.items():
                if isinstance(value, int | float) and not _close(value, its.get(key)):
                    raise DataError(
                        "the parts of the snapshot are in different units",
                        where=f"{other.file.url}, PartType{kind}, attribute {key}",
                        value=its.get(key),
                        limit=f"{value}, as in {first.file.name}",
                    )


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return (
            isinstance(other, list)
            and len(one) == len(other)
            and all(_close(a, b) for a, b in zip(one, other, strict=True))
        )
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-12)
    return bool(one == other)


def this_file(facts: FileFacts) -> list[int]:
    """Return the number of particles of each type in a file, according to its header.

    Raises
    ------
    DataError
        The header has no such numbers.
    """
    counts = facts.header.get("NumPart_ThisFile")
    if not isinstance(counts, list):
        raise DataError(
            "this HDF5 file is not a snapshot: its header does not count particles",
            where=facts.file.url,
            limit="an attribute NumPart_ThisFile of Header",
        )
    return [int(count) for count in counts]


def total_counts(facts: FileFacts) -> list[int] | None:
    """Return the number of particles of each type in the whole snapshot, high words included."""
    low, high = facts.header.get("NumPart_Total"), facts.header.get("NumPart_Total_HighWord")
    if not isinstance(low, list):
        return None
    # Some writers write fewer high words than types.
    upper = [*(high if isinstance(high, list) else []), *[0] * len(low)]
    # If the counts already have 64 bits, the high words repeat their upper half.
    pairs = [(int(a), int(b)) for a, b in zip(low, upper, strict=False)]
    return [a if a >> 32 else a + (b << 32) for a, b in pairs]


def _check_counts(url: str, facts: Sequence[FileFacts]) -> None:
    """Refuse files whose particles do not match the counts in their headers."""
    for one in facts:
        for kind, said in enumerate(this_file(one)):
            if kind in one.types and one.types[kind].rows != said:
                raise DataError(
                    "the number of particles in a file differs from its header",
                    where=f"{one.file.url}, PartType{kind}",
                    value=one.types[kind].rows,
                    limit=said,
                    remedy="it is damaged; copy it again",
                )
    totals = total_counts(facts[0])
    for kind, total in enumerate(totals or []):
        found = sum(this_file(one)[kind] for one in facts)
        if found != total:
            raise DataError(
                "the parts do not add up to the snapshot",
                where=f"{url}, PartType{kind}",
                value=f"{found} particles in {len(facts)} files",
                limit=f"{total}, as the header says",
                remedy="parts are missing or belong to another snapshot; copy them again",
            )


def _kinds_of(facts: Sequence[FileFacts]) -> list[tuple[int, int]]:
    """Return the particle types and the number of particles of each in the files."""
    counts = zip(*(this_file(one) for one in facts), strict=True)
    return [(kind, sum(numbers)) for kind, numbers in enumerate(counts)]


def part_of(
    file: str, group: str, kind: int, count: int, mass: float | None, masses: str | None
) -> Part:
    """Return a part with either its one mass, M_sun/h, or its column of masses."""
    # Masses of stars and gas change; the header then has the initial mass.
    own = masses is not None and (mass is None or kind not in (1, 2))
    return Part(file, group, count, None if own else mass, masses if own else None)


def split_parts(
    facts: Sequence[FileFacts], hints: SnapshotHints, mass_of: MassOf
) -> tuple[list[Part], list[Part]]:
    """Return the particles to read, type by type and file by file, and those of other types.

    Raises
    ------
    DataError
        Particles of a chosen type have no positions.
    """
    chosen: list[Part] = []
    left: list[Part] = []
    everything = hints.particle_types == "all"
    for kind, _ in _kinds_of(facts):
        wanted = hints.wants(kind)
        if kind == _NEUTRINOS and (everything or not wanted):
            continue
        for one in facts:
            count, name = this_file(one)[kind], f"PartType{kind}"
            if count and kind in one.types:
                mass, masses = mass_of(one, kind), one.types[kind].masses
                part = part_of(one.file.url, name, kind, count, mass, masses)
                (chosen if wanted else left).append(part)
            elif count and wanted and not (everything and kind == _TRACERS):
                raise DataError(
                    "the particles have no positions",
                    where=f"{one.file.url}, {name}",
                    value=f"{count} particles",
                )
    return chosen, left


def all_files(facts: Sequence[FileFacts]) -> list[SourceFile]:
    """Return the files of a snapshot and the files that they point to."""
    return list(dict.fromkeys(file for one in facts for file in (one.file, *one.sources)))


def counts_by_type(facts: Sequence[FileFacts]) -> dict[str, int]:
    """Return the number of particles of each type that is present."""
    return {f"PartType{kind}": count for kind, count in _kinds_of(facts) if count}
