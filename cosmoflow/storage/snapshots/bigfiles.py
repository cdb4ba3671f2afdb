"""Bigfile folders of FastPM and MP-Gadget, local or in a bucket.

A bigfile is a folder of blocks such as ``1/Position``. A block is a folder with a text file
``header`` (type, columns and the rows of each data file), a text file ``attr-v2``, and data files
``000000``, ``000001``, ... of bare numbers. The bigfile library is not used because it cannot read
a range of rows from a bucket and does not notice a short file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cosmoflow.config.snapshot import SnapshotHints, VelocityConvention
from cosmoflow.errors import DataError, StorageError
from cosmoflow.storage.snapshots.building import build_snapshot, resolve_cosmology, resolve_redshift
from cosmoflow.storage.snapshots.catalogues import check_no_catalogue, has_catalogue_signs
from cosmoflow.storage.snapshots.conventions import VELOCITY_POWER, first_of, number_of
from cosmoflow.storage.snapshots.facts import SnapshotFacts, plain
from cosmoflow.storage.snapshots.files import SourceFile, open_file, read_exactly, stat_file
from cosmoflow.storage.snapshots.gadget import (
    GadgetUnits,
    mass_table,
    read_cosmology,
    read_redshift,
    resolve_box,
    resolve_units,
)
from cosmoflow.storage.snapshots.parts import part_of
from cosmoflow.storage.snapshots.source import Part, Snapshot
from cosmoflow.storage.urls import has_file, join, read_bytes
from cosmoflow.units import H0_KM_S_PER_MPC_H

_HEADER: Final = "Header"
BIGFILE_MARK: Final = f"/{_HEADER}/attr-v2"
"""End of the URL of a file that every bigfile snapshot has."""
_COLUMNS: Final = ("position", "velocity")
_TEXTS: Final = ("S1", "a1")


@dataclass(frozen=True, slots=True)
class Block:
    """A column: its type, numbers per row, and the rows of each of its data files."""

    url: str
    dtype: str
    width: int
    rows: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.dtype(self.dtype).itemsize) * self.width

    def file(self, index: int) -> SourceFile:
        """Return a data file with its expected size."""
        return SourceFile(join(self.url, f"{index:06X}"), self.rows[index] * self.row_bytes)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows, opening only the data files that hold them."""
        pieces = []
        first = 0
        for index, rows in enumerate(self.rows):
            low, high = max(start - first, 0), min(stop - first, rows)
            if low < high:
                file = self.file(index)
                with open_file(file.url) as stream:
                    stream.seek(low * self.row_bytes)
                    content = read_exactly(stream, (high - low) * self.row_bytes, file.url)
                pieces.append(np.frombuffer(content, self.dtype))
            first += rows
        values = np.concatenate(pieces) if pieces else np.empty(0, self.dtype)
        return values.reshape(-1, self.width) if self.width > 1 else values


def is_bigfile(url: str) -> bool:
    """Return whether a folder is a bigfile with a header."""
    return has_file(join(url, _HEADER), "attr-v2")


def is_catalogue(url: str) -> bool:
    """Return whether a bigfile is a halo catalogue, as MP-Gadget's PIG folders are."""
    return bool(has_catalogue_signs((), read_attributes(join(url, _HEADER))))


