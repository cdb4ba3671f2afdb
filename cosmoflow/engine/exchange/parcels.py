"""Parcels: files with the parts that a task hands on, each with a checksum.

A parcel holds the parts one after the other, then a small value, then an index with an entry for
each part, then a footer. Buffers of arrays are aligned, so that a part of a mapped file is read in
place. A file is complete when it has its name: it is written under another one and then renamed.
"""

from __future__ import annotations

import mmap
import os
import pickle
import struct
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_MAGIC: Final = b"cosmopt1"
_ENTRY: Final = struct.Struct("<QQI4x")
"""Offset, length and checksum of a part; the length of an absent part is 0."""
_FOOTER: Final = struct.Struct("<8sQQQI4x")
"""Magic bytes, number of parts, offset of the value, its length and its checksum."""
FOOTER_BYTES: Final = _FOOTER.size
_HEAD: Final = struct.Struct("<II")
"""Bytes of the pickle at the front of a part, and number of the buffers that follow."""
_ALIGNMENT: Final = 64
_MAPPED: Final = 1 << 18
"""Bytes from which a part is mapped; smaller ones are read, which is faster."""


class DamagedParcelError(Exception):
    """A parcel is missing, incomplete or damaged."""


def write_parcel(path: Path, parts: Sequence[Any], value: Any = None) -> None:
    """Write a parcel.

    Parameters
    ----------
    path : Path
        The file, in an existing folder.
    parts, value
        See :func:`pack`.

    Raises
    ------
    OSError
        The disk is full, or fails. Nothing is left then.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb", buffering=1 << 20) as file:
            for block in pack(parts, value):
                file.write(block)
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def pack(parts: Iterable[Any], value: Any = None) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a parcel, block by block.

    Parameters
    ----------
    parts : iterable
        Arrays, tuples of arrays and None, or None.
    value : object
        Anything small that can be pickled.
    """
    index, count, offset = bytearray(), 0, 0
    for part in parts:
        size = checksum = 0
        for block in () if part is None else _pack_part(part):
            yield block
            checksum = zlib.crc32(block, checksum)
            size += len(block)
        index += _ENTRY.pack(offset, size, checksum)
        count += 1
        offset += size
    pickled = pickle.dumps(value, protocol=5)
    yield pickled
    yield bytes(index)
    yield _FOOTER.pack(_MAGIC, count, offset, len(pickled), zlib.crc32(pickled))


def _pack_part(part: Any) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a part, each array padded to the alignment."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(part, protocol=5, buffer_callback=buffers.append)
    raw = [memoryview(buffer.raw()) for buffer in buffers]
    sizes = np.array([view.nbytes for view in raw], "<u8").tobytes()
    head = memoryview(_HEAD.pack(len(pickled), len(raw)) + sizes + pickled)
    for piece in (head, *raw):
        yield piece
        yield bytes(-len(piece) % _ALIGNMENT)


