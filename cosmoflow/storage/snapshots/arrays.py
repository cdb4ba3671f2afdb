"""Particles in NumPy's ``.npz`` files, read by rows without unpacking the whole file."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.storage.snapshots.building import build_snapshot, resolve_cosmology, resolve_redshift
from cosmoflow.storage.snapshots.conventions import VELOCITY_POWER, Conversion, hinted_length
from cosmoflow.storage.snapshots.expansion import read_expansion
from cosmoflow.storage.snapshots.facts import SnapshotFacts
from cosmoflow.storage.snapshots.files import SourceFile, open_file, read_exactly
from cosmoflow.storage.snapshots.source import Part, Snapshot
from cosmoflow.units import MASS

_NAMES: Final = {
    "position": ("position", "pos"),
    "velocity": ("velocity", "vel"),
    "mass": ("mass",),
}
_OTHER_MASSES: Final = ("masses", "m", "weight", "weights")
"""Other common names of masses, in lower case."""
_LOCAL_HEADER: Final = struct.Struct("<26xHH")
"""Header of a zip member: 26 bytes, then the lengths of its name and of its extra field."""
_GULP: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class Column:
    """An array in a zip file: type, shape, and location of its numbers."""

    member: str
    dtype: str
    shape: tuple[int, ...]
    header_bytes: int
    offset: int
    """Offset of the first number in the file; 0 when deflated."""
    checksum: int
    """CRC-32 of the whole member, as stored in the file."""


@dataclass(frozen=True, slots=True)
class NpzReader:
    """Reads rows of the arrays of an npz file."""

    columns: Mapping[str, Column]

    @property
    def random_access(self) -> bool:
        """Whether rows are read without unpacking all rows before them."""
        return all(column.offset for column in self.columns.values())

    def read(self, part: Part, start: int, stop: int, columns: Sequence[str]) -> list[NDArray[Any]]:
        """Return columns of the particles ``start`` to ``stop``, in the file's units."""
        with open_file(part.file) as stream:
            return [_rows(stream, self.columns[name], start, stop, part.file) for name in columns]


