"""Shards read and written in few requests.

zarr's sharding codec asks for one chunk after the other, and each of them is a request. The codec
of :func:`read_in_pieces` asks for all chunks that a read needs at once: chunks that lie together in
the shard are one request, and requests of one shard run side by side. The codec of
:func:`written_whole` writes chunks in C order, so that chunks of a bar that is narrow along x lie
together (zarr's own order is Morton's), and does not look for a shard that it replaces.

Both read and write what zarr reads and writes: the format allows any order of chunks in a shard.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from obstore.exceptions import PreconditionError
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.codecs import ShardingCodec
from zarr.codecs.sharding import ShardingCodecIndexLocation, _ShardIndex
from zarr.core.buffer import Buffer, BufferPrototype, NDBuffer
from zarr.core.chunk_grids import RegularChunkGrid
from zarr.core.indexing import get_indexer
from zarr.core.metadata import ArrayV3Metadata

from cosmoflow.storage.bucket_store import BucketStore

A = TypeVar("A")

GAP: Final = 256 << 10
"""Most bytes that are read in vain to save a request: 3 ms at the 80 MB/s of one connection, where
a request takes 10 to 30 ms. A chunk of 64^3 cells is larger, and is never read in vain."""

PIECE: Final = 32 << 20
"""Most bytes of a request for a part of a shard: 0.4 s at 80 MB/s. Larger parts are read in
several, which arrive side by side. A whole shard of twice as many bytes, 256^3 numbers, is one."""

_AT_ONCE: Final = 8
"""Requests of one read of a shard that run at the same time; zarr reads ten shards at once."""

_TRIES: Final = 3
"""Times that a shard is read if another process replaces it meanwhile."""

_KEPT: Final = 4096
"""Indices of shards that an opened store keeps: 4 MB for shards of 64 chunks. Chunks are requested
on the condition that the shard is still that of the index."""

Span = tuple[int, int]
"""First byte, and the byte after the last."""

Place = tuple[int, ...]
"""Indices of a chunk in its shard."""


def read_in_pieces(array: A) -> A:
    """Return an array of a bucket that reads its shards in few requests; others as they are."""
    store = getattr(array, "store", None)
    return _with_codec(array, _PiecewiseCodec) if isinstance(store, BucketStore) else array


def written_whole(array: A) -> A:
    """Return an array that writes whole shards, with their chunks in C order.

    Each write must cover all cells of the shards that it touches: shards that exist are replaced.
    """
    return _with_codec(array, _WholeCodec)


def _with_codec(array: A, kind: type[ShardingCodec]) -> A:
    found: Any = array
    metadata, inner = found.metadata, found.async_array
    if not isinstance(metadata, ArrayV3Metadata) or len(metadata.codecs) != 1:
        return array
    own = metadata.codecs[0]
    if not isinstance(own, ShardingCodec):
        return array
    codec = kind(
        chunk_shape=own.chunk_shape,
        codecs=own.codecs,
        index_codecs=own.index_codecs,
        index_location=own.index_location,
    )
    changed: Any = replace(metadata, codecs=[codec])  # type: ignore[arg-type]
    made: A = type(found)(type(inner)(changed, inner.store_path, inner.config))
    return made


def join_spans(spans: Iterable[Span]) -> list[Span]:
    """Return what to request to have some spans: near ones joined, up to :data:`PIECE`."""
    pieces: list[Span] = []
    for start, stop in sorted(spans):
        if pieces and start - pieces[-1][1] <= GAP and stop - pieces[-1][0] <= PIECE:
            pieces[-1] = pieces[-1][0], stop
        else:
            pieces.append((start, stop))
    return pieces


def is_read_whole(wanted: int, chunks: int, chunk_bytes: int) -> bool:
    """Return whether a shard is read in one request, which needs no index first.

    Parameters
    ----------
    wanted, chunks : int
        Number of chunks of the shard that are needed, and of all.
    chunk_bytes : int
        Bytes of a chunk before compression.
    """
    return (chunks - wanted) * chunk_bytes <= GAP and chunks * chunk_bytes <= 2 * PIECE


class _WholeCodec(ShardingCodec):
    """Writes whole shards, with their chunks in C order."""

    async def _encode_partial_single(
        self, byte_setter: Any, shard_array: NDBuffer, selection: Any, shard_spec: Any
    ) -> None:
        whole: Any = _Replaced(byte_setter)
        await super()._encode_partial_single(whole, shard_array, selection, shard_spec)

    async def _encode_shard_dict(
        self, map: Mapping[Place, Any], chunks_per_shard: Place, buffer_prototype: BufferPrototype
    ) -> Buffer | None:
        if self.index_location is not ShardingCodecIndexLocation.end:
            return await super()._encode_shard_dict(map, chunks_per_shard, buffer_prototype)
        index, parts, start = _ShardIndex.create_empty(chunks_per_shard), list[Buffer](), 0
        for place in itertools.product(*(range(count) for count in chunks_per_shard)):
            chunk = map.get(place)
            if chunk is not None and len(chunk):
                index.set_chunk_slice(place, slice(start, start + len(chunk)))
                parts.append(chunk)
                start += len(chunk)
        if not parts:
            return None
        parts.append(await self._encode_shard_index(index))
        return buffer_prototype.buffer.create_zero_length().combine(parts)


class _Replaced:
    """The place of a shard that is replaced; the chunks that are there are not read first."""

    def __init__(self, setter: Any) -> None:
        self.set, self.delete = setter.set, setter.delete

    async def get(self, prototype: BufferPrototype) -> None:
        """Return None: no chunk of the shard that is there is kept."""


class _PiecewiseCodec(ShardingCodec):
    """Reads shards in few requests."""

    async def _decode_partial_single(
        self, byte_getter: Any, selection: Any, shard_spec: Any
    ) -> NDBuffer | None:
        for left in reversed(range(_TRIES)):
            shard: Any = _Shard(self, byte_getter, selection, shard_spec)
            try:
                return await super()._decode_partial_single(shard, selection, shard_spec)
            except PreconditionError:
                # Another process has replaced the shard since its index was read.
                byte_getter.store.indices.pop(byte_getter.path, None)
                if not left:
                    raise
        return None

    async def _load_full_shard_maybe(
        self, byte_getter: Any, prototype: BufferPrototype, chunks_per_shard: Place
    ) -> Any:
        if isinstance(byte_getter, _Shard) and not byte_getter.whole:
            return await byte_getter.chunks(prototype)
        return await super()._load_full_shard_maybe(byte_getter, prototype, chunks_per_shard)


class _Shard:
    """One read of some chunks of a shard, which are requested together.

    It stands for the object of the shard: zarr asks it for the index, then for each chunk.

    Attributes
    ----------
    whole : bool
        Whether the object is read in one request.
    """

    def __init__(self, codec: ShardingCodec, getter: Any, selection: Any, spec: Any) -> None:
        self._codec, self._getter = codec, getter
        self._counts = codec._get_chunks_per_shard(spec)
        grid = RegularChunkGrid(chunk_shape=codec.chunk_shape)
        found = get_indexer(selection, shape=spec.shape, chunk_grid=grid)
        self._wanted = {chunk.chunk_coords for chunk in found}
        number = spec.dtype.to_native_dtype().itemsize
        self.whole = is_read_whole(
            len(self._wanted), math.prod(self._counts), math.prod(codec.chunk_shape) * number
        )
        self._object: Buffer | None = None
        self._spans: dict[Place, Span] | None = None
        self._pieces: list[tuple[Span, Buffer]] = []

    async def get(self, prototype: BufferPrototype, byte_range: Any = None) -> Buffer | None:
        """Return the object or a range of bytes; None if it does not exist."""
        if byte_range is None:
            found: Buffer | None = await self._getter.get(prototype)
            return found
        if self.whole:
            if self._object is None:
                self._object = await self._getter.get(prototype)
            return None if self._object is None else _cut(self._object, byte_range)
        if self._spans is None:
            return await self._begin(prototype)
        for (start, stop), piece in self._pieces:
            if start <= byte_range.start and byte_range.end <= stop:
                return piece[byte_range.start - start : byte_range.end - start]
        return None

    async def chunks(self, prototype: BufferPrototype) -> dict[Place, Buffer | None] | None:
        """Return all wanted chunks; None if the shard does not exist."""
        if await self._begin(prototype) is None:
            return None
        assert self._spans is not None
        return {
            place: await self.get(prototype, RangeByteRequest(*span))
            for place, span in self._spans.items()
        }

    async def _begin(self, prototype: BufferPrototype) -> Buffer | None:
        """Read the index, then the wanted chunks; return the index."""
        store, key = self._getter.store, self._getter.path
        size = self._codec._shard_index_size(self._counts)
        at_end = self._codec.index_location is ShardingCodecIndexLocation.end
        known = store.indices.get(key)
        if known is None:
            known = await store.get_span(key, {"suffix": size} if at_end else (0, size))
            if known is None:
                return None
            if known[1] is not None and len(store.indices) < _KEPT:
                store.indices[key] = known
        content, tag = known
        index = prototype.buffer.from_bytes(content)
        slices = await self._codec._decode_shard_index(index, self._counts)
        spans = {place: slices.get_chunk_slice(place) for place in self._wanted}
        self._spans = {place: span for place, span in spans.items() if span is not None}
        limit = asyncio.Semaphore(_AT_ONCE)

        async def read(span: Span) -> tuple[Span, Any]:
            async with limit:
                return span, await store.get_span(key, span, tag)

        for span, found in await asyncio.gather(*map(read, join_spans(self._spans.values()))):
            if found is not None:
                self._pieces.append((span, prototype.buffer.from_bytes(found[0])))
        return index


def _cut(content: Buffer, byte_range: Any) -> Buffer:
    """Return a range of an object in memory."""
    if isinstance(byte_range, SuffixByteRequest):
        return content[max(len(content) - byte_range.suffix, 0) :]
    return content[byte_range.start : byte_range.end]