class Entry(NamedTuple):
    """Offset, bytes and checksum of a part; 0 bytes if it is absent."""

    offset: int
    size: int
    checksum: int

    @classmethod
    def parse(cls, block: bytes) -> Entry:
        """Return an entry of an index from its bytes."""
        return cls(*_ENTRY.unpack(block))

    def check(self, block: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the bytes of the part, or raise DamagedParcelError."""
        if len(block) != self.size:
            raise DamagedParcelError("it ends early")
        if zlib.crc32(block.data) != self.checksum:
            raise DamagedParcelError("a checksum is wrong")
        return block


class Footer(NamedTuple):
    """Number of parts of a parcel, and offset, bytes and checksum of its value.

    The index follows the value.
    """

    parts: int
    value: int
    length: int
    checksum: int

    @classmethod
    def parse(cls, end: bytes) -> Footer:
        """Return the footer of a parcel that ends with these bytes."""
        if len(end) < FOOTER_BYTES:
            raise DamagedParcelError("it ends early")
        magic, *found = _FOOTER.unpack(end[-FOOTER_BYTES:])
        if magic != _MAGIC:
            raise DamagedParcelError("the footer is damaged")
        return cls(*found)

    def place(self, part: int) -> tuple[int, int]:
        """Return where the entry of a part begins and ends."""
        if part >= self.parts:
            raise DamagedParcelError(f"there are {self.parts} parts, not {part + 1}")
        begin = self.index_start + part * _ENTRY.size
        return begin, begin + _ENTRY.size

    @property
    def index_start(self) -> int:
        """Offset of the index."""
        return self.value + self.length

    @property
    def size(self) -> int:
        """Bytes of the whole parcel."""
        return self.index_start + self.parts * _ENTRY.size + FOOTER_BYTES

    def load(self, pickled: bytes) -> Any:
        """Return the value."""
        if zlib.crc32(pickled) != self.checksum:
            raise DamagedParcelError("a checksum is wrong")
        return pickle.loads(pickled)


def find_part(path: Path, part: int) -> Entry:
    """Return where a part is.

    Raises
    ------
    DamagedParcelError
        The file is missing, incomplete or damaged.
    """
    with _reading(path) as file:
        return _find(file, part)


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Open a parcel, and turn the errors of reading it into one."""
    try:
        with path.open("rb", buffering=0) as file:
            yield file
    except FileNotFoundError as error:
        raise DamagedParcelError("the file is missing") from error
    except (OSError, ValueError, struct.error) as error:
        raise DamagedParcelError(str(error)) from error


def _find(file: Any, part: int) -> Entry:
    begin, end = _read_footer(file).place(part)
    return Entry.parse(os.pread(file.fileno(), end - begin, begin))


def read_block(path: Path, part: int) -> NDArray[np.uint8] | None:
    """Return the bytes of a part as they are in the file, checked; None if the part is absent.

    Raises
    ------
    DamagedParcelError
        The file is missing, or the part is not as it was written.
    """
    with _reading(path) as file:
        entry = _find(file, part)
        if not entry.size:
            return None
        read = _map if entry.size >= _MAPPED else _read
        return entry.check(read(file, entry))


def _read_footer(file: Any) -> Footer:
    end = os.fstat(file.fileno()).st_size
    return Footer.parse(os.pread(file.fileno(), FOOTER_BYTES, end - FOOTER_BYTES))


def _read(file: Any, entry: Entry) -> NDArray[np.uint8]:
    block = np.empty(entry.size, np.uint8)
    return block[: os.preadv(file.fileno(), [block.data], entry.offset)]


def _map(file: Any, entry: Entry) -> NDArray[np.uint8]:
    begin = entry.offset % mmap.ALLOCATIONGRANULARITY
    mapped = mmap.mmap(
        file.fileno(), begin + entry.size, access=mmap.ACCESS_READ, offset=entry.offset - begin
    )
    return np.frombuffer(mapped, np.uint8, entry.size, begin)


def decode(block: NDArray[np.uint8]) -> Any:
    """Return the part that a block of bytes holds; its arrays are views of the block."""
    pickled, count = _HEAD.unpack_from(block.data)
    sizes = np.frombuffer(block, "<u8", count, _HEAD.size).tolist()
    start = _HEAD.size + 8 * count
    place = _aligned(start + pickled)
    buffers = []
    for size in sizes:
        buffers.append(block[place : place + size])
        place = _aligned(place + size)
    return pickle.loads(block[start : start + pickled].data, buffers=buffers)


def _aligned(size: int) -> int:
    return size + -size % _ALIGNMENT


def read_value(path: Path) -> Any:
    """Return the value of a parcel.

    Raises
    ------
    DamagedParcelError
    """
    with _reading(path) as file:
        footer = _read_footer(file)
        return footer.load(os.pread(file.fileno(), footer.length, footer.value))