def _rows(stream: IO[bytes], column: Column, start: int, stop: int, url: str) -> NDArray[Any]:
    row = int(np.dtype(column.dtype).itemsize) * math.prod(column.shape[1:])
    where = f"{url}, {column.member}"
    if column.offset:
        stream.seek(column.offset + start * row)
        content = read_exactly(stream, (stop - start) * row, where)
    else:
        try:
            with zipfile.ZipFile(stream) as archive, archive.open(column.member) as member:
                # A deflated member has no index: the bytes before are unpacked and dropped.
                ahead = column.header_bytes + start * row
                while ahead > 0:
                    ahead -= len(read_exactly(member, min(ahead, _GULP), where))
                content = read_exactly(member, (stop - start) * row, where)
        except (zipfile.BadZipFile, EOFError, OSError, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
            raise DataError("the file is damaged", where=where, value=str(error)) from error
    return np.frombuffer(content, column.dtype).reshape(-1, *column.shape[1:])


def _columns(file: SourceFile) -> tuple[dict[str, Column], dict[str, float]]:
    """Return the arrays and the scalars of an npz file."""
    columns, numbers = {}, {}
    with open_file(file.url) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                for info in archive.infolist():
                    name = info.filename.removesuffix(".npy")
                    with archive.open(info) as member:
                        shape, fortran, dtype = _array_header(member)
                        _check_array(f"{file.url}, {name}", fortran, dtype)
                        if math.prod(shape) == 1 and dtype.kind in "fiu":
                            content = read_exactly(member, dtype.itemsize, file.url)
                            numbers[name] = float(np.frombuffer(content, dtype)[0])
                            continue
                        header_bytes = member.tell()
                    offset = 0
                    if info.compress_type == zipfile.ZIP_STORED:
                        stream.seek(info.header_offset)
                        lengths = _LOCAL_HEADER.unpack(read_exactly(stream, 30, file.url))
                        offset = info.header_offset + 30 + sum(lengths) + header_bytes
                    columns[name] = Column(
                        info.filename, dtype.str, shape, header_bytes, offset, info.CRC
                    )
        except (zipfile.BadZipFile, EOFError, ValueError) as error:
            raise DataError(
                "the file is truncated or is not an npz file", where=file.url, value=str(error)
            ) from error
    return columns, numbers


def _array_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(member)
    return tuple(shape), bool(fortran), dtype


def _check_array(where: str, fortran: bool, dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise DataError("the array holds Python objects", where=where, value=str(dtype))
    if fortran:
        raise DataError(
            "the array is stored column by column",
            where=where,
            limit="C order",
            remedy="np.savez(..., position=np.ascontiguousarray(position))",
        )


def open_npz(url: str, files: Sequence[SourceFile], hints: SnapshotHints) -> Snapshot:
    """Open an npz file as a snapshot: ``position``, ``velocity``, optionally ``mass``.

    Lengths are Mpc/h and velocities peculiar km/s, unless hints say otherwise; the numbers
    ``box_size``, ``redshift``, ``h``, ``Omega_m`` and so on come from the file or from hints.
    """
    if len(files) != 1:
        raise DataError("an npz snapshot is a single file", where=url, value=f"{len(files)} files")
    notes: list[str] = []
    columns, numbers = _columns(files[0])
    found = {
        role: next((columns[name] for name in names if name in columns), None)
        for role, names in _NAMES.items()
    }
    used = {role: column for role, column in found.items() if column is not None}
    if "position" not in used or "velocity" not in used:
        raise DataError(
            "the file has no positions and velocities",
            where=url,
            value=", ".join(columns) or "no arrays",
            limit="position and velocity, (n, 3)",
        )
    others = [name for name in columns if name.lower() in _OTHER_MASSES]
    if "mass" not in used and others:
        raise DataError(
            "the masses have an unexpected name",
            where=url,
            value=", ".join(others),
            limit="mass",
            remedy="numpy.savez(..., mass=...)",
        )
    count = used["position"].shape[0]
    for role, column in used.items():
        shape, where = (count,) if role == "mass" else (count, 3), f"{url}, {column.member}"
        if column.shape != shape:
            raise DataError(
                "an array has the wrong shape", where=where, value=column.shape, limit=shape
            )
        if np.dtype(column.dtype).kind not in "fiu":
            raise DataError(
                "an array does not hold real numbers",
                where=where,
                value=str(np.dtype(column.dtype)),
                limit="floating point or integers",
            )
    own = {name: numbers.get(name) for name in CosmologyConfig.model_fields}
    header = {**own, **read_expansion(numbers)}
    cosmology = resolve_cosmology(url, header, hints, notes)
    redshift = resolve_redshift(url, numbers.get("redshift"), hints, notes)
    length = hinted_length(hints, cosmology.h) or 1.0
    box_size = hints.box_size or numbers.get("box_size", 0.0) * length
    if not box_size > 0.0:
        raise ConfigError(
            "the file does not say the size of the box",
            where=url,
            remedy="store a number box_size beside the arrays, or give the hint "
            "box_size, in Mpc/h: --set snapshot.box_size=500",
        )
    convention = hints.velocity or "peculiar"
    each = numbers.get("particle_mass")
    return build_snapshot(
        SnapshotFacts(
            url=url,
            format="npz",
            files=files,
            box_size=box_size,
            redshift=redshift,
            cosmology=cosmology,
            parts=[
                Part(
                    files[0].url,
                    "arrays",
                    count,
                    None if "mass" in used else each,
                    "mass" if "mass" in used else None,
                )
            ],
            reader=NpzReader(used),
            conversion=Conversion(
                length, (1.0 + redshift) ** -VELOCITY_POWER[convention], 1.0, wrap=hints.wrap
            ),
            counts={"particles": count},
            conventions={
                "length": f"{length:g} Mpc/h",
                "length_from": "hint" if hints.length_unit is not None else "npz: Mpc/h",
                "velocity": convention,
            },
            header={
                **numbers,
                "checksums": [column and column.checksum for column in found.values()],
            },
            notes=notes,
            said=header,
            mass_unit=None if "mass" in used else MASS,
        ),
        hints,
    )
