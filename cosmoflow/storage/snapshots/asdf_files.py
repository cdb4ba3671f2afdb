"""Read rows of arrays in ASDF files: a YAML tree, then binary blocks, some of them compressed.

The asdf library is not used because it unpacks whole columns, needs a plug-in for AbacusSummit's
Blosc blocks, and does not read from buckets.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final

import numpy as np
import yaml
from numcodecs import blosc
from numpy.typing import NDArray

from cosmoflow.errors import DataError
from cosmoflow.storage.snapshots.files import SourceFile, open_file, read_exactly

MAGIC: Final = b"#ASDF"
_BLOCK_MAGIC: Final = b"\xd3BLK"
# Magic, header size; flags, compression, bytes reserved, used and unpacked, and a checksum.
_BLOCK_SIZE: Final = struct.Struct(">4sH")
_BLOCK_HEADER: Final = struct.Struct(">I4sQQQ16s")
_STREAMED: Final = 1
_FRAME: Final = struct.Struct(">I")
"""Length of a Blosc frame, stored before it."""
_BLOSC_HEADER: Final = struct.Struct("<4xI8x")
_TREE_END: Final = b"\n..."
_TREE_LIMIT: Final = 1 << 26
_GULP: Final = 1 << 20
_RAW, _BLOSC, _ZLIB = "", "blsc", "zlib"


@dataclass(frozen=True, slots=True)
class Block:
    """A binary block: offset, bytes packed and unpacked, and compression."""

    start: int
    used: int
    unpacked: int
    compression: str


@dataclass(frozen=True, slots=True)
class AsdfArray:
    """An array of an ASDF file that can be read by rows."""

    url: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    block: Block

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.dtype(self.dtype).itemsize) * math.prod(self.shape[1:])

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows, unpacking only the frames that hold them if the block has frames.

        Raises
        ------
        DataError
            The block is damaged.
        """
        first = self.offset + start * self.row_bytes
        size = (stop - start) * self.row_bytes
        with open_file(self.url) as stream:
            content = self._bytes(stream, first, size)
        return np.frombuffer(content, self.dtype).reshape(-1, *self.shape[1:])

    def _bytes(self, stream: IO[bytes], first: int, size: int) -> bytes:
        where = f"{self.url}, {self.name}"
        stream.seek(self.block.start)
        if self.block.compression == _RAW:
            stream.seek(first, 1)
            return read_exactly(stream, size, where)
        unpack = _blosc_pieces if self.block.compression == _BLOSC else _zlib_pieces
        content = bytearray()
        for at, piece in unpack(stream, self.block, first, where):
            content += piece[max(0, first - at) : max(0, first + size - at)]
            if at + len(piece) >= first + size:
                return bytes(content)
        raise DataError(
            "a compressed column ends early",
            where=where,
            value=f"{len(content)} bytes",
            limit=f"{size} bytes",
            remedy="copy the file again",
        )


def _blosc_pieces(
    stream: IO[bytes], block: Block, first: int, where: str
) -> Iterator[tuple[int, bytes]]:
    """Yield ``(offset, bytes)`` of the frames from the one that holds byte ``first``."""
    at, packed = 0, 0
    while packed < block.used:
        (length,) = _FRAME.unpack(read_exactly(stream, 4, where))
        head = read_exactly(stream, min(16, length), where)
        (size,) = _BLOSC_HEADER.unpack(head) if length >= 16 else (0,)
        packed += 4 + length
        if not 0 < size <= block.unpacked or packed > block.used:
            raise _damaged(where, f"a frame of {size} bytes in {length}")
        if at + size <= first:
            stream.seek(length - 16, 1)
        else:
            frame = head + read_exactly(stream, length - 16, where)
            try:
                yield at, blosc.decompress(frame)
            except (RuntimeError, ValueError) as error:
                raise _damaged(where, str(error)) from error
        at += size


def _zlib_pieces(
    stream: IO[bytes], block: Block, first: int, where: str
) -> Iterator[tuple[int, bytes]]:
    """Yield ``(offset, bytes)`` from the start of the block: a deflated stream has no index."""
    unpacker = zlib.decompressobj()
    at = 0
    for begin in range(0, block.used, _GULP):
        packed = read_exactly(stream, min(_GULP, block.used - begin), where)
        try:
            piece = unpacker.decompress(packed)
        except zlib.error as error:
            raise _damaged(where, str(error)) from error
        yield at, piece
        at += len(piece)


