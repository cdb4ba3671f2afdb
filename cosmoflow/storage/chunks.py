"""How the chunks of cosmoflow's own arrays are encoded, and the shards that hold them.

A shard is a file or an object: its chunks in C order, then the index, which has the first byte and
the number of bytes of each chunk. A chunk is compressed by Blosc, with a CRC-32C at its end. This
is the sharding codec of zarr 3, and zarr reads and writes the same bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import google_crc32c
import numpy as np
from numcodecs.blosc import Blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec
from zarr.codecs.bytes import Endian
from zarr.codecs.sharding import ShardingCodecIndexLocation
from zarr.core.metadata import ArrayV3Metadata

Bytes = NDArray[np.uint8]
Place = tuple[int, ...]
"""Indices of a chunk among those of its shard, or of a shard among those of its array."""
Span = tuple[int, int]
"""First byte, and the byte after the last."""
Range = tuple[int, int]
"""First index along an axis, and the index after the last."""

_ABSENT: Final = 2**64 - 1
"""Offset and length, in the index, of a chunk that is not stored."""
_ENTRY: Final = 16
_CRC: Final = 4
_HEADER: Final = 16
"""Bytes of the header of a Blosc buffer; bytes 4 to 8 are the size of what it holds."""

_SHUFFLES: Final = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a chunk that a read or a write touches.

    Parameters
    ----------
    place : tuple of int
        Place of the chunk in its shard.
    cells : tuple of slice
        Where the part is in the chunk.
    target : tuple of slice
        Where it is in the array that is read or written.
    """

    place: Place
    cells: tuple[slice, ...]
    target: tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """Layout of an array in shards of chunks.

    Parameters
    ----------
    shape, shard, chunk : tuple of int
        Shapes of the array, of a shard and of a chunk.
    dtype : numpy.dtype
        Type of the stored numbers, little-endian.
    fill : number
        Value of chunks that are not stored.
    blosc : Blosc
        Compressor of chunks.
    checked : bool
        Whether a chunk ends with its CRC-32C.
    """

    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: Any
    blosc: Blosc
    checked: bool

    @classmethod
    def of(cls, array: Any) -> ShardLayout | None:
        """Return the layout of a zarr array, or None if its codecs are not those of cosmoflow."""
        metadata = array.metadata
        if not isinstance(metadata, ArrayV3Metadata) or len(metadata.codecs) != 1:
            return None
        sharding = metadata.codecs[0]
        if (
            not isinstance(sharding, ShardingCodec)
            or sharding.index_location is not ShardingCodecIndexLocation.end
            or [type(codec) for codec in sharding.index_codecs] != [BytesCodec, Crc32cCodec]
            or [type(codec) for codec in sharding.codecs]
            not in ([BytesCodec, BloscCodec], [BytesCodec, BloscCodec, Crc32cCodec])
        ):
            return None
        plain, compressor, *rest = sharding.codecs
        dtype = np.dtype(array.dtype)
        assert isinstance(plain, BytesCodec)
        assert isinstance(compressor, BloscCodec)
        if dtype.kind not in "fiu" or (dtype.itemsize > 1 and plain.endian is not Endian.little):
            return None
        blosc = Blosc(
            cname=compressor.cname.value,
            clevel=compressor.clevel,
            shuffle=_SHUFFLES[compressor.shuffle.value],
            blocksize=compressor.blocksize,
            typesize=compressor.typesize or dtype.itemsize,
        )
        return cls(
            array.shape,
            array.shards,
            sharding.chunk_shape,
            dtype.newbyteorder("<"),
            array.fill_value,
            blosc,
            bool(rest),
        )

    @property
    def counts(self) -> tuple[int, ...]:
        """Chunks of a shard along each axis."""
        return tuple(whole // part for whole, part in zip(self.shard, self.chunk, strict=True))

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        return math.prod(self.chunk) * self.dtype.itemsize

    @property
    def index_bytes(self) -> int:
        """Bytes of the index at the end of a shard."""
        return math.prod(self.counts) * _ENTRY + _CRC

    def shards(self, ranges: Sequence[Range]) -> Iterator[tuple[Place, list[Part]]]:
        """Yield the shards that some cells lie in, in C order, each with its parts in C order.

        Parameters
        ----------
        ranges : sequence of (int, int)
            The cells along each axis, inside the array.
        """
        axes = [
            list(_cut_axis(*found, shard, chunk))
            for found, shard, chunk in zip(ranges, self.shard, self.chunk, strict=True)
        ]
        for shard in itertools.product(*axes):
            parts = [
                Part(
                    tuple(index for index, _, _ in piece),
                    tuple(cells for _, cells, _ in piece),
                    tuple(target for _, _, target in piece),
                )
                for piece in itertools.product(*(pieces for _, pieces in shard))
            ]
            yield tuple(index for index, _ in shard), parts

    def decode_index(self, content: Any) -> NDArray[np.uint64]:
        """Return the offset and the length of each chunk, shape ``(*counts, 2)``.

        Raises
        ------
        ValueError
            The index is damaged.
        """
        index = np.frombuffer(content, np.uint8)
        if len(index) != self.index_bytes:
            raise ValueError(f"a shard ends within its index of {self.index_bytes} bytes")
        return _checked(index, "index").view("<u8").reshape(*self.counts, 2)

    def encode_index(self, spans: Sequence[tuple[Place, Span]]) -> bytes:
        """Return the index of a shard that stores some chunks."""
        index = np.full((*self.counts, 2), _ABSENT, "<u8")
        for place, (start, stop) in spans:
            index[place] = start, stop - start
        content = index.tobytes()
        return content + _checksum(np.frombuffer(content, np.uint8))

    def decode(self, content: Bytes, out: NDArray[Any]) -> None:
        """Decode a chunk.

        Parameters
        ----------
        content : (bytes,) uint8
            The stored chunk.
        out : ndarray
            Where the numbers go: a contiguous array of the shape of a chunk.

        Raises
        ------
        ValueError, RuntimeError
            The chunk is damaged.
        """
        if self.checked:
            content = _checked(content, "chunk")
        held = int.from_bytes(content[4:8].tobytes(), "little")
        if len(content) < _HEADER or held != out.nbytes:
            raise ValueError(f"a chunk holds {held} bytes, not {out.nbytes}")
        self.blosc.decode(content, out)

    def encode(self, values: NDArray[Any]) -> tuple[bytes, bytes]:
        """Return an encoded chunk and the checksum that follows it.

        Parameters
        ----------
        values : ndarray
            Numbers of a chunk. Where it is smaller than a chunk, it lies at the edge of the array,
            and the rest of the chunk is filled.
        """
        if values.shape != self.chunk:
            whole = np.full(self.chunk, self.fill, self.dtype)
            whole[tuple(slice(0, length) for length in values.shape)] = values
            values = whole
        content: bytes = self.blosc.encode(np.ascontiguousarray(values, self.dtype))
        if not self.checked:
            return content, b""
        return content, _checksum(np.frombuffer(content, np.uint8))


def span_of(index: NDArray[np.uint64], place: Place) -> Span | None:
    """Return the bytes of a chunk in its shard; None if the chunk is not stored."""
    offset, length = index[place].tolist()
    return None if offset == _ABSENT else (offset, offset + length)


def _cut_axis(
    start: int, stop: int, shard: int, chunk: int
) -> Iterator[tuple[int, list[tuple[int, slice, slice]]]]:
    """Cut a range of an axis at shards and chunks.

    Yields
    ------
    int, list
        Index of a shard; of each of its chunks the index, the cells in it and those in the range.
    """
    for one in range(start // shard, -(-stop // shard)):
        low, high = max(start, one * shard), min(stop, (one + 1) * shard)
        pieces = []
        for number in range(low // chunk, -(-high // chunk)):
            first, last = max(low, number * chunk), min(high, (number + 1) * chunk)
            pieces.append(
                (
                    number - one * (shard // chunk),
                    slice(first - number * chunk, last - number * chunk),
                    slice(first - start, last - start),
                )
            )
        yield one, pieces


def _checksum(content: Bytes) -> bytes:
    """Return the CRC-32C as it is stored."""
    return int(google_crc32c.value(content)).to_bytes(_CRC, "little")


def _checked(content: Bytes, what: str) -> Bytes:
    """Return content without the checksum at its end, which must be right."""
    inner, stored = content[:-_CRC], content[-_CRC:].tobytes()
    if _checksum(inner) != stored:
        raise ValueError(f"the checksum of a {what} is wrong")
    return inner
