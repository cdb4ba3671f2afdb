"""Gadget's binary snapshots, formats 1 and 2: Fortran records, in either byte order."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.errors import DataError
from cosmoflow.storage.snapshots.facts import FileFacts, TypeFacts
from cosmoflow.storage.snapshots.files import SourceFile, open_file, read_exactly
from cosmoflow.storage.snapshots.gadget import open_gadget
from cosmoflow.storage.snapshots.parts import gather_files
from cosmoflow.storage.snapshots.source import Part, Snapshot

HEADER_BYTES: Final = 256
LABEL_BYTES: Final = 8
_TYPES: Final = 6
_HEADER: Final = "6i6ddd2i6I2i4d2i6I"
_FIRST_FORMAT: Final = ("HEAD", "POS", "VEL", "ID", "MASS")
"""Order of the blocks of format 1, which have no names."""
_BLOCKS: Final = {"position": "POS", "velocity": "VEL", "mass": "MASS"}


@dataclass(frozen=True, slots=True)
class Layout:
    """Locations of the blocks of one file, and its number of particles of each type."""

    order: str
    counts: tuple[int, ...]
    table: tuple[float, ...]
    blocks: Mapping[str, tuple[int, int]]
    """Offset of a block's first number, and its record's length modulo 2^32."""

    def rows_before(self, name: str, kind: int) -> int:
        """Return the number of rows of a block before those of a particle type."""
        return sum(
            count
            for index, count in enumerate(self.counts[:kind])
            if name != "MASS" or not self.table[index] > 0.0
        )


def byte_order(start: bytes) -> str | None:
    """Return the byte order of a Gadget file from its first four bytes; None for other files."""
    for order in "<>":
        if struct.unpack(f"{order}i", start[:4])[0] in (HEADER_BYTES, LABEL_BYTES):
            return order
    return None


def read_layout(file: SourceFile) -> tuple[Layout, FileFacts]:
    """Walk the records of a file, reading its header but no particles.

    Raises
    ------
    DataError
        The file is truncated or damaged.
    """
    with open_file(file.url) as stream:
        start = read_exactly(stream, 4, file.url)
        order = byte_order(start) or "<"
        labelled = struct.unpack(f"{order}i", start)[0] == LABEL_BYTES
        stream.seek(0)
        header = _read_header(stream, order, labelled, file)
        counts, table = header["NumPart_ThisFile"], header["MassTable"]
        blocks: dict[str, tuple[int, int]] = {}
        at = stream.tell()
        for name in _FIRST_FORMAT[1:] * (1 if not labelled else 1_000):
            if at >= file.size or {"POS", "VEL", "MASS"} <= blocks.keys():
                break
            stream.seek(at)
            label = name
            if labelled:
                label = read_exactly(stream, 16, file.url)[4:8].decode("latin-1").strip()
            (size,) = struct.unpack(f"{order}I", read_exactly(stream, 4, file.url))
            blocks[label] = stream.tell(), size
            size = _true_size(label, size, counts, table)
            at = stream.tell() + size
            _check_end(stream, order, at, size, f"{file.url}, {label}", file)
            at += 4
    layout = Layout(order, tuple(counts), tuple(table), blocks)
    for name in ("POS", "VEL"):
        if name not in blocks and sum(counts):
            raise DataError("the file lacks a block", where=file.url, limit=name)
    kinds = {
        kind: TypeFacts(count, "MASS" if "MASS" in blocks and not table[kind] > 0.0 else None)
        for kind, count in enumerate(counts)
        if count
    }
    return layout, FileFacts(file, {"Header": header}, kinds)


def _read_header(stream: IO[bytes], order: str, labelled: bool, file: SourceFile) -> dict[str, Any]:
    """Return the header under its names in HDF5."""
    content = read_exactly(stream, 16 * labelled + HEADER_BYTES + 8, file.url)[16 * labelled :]
    (size,) = struct.unpack(f"{order}i", content[:4])
    if size != HEADER_BYTES or content[:4] != content[-4:]:
        raise DataError(
            "this is not a Gadget snapshot, or it is damaged",
            where=file.url,
            value=f"a header of {size} bytes",
            limit=HEADER_BYTES,
        )
    values = struct.unpack_from(f"{order}{_HEADER}", content, 4)
    return {
        "NumPart_ThisFile": list(values[0:6]),
        "MassTable": list(values[6:12]),
        "Time": values[12],
        "Redshift": values[13],
        "NumPart_Total": list(values[16:22]),
        "NumFilesPerSnapshot": values[23],
        "BoxSize": values[24],
        "Omega0": values[25],
        "OmegaLambda": values[26],
        "HubbleParam": values[27],
        "NumPart_Total_HighWord": list(values[30:36]),
    }


def _true_size(name: str, size: int, counts: Sequence[int], table: Sequence[float]) -> int:
    """Return a record's length, also when it exceeds 32 bits."""
    rows, width = sum(counts), 3
    if name == "MASS":
        rows = sum(n for n, mass in zip(counts, table, strict=True) if not mass > 0.0)
    if name not in ("POS", "VEL"):
        width = 1
    for itemsize in (4, 8):
        whole = rows * width * itemsize
        if whole % (1 << 32) == size:
            return whole
    return size