def _damaged(where: str, value: str) -> DataError:
    return DataError("the file is damaged", where=where, value=value, remedy="copy it again")


class _TreeLoader(yaml.SafeLoader):
    """Loader of ASDF trees that ignores tags, which add nothing to the content."""


def _untagged(loader: _TreeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)  # type: ignore[arg-type]


_TreeLoader.add_multi_constructor("", _untagged)


def read_tree(file: SourceFile) -> tuple[dict[str, Any], dict[str, AsdfArray]]:
    """Return the tree of a file, and the arrays under ``data``.

    Raises
    ------
    DataError
        The file is truncated or damaged, or its arrays cannot be read by rows.
    """
    with open_file(file.url) as stream:
        text = b""
        while (end := text.find(_TREE_END)) < 0:
            more = stream.read(_GULP)
            if not more or len(text) > _TREE_LIMIT:
                raise _damaged(file.url, "the tree has no end")
            text += more
        try:
            tree = yaml.load(text[:end], _TreeLoader)
        except yaml.YAMLError as error:
            raise _damaged(file.url, str(error).splitlines()[0]) from error
        # Padding may follow the tree.
        begin = text.find(_BLOCK_MAGIC, end)
        blocks = [] if begin < 0 else list(_blocks(stream, begin, file))
    data = tree.get("data") if isinstance(tree, dict) else None
    if not isinstance(data, dict):
        raise DataError(
            "this ASDF file holds no particles", where=file.url, limit="a section 'data'"
        )
    arrays = {
        name: _array(file.url, name, value, blocks)
        for name, value in data.items()
        if isinstance(value, dict) and "source" in value
    }
    return tree, arrays


def _blocks(stream: IO[bytes], begin: int, file: SourceFile) -> Iterator[Block]:
    at = begin
    while at + _BLOCK_SIZE.size <= file.size:
        stream.seek(at)
        magic, header_size = _BLOCK_SIZE.unpack(read_exactly(stream, _BLOCK_SIZE.size, file.url))
        if magic != _BLOCK_MAGIC:
            # An index of the blocks may follow the last one.
            return
        flags, packing, reserved, used, unpacked, _ = _BLOCK_HEADER.unpack(
            read_exactly(stream, _BLOCK_HEADER.size, file.url)
        )
        start = at + _BLOCK_SIZE.size + header_size
        if flags & _STREAMED:
            used = reserved = unpacked = file.size - start
        if start + used > file.size:
            raise DataError(
                "the file is truncated",
                where=file.url,
                value=f"{file.size} bytes",
                limit=f"at least {start + used} bytes",
                remedy="copy it again",
            )
        yield Block(start, used, unpacked, packing.decode("latin-1").strip("\0"))
        at = start + reserved


def _array(url: str, name: str, value: dict[str, Any], blocks: list[Block]) -> AsdfArray:
    """Return an array of the tree."""
    where = f"{url}, {name}"
    index = value["source"]
    if "strides" in value or not isinstance(index, int) or not -1 <= index < len(blocks):
        raise DataError(
            "the array cannot be read by rows",
            where=where,
            value=f"source {index}, strides {value.get('strides', 'none')}",
            limit="a contiguous array in a block of the file",
        )
    block = blocks[index]
    if block.compression not in (_RAW, _BLOSC, _ZLIB):
        raise DataError(
            "the compression of the array is not supported",
            where=where,
            value=block.compression,
            limit="none, blsc or zlib",
            remedy="rewrite it with the asdf package",
        )
    order = ">" if value.get("byteorder") == "big" else "<"
    try:
        dtype = np.dtype(value["datatype"]).newbyteorder(order).str
        shape = tuple(int(n) for n in value["shape"])
    except (TypeError, ValueError, KeyError) as error:
        raise _damaged(where, str(error)) from error
    array = AsdfArray(url, name, dtype, shape, int(value.get("offset", 0)), block)
    if array.offset + math.prod(shape) * np.dtype(dtype).itemsize > block.unpacked:
        raise _damaged(where, f"{shape} does not fit a block of {block.unpacked} bytes")
    return array
