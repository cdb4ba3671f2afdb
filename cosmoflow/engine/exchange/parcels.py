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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

_MAGIC: Final = b"cosmopt1"
_ENTRY: Final = struct.Struct("<QQI4x")
"""Offset, length and checksum of a part; the length of an absent part is 0."""
_FOOTER: Final = struct.Struct("<8sQQQI4x")
"""Magic bytes, number of parts, offset of the value, its length and its checksum."""
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
    parts : sequence
        Arrays, tuples of arrays and None, or None.
    value : object
        Anything small that can be pickled.

    Raises
    ------
    OSError
        The disk is full, or fails. Nothing is left then.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    index = bytearray()
    try:
        with partial.open("wb", buffering=1 << 20) as file:
            for part in parts:
                index += _ENTRY.pack(0, 0, 0) if part is None else _write_part(file, part)
            pickled = pickle.dumps(value, protocol=5)
            footer = _FOOTER.pack(
                _MAGIC, len(parts), file.tell(), len(pickled), zlib.crc32(pickled)
            )
            file.write(pickled + bytes(index) + footer)
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _write_part(file: BinaryIO, part: Any) -> bytes:
    """Append a part; return its entry in the index."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(part, protocol=5, buffer_callback=buffers.append)
    raw = [memoryview(buffer.raw()) for buffer in buffers]
    sizes = np.array([view.nbytes for view in raw], "<u8").tobytes()
    begin, checksum = file.tell(), 0
    written = 0
    head = memoryview(_HEAD.pack(len(pickled), len(raw)) + sizes + pickled)
    for piece in (head, *raw):
        for block in (piece, memoryview(bytes(-len(piece) % _ALIGNMENT))):
            file.write(block)
            checksum = zlib.crc32(block, checksum)
            written += len(block)
    return _ENTRY.pack(begin, written, checksum)


def find_part(path: Path, part: int) -> tuple[int, int, int]:
    """Return the offset, the bytes and the checksum of a part; 0 bytes if it is absent.

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


def _find(file: Any, part: int) -> tuple[int, int, int]:
    count, value, length, _ = _read_footer(file)
    if part >= count:
        raise DamagedParcelError(f"there are {count} parts, not {part + 1}")
    entry = os.pread(file.fileno(), _ENTRY.size, value + length + part * _ENTRY.size)
    offset, size, checksum = _ENTRY.unpack(entry)
    return offset, size, checksum


def read_block(path: Path, part: int) -> NDArray[np.uint8] | None:
    """Return the bytes of a part as they are in the file, checked; None if the part is absent.

    Raises
    ------
    DamagedParcelError
        The file is missing, or the part is not as it was written.
    """
    with _reading(path) as file:
        offset, size, checksum = _find(file, part)
        if not size:
            return None
        block = _map(file, offset, size) if size >= _MAPPED else _read(file, offset, size)
    if zlib.crc32(block.data) != checksum:
        raise DamagedParcelError("a checksum is wrong")
    return block


def _read_footer(file: Any) -> tuple[int, int, int, int]:
    """Return the number of parts, and the value's offset, length and checksum."""
    end = os.fstat(file.fileno()).st_size
    magic, *found = _FOOTER.unpack(os.pread(file.fileno(), _FOOTER.size, end - _FOOTER.size))
    if magic != _MAGIC:
        raise DamagedParcelError("the footer is damaged")
    return found[0], found[1], found[2], found[3]


def _read(file: Any, offset: int, size: int) -> NDArray[np.uint8]:
    block = np.empty(size, np.uint8)
    if os.preadv(file.fileno(), [block.data], offset) != size:
        raise DamagedParcelError("the file ends early")
    return block


def _map(file: Any, offset: int, size: int) -> NDArray[np.uint8]:
    begin = offset % mmap.ALLOCATIONGRANULARITY
    mapped = mmap.mmap(file.fileno(), begin + size, access=mmap.ACCESS_READ, offset=offset - begin)
    return np.frombuffer(mapped, np.uint8, size, begin)


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
        _, offset, length, checksum = _read_footer(file)
        pickled = os.pread(file.fileno(), length, offset)
    if zlib.crc32(pickled) != checksum:
        raise DamagedParcelError("a checksum is wrong")
    return pickle.loads(pickled)
