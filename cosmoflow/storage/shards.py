"""Shards of a bucket, read in few requests.

All chunks that a read needs are asked for at once: chunks that lie together in the shard are one
request, and requests of one shard run side by side.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Iterable
from typing import Any, Final

import numpy as np
from obstore.exceptions import PreconditionError
from zarr.core.buffer import default_buffer_prototype

from cosmoflow.storage.bucket_store import BucketStore
from cosmoflow.storage.chunks import Bytes, Place, ShardLayout, Span, span_of

GAP: Final = 256 << 10
"""Most bytes that are read in vain to save a request: 3 ms at the 80 MB/s of one connection, where
a request takes 10 to 30 ms. A chunk of 64^3 cells is larger, and is never read in vain."""

PIECE: Final = 64 << 20
"""Most bytes of a request for a part of a shard: 0.8 s at 80 MB/s. More are read in several, which
arrive side by side."""

WHOLE: Final = 256 << 20
"""Most bytes of a shard, before compression, that is read whole in one request: 3 s at 80 MB/s.
Tasks on a large cluster have connections enough between them, and few requests."""

_AT_ONCE: Final = 8
"""Requests of one read of a shard that run at the same time; zarr reads ten shards at once."""

TRIES: Final = 3
"""Times that a shard is read if another process replaces it meanwhile."""

_KEPT: Final = 4096
"""Indices of shards that an opened store keeps: 4 MB for shards of 64 chunks. Chunks are requested
on the condition that the shard is still that of the index."""


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
    return (chunks - wanted) * chunk_bytes <= GAP and chunks * chunk_bytes <= WHOLE


async def request_chunks(
    store: BucketStore, key: str, layout: ShardLayout, wanted: Collection[Place]
) -> dict[Place, Bytes]:
    """Request some chunks of a shard of cosmoflow's own layout.

    Parameters
    ----------
    store : BucketStore
        The bucket.
    key : str
        Key of the shard.
    layout : ShardLayout
        Layout of the array.
    wanted : collection of tuple of int
        Places of the chunks in the shard.

    Returns
    -------
    dict of tuple of int to ndarray
        The chunks as they are stored; those that are not stored are left out.

    Raises
    ------
    ValueError
        The index of the shard is damaged.
    """
    for left in reversed(range(TRIES)):
        try:
            return await _request(store, key, layout, wanted)
        except PreconditionError:
            # Another process has replaced the shard since its index was read.
            store.indices.pop(key, None)
            if not left:
                raise
    return {}


async def _request(
    store: BucketStore, key: str, layout: ShardLayout, wanted: Collection[Place]
) -> dict[Place, Bytes]:
    """Request chunks once."""
    size = layout.index_bytes
    if is_read_whole(len(wanted), math.prod(layout.counts), layout.chunk_bytes):
        found = await store.get(key, default_buffer_prototype())
        if found is None or not len(found):
            return {}
        content = found.as_numpy_array().view(np.uint8)
        spans = _find(layout, content[-size:], wanted)
        return {place: content[start:stop] for place, (start, stop) in spans.items()}
    known = await read_index(store, key, {"suffix": size})
    if known is None or not len(known[0]):
        return {}
    spans = _find(layout, known[0], wanted)
    pieces = await read_spans(store, key, spans.values(), known[1])
    chunks = {}
    for place, (start, stop) in spans.items():
        for (first, last), found in pieces:
            if first <= start and stop <= last:
                chunks[place] = np.frombuffer(found, np.uint8)[start - first : stop - first]
                break
    return chunks


def _find(layout: ShardLayout, index: Any, wanted: Collection[Place]) -> dict[Place, Span]:
    """Return the spans of the wanted chunks that are stored."""
    entries = layout.decode_index(index)
    spans = {place: span_of(entries, place) for place in wanted}
    return {place: span for place, span in spans.items() if span is not None}


async def read_index(
    store: BucketStore, key: str, where: Span | dict[str, int]
) -> tuple[Any, str | None] | None:
    """Return the index of a shard and the ETag of the object; None if there is no object."""
    known = store.indices.get(key)
    if known is not None:
        return known
    # Several reads of a process may need the same index at the same time.
    under_way = store.asked.get(key)
    if under_way is not None:
        return await asyncio.shield(under_way)
    store.asked[key] = asyncio.ensure_future(store.get_span(key, where))
    try:
        known = await asyncio.shield(store.asked[key])
    finally:
        del store.asked[key]
    if known is not None and known[1] is not None and len(store.indices) < _KEPT:
        store.indices[key] = known
    return known


async def read_spans(
    store: BucketStore, key: str, spans: Iterable[Span], tag: str | None
) -> list[tuple[Span, Any]]:
    """Read spans of an object, near ones together; return what was read, with where it lies."""
    limit = asyncio.Semaphore(_AT_ONCE)

    async def read(span: Span) -> tuple[Span, Any]:
        async with limit:
            return span, await store.get_span(key, span, tag)

    found = await asyncio.gather(*map(read, join_spans(spans)))
    return [(span, content[0]) for span, content in found if content is not None]