def read_attributes(url: str) -> dict[str, Any]:
    """Return the attributes of a block as plain data.

    Raises
    ------
    DataError
        A line is invalid.
    """
    attributes: dict[str, Any] = {}
    for line in read_bytes(url, "attr-v2").decode(errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            # Name, type, count, bytes in hexadecimal; then a readable text.
            name, dtype, count, content = line.split()[:4]
            if dtype.lstrip("<>|=") in _TEXTS:
                attributes[name] = bytes.fromhex(content).decode(errors="replace").strip("\0")
                continue
            values = np.frombuffer(bytes.fromhex(content), dtype, int(count)).tolist()
        except (ValueError, TypeError) as error:
            raise DataError(
                "an attribute of the bigfile is invalid",
                where=join(url, "attr-v2"),
                value=line[:80],
                limit=str(error),
            ) from None
        attributes[name] = plain(values[0] if len(values) == 1 else values)
    return attributes


def read_block(url: str) -> Block:
    """Read the header of a block.

    Raises
    ------
    DataError
        The header is invalid, or a data file is missing or short.
    """
    try:
        text = read_bytes(url, "header").decode(errors="replace")
        pairs = [line.partition(":") for line in text.splitlines()]
        lines = {name.strip(): value.strip() for name, _, value in pairs}
        files = int(lines["NFILE"])
        rows = tuple(int(lines[f"{index:06X}"].split(":")[0]) for index in range(files))
        block = Block(url, np.dtype(lines["DTYPE"]).str, int(lines["NMEMB"]), rows)
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(
            "the header of a block is invalid", where=join(url, "header"), value=str(error)
        ) from None
    for index, count in enumerate(rows):
        wanted = block.file(index)
        file = stat_file(wanted.url) if count else wanted
        if file is None or file.size < wanted.size:
            raise DataError(
                "a data file is missing" if file is None else "a data file is truncated",
                where=wanted.url,
                value="none" if file is None else f"{file.size} bytes",
                limit=f"{wanted.size} bytes",
                remedy="copy it again",
            )
    return block


@dataclass(frozen=True, slots=True)
class BigfileReader:
    """Reads rows of the blocks of each particle type."""

    blocks: Mapping[str, Mapping[str, Block]]

    def read(self, part: Part, start: int, stop: int, columns: Sequence[str]) -> list[NDArray[Any]]:
        """Return columns of the particles ``start`` to ``stop`` of a part, in the file's units."""
        return [self.blocks[part.group][name].read(start, stop) for name in columns]


def open_bigfile(url: str, hints: SnapshotHints) -> Snapshot:
    """Open a bigfile as a snapshot.

    Raises
    ------
    DataError
        The bigfile is damaged, or its particles do not match the counts in its header.
    ConfigError
        The header lacks a required value.
    """
    notes: list[str] = []
    header = read_attributes(join(url, _HEADER))
    check_no_catalogue(url, (), header)
    fastpm = "ScalingFactor" in header
    counts = [int(count) for count in header.get("TotNumPart", [])]
    table = mass_table(url, header)
    stated = read_cosmology(header)
    if fastpm:
        stated["Omega_nu"] = _neutrinos(header)
    cosmology = resolve_cosmology(url, stated, hints, notes)
    said = None if hints.redshift is not None else read_redshift(url, header)
    redshift = resolve_redshift(url, said, hints, notes)
    units = resolve_units(url, header, hints, cosmology.Omega_m, table, counts)
    blocks: dict[str, dict[str, Block]] = {}
    parts, left = list[Part](), list[Part]()
    for kind, count in enumerate(counts):
        if not count:
            continue
        group = join(url, str(kind))
        mass = table[kind] * units.mass if kind < len(table) and table[kind] > 0.0 else None
        if hints.wants(kind):
            found = {name: read_block(join(group, name.capitalize())) for name in _COLUMNS}
            if has_file(join(group, "Mass"), "header"):
                found["mass"] = read_block(join(group, "Mass"))
            _check_rows(group, found, count)
        else:
            found = _left_masses(group, count)
        blocks[str(kind)] = found
        part = part_of(url, str(kind), kind, count, mass, "Mass" if "mass" in found else None)
        (parts if hints.wants(kind) else left).append(part)
    convention = _velocity_convention(url, header, fastpm, hints)
    stated["E"] = number_of(header, "HubbleE")
    if stated["E"] is None and hints.length_unit is None:
        stated["E"] = _hubble_ratio(header, units, redshift)
    stated["f"] = first_of(header, "GrowthRate") if fastpm else None
    # FastPM's masses are those of the full set of particles, also in a sub-sampled output.
    said = first_of(header, "ParticleFraction")
    fraction = said if said is not None and 0.0 < said < 1.0 else 1.0
    files = [
        block.file(index)
        for part in parts
        for block in blocks[part.group].values()
        for index, rows in enumerate(block.rows)
        if rows
    ]
    return build_snapshot(
        SnapshotFacts(
            url=url,
            format="FastPM bigfile" if fastpm else "MP-Gadget bigfile",
            files=files,
            box_size=resolve_box(url, header, units.length, hints),
            redshift=redshift,
            cosmology=cosmology,
            parts=parts,
            reader=BigfileReader(blocks),
            conversion=units.conversion(redshift, VELOCITY_POWER[convention], wrap=hints.wrap),
            counts={str(kind): count for kind, count in enumerate(counts) if count},
            conventions=units.describe(convention),
            header=header,
            notes=notes,
            said=stated,
            fraction=fraction,
            left=left,
            left_fractions={part.group: fraction for part in left},
        ),
        hints,
    )


def _neutrinos(header: Mapping[str, Any]) -> float | None:
    """Return the density of massive neutrinos, which FastPM leaves out of ``Omega_cdm``."""
    matter, cold = first_of(header, "OmegaM"), first_of(header, "Omega_cdm")
    if matter is None or cold is None:
        return None
    return matter - cold if matter - cold > 1e-6 else 0.0


def _hubble_ratio(header: Mapping[str, Any], units: GadgetUnits, redshift: float) -> float | None:
    """Return H / H0 from the header's ratio of displacement to stored velocity.

    Notes
    -----
    ``RSDFactor`` is 1 / (a H) in the file's units, and 1 / (a^2 H) where the velocities are a v
    (MP-Gadget, ``petaio.c``).
    """
    factor, flag = first_of(header, "RSDFactor"), header.get("UsePeculiarVelocity")
    if factor is None or flag not in (0, 1):
        return None
    a = 1.0 / (1.0 + redshift)
    rate = units.velocity / (units.length * factor) / (a if flag == 1 else a**2)
    return float(rate / H0_KM_S_PER_MPC_H)


def _left_masses(group: str, count: int) -> dict[str, Block]:
    """Return the masses of a type that is not read; empty when they are missing or damaged."""
    try:
        if not has_file(join(group, "Mass"), "header"):
            return {}
        block = read_block(join(group, "Mass"))
    except (DataError, StorageError):
        return {}
    return {"mass": block} if block.width == 1 and sum(block.rows) == count else {}


def _check_rows(group: str, columns: Mapping[str, Block], count: int) -> None:
    for name, block in columns.items():
        width = 1 if name == "mass" else 3
        if sum(block.rows) != count or block.width != width:
            raise DataError(
                "the rows of a column do not match the counts in the header",
                where=block.url,
                value=f"{sum(block.rows)} rows of {block.width}",
                limit=f"{count} rows of {width}",
                remedy=f"copy {group} again",
            )


def _velocity_convention(
    url: str, header: Mapping[str, Any], fastpm: bool, hints: SnapshotHints
) -> VelocityConvention:
    """Return the velocity convention.

    Notes
    -----
    MP-Gadget with ``UsePeculiarVelocity`` 0 writes ``a v`` in snapshots, not Gadget's
    ``v / sqrt(a)``, which it writes only in initial conditions (MP-Gadget, ``petaio.c``).
    """
    if hints.velocity is not None:
        return hints.velocity
    flag = header.get("UsePeculiarVelocity")
    if flag == 1 or (flag is None and fastpm):
        return "peculiar"
    if flag == 0 and "RSDFactor" in header:
        return "canonical"
    if flag == 0 and "UnitaryAmplitude" in header:
        return "gadget"
    raise DataError(
        "the header does not say the velocity convention",
        where=url,
        value=f"UsePeculiarVelocity {flag}",
        limit="1, or 0 with an RSDFactor (a snapshot) or a UnitaryAmplitude (initial conditions)",
        remedy="give the hint velocity: --set snapshot.velocity=peculiar, canonical (a v) "
        "or gadget (v / sqrt(a))",
    )
