"""Sharded arrays of other programs in a bucket, read by zarr in few requests.

zarr's sharding codec asks for one chunk after the other, and each of them is a request. The codec
of :func:`read_in_pieces` asks for all chunks that a read needs at once.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeVar

from obstore.exceptions import PreconditionError
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.codecs import ShardingCodec
from zarr.codecs.sharding import ShardingCodecIndexLocation
from zarr.core.buffer import Buffer, BufferPrototype, NDBuffer
from zarr.core.chunk_grids import RegularChunkGrid
from zarr.core.indexing import get_indexer
from zarr.core.metadata import ArrayV3Metadata

from cosmoflow.storage.bucket_store import BucketStore
from cosmoflow.storage.chunks import Place, Span
from cosmoflow.storage.shards import TRIES, is_read_whole, read_index, read_spans

A = TypeVar("A")


def read_in_pieces(array: A) -> A:
    """Return an array of a bucket that reads its shards in few requests; others as they are."""
    found: Any = array
    if not isinstance(getattr(array, "store", None), BucketStore):
        return array
    metadata, inner = found.metadata, found.async_array
    if not isinstance(metadata, ArrayV3Metadata) or len(metadata.codecs) != 1:
        return array
    own = metadata.codecs[0]
    if not isinstance(own, ShardingCodec):
        return array
    codec = _PiecewiseCodec(
        chunk_shape=own.chunk_shape,
        codecs=own.codecs,
        index_codecs=own.index_codecs,
        index_location=own.index_location,
    )
    changed: Any = replace(metadata, codecs=[codec])  # type: ignore[arg-type]
    made: A = type(found)(type(inner)(changed, inner.store_path, inner.config))
    return made


class _PiecewiseCodec(ShardingCodec):
    """Reads shards in few requests."""

    async def _decode_partial_single(
        self, byte_getter: Any, selection: Any, shard_spec: Any
    ) -> NDBuffer | None:
        for left in reversed(range(TRIES)):
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
        known = await read_index(store, key, {"suffix": size} if at_end else (0, size))
        if known is None:
            return None
        content, tag = known
        index = prototype.buffer.from_bytes(content)
        slices = await self._codec._decode_shard_index(index, self._counts)
        spans = {place: slices.get_chunk_slice(place) for place in self._wanted}
        self._spans = {place: span for place, span in spans.items() if span is not None}
        for span, found in await read_spans(store, key, self._spans.values(), tag):
            self._pieces.append((span, prototype.buffer.from_bytes(found)))
        return index


def _cut(content: Buffer, byte_range: Any) -> Buffer:
    """Return a range of an object in memory."""
    if isinstance(byte_range, SuffixByteRequest):
        return content[max(len(content) - byte_range.suffix, 0) :]
    return content[byte_range.start : byte_range.end]