def _check_end(
    stream: IO[bytes], order: str, at: int, size: int, where: str, file: SourceFile
) -> None:
    """Refuse a record that is truncated or whose two length marks differ."""
    stream.seek(at)
    mark = stream.read(4)
    if len(mark) < 4 or struct.unpack(f"{order}I", mark)[0] != size % (1 << 32):
        raise DataError(
            "the file is truncated or damaged",
            where=where,
            value=f"{file.size} bytes in the file",
            limit=f"a block of {size} bytes up to byte {at}",
            remedy="copy it again",
        )


@dataclass(frozen=True, slots=True)
class BinaryReader:
    """Reads rows of the blocks of each file."""

    layouts: Mapping[str, Layout]

    def read(self, part: Part, start: int, stop: int, columns: Sequence[str]) -> list[NDArray[Any]]:
        """Return columns of the particles ``start`` to ``stop`` of a part, in the file's units."""
        layout = self.layouts[part.file]
        kind = int(part.group.removeprefix("PartType"))
        with open_file(part.file) as stream:
            return [
                self._rows(stream, layout, _BLOCKS[name], kind, start, stop, part)
                for name in columns
            ]

    @staticmethod
    def _rows(
        stream: IO[bytes], layout: Layout, name: str, kind: int, start: int, stop: int, part: Part
    ) -> NDArray[Any]:
        offset, size = layout.blocks[name]
        width = 1 if name == "MASS" else 3
        rows = layout.rows_before(name, _TYPES)
        whole = _true_size(name, size, layout.counts, layout.table)
        if whole not in (4 * rows * width, 8 * rows * width):
            raise DataError(
                "the size of a block does not match its particles",
                where=f"{part.file}, {name}",
                value=f"{whole} bytes",
                limit=f"{4 * rows * width} or {8 * rows * width} bytes",
            )
        dtype = np.dtype(f"{layout.order}f{whole // (rows * width)}")
        row = width * dtype.itemsize
        stream.seek(offset + (layout.rows_before(name, kind) + start) * row)
        content = read_exactly(stream, (stop - start) * row, f"{part.file}, {name}")
        values = np.frombuffer(content, dtype)
        return values.reshape(-1, width) if width > 1 else values


def open_gadget_binary(url: str, found: Sequence[SourceFile], hints: SnapshotHints) -> Snapshot:
    """Open Gadget's binary files as a snapshot."""
    layouts: dict[str, Layout] = {}

    def inspect(file: SourceFile) -> FileFacts:
        layouts[file.url], facts = read_layout(file)
        return facts

    facts = gather_files(url, found, inspect)
    return open_gadget(url, facts, hints, BinaryReader(layouts), "Gadget binary")
