"""Parts of arrays between storage and memory, on all cores of a process.

zarr decodes a chunk into a buffer of its own, copies it into another, and from there into the
result, on one thread for most of the way. Here each thread reads a chunk, checks and decodes it,
looks for values that are not finite and copies it to its place, all while it is in the cache.
Arrays of other layouts than cosmoflow's (:mod:`cosmoflow.storage.chunks`) are left to zarr.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

from cosmoflow.storage.bucket_store import BucketStore
from cosmoflow.storage.chunks import Bytes, Part, Place, Range, ShardLayout, span_of
from cosmoflow.storage.finite import count_not_finite
from cosmoflow.storage.shards import request_chunks

MOST_CODING_THREADS: Final = 16
"""Most threads of a read or a write. Each holds a chunk as it is stored and decoded: some 32 MB in
all for chunks of 64^3, within the overhead that plans allow a task."""

_TOGETHER: Final = 8
"""Chunks of a shard that a thread reads one after the other: it opens the file once for them."""

_SHARDS_AT_ONCE: Final = 10
"""Shards of a bucket that a read asks for at the same time."""


def read_part(array: Any, ranges: Sequence[Range], out: NDArray[Any]) -> int:
    """Read a part of an array.

    Parameters
    ----------
    array : zarr.Array
        The array.
    ranges : sequence of (int, int)
        First index along each axis, and the index after the last.
    out : ndarray
        Where the numbers go; its shape is that of the part.

    Returns
    -------
    int
        How many numbers are not finite.

    Raises
    ------
    ValueError, RuntimeError
        A chunk is damaged.
    """
    layout, store = ShardLayout.of(array), array.store_path.store
    if layout is None or not isinstance(store, LocalStore | BucketStore):
        out[...] = array[tuple(slice(*one) for one in ranges)]
        return count_not_finite(out)
    reading = _Reading(layout, out)
    shards = [(_key(array, place), parts) for place, parts in layout.shards(ranges)]
    threads = min(own_threads(), sum(len(parts) for _, parts in shards))
    with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:
        if isinstance(store, BucketStore):
            return sum(sync(_read_objects(store, shards, reading, pool)))
        jobs = [
            (store.root / key, parts[first : first + _TOGETHER])
            for key, parts in shards
            for first in range(0, len(parts), _TOGETHER)
        ]
        if pool is None:
            return sum(reading.read_file(*job) for job in jobs)
        return sum(pool.map(reading.read_file, *zip(*jobs, strict=True)))


def write_part(array: Any, ranges: Sequence[Range], values: NDArray[Any]) -> None:
    """Write whole shards of an array, those that exist included.

    Parameters
    ----------
    array : zarr.Array
        The array.
    ranges : sequence of (int, int)
        First index along each axis, and the index after the last: whole shards, or up to the end
        of the array.
    values : ndarray
        The numbers, of the shape of the part.
    """
    layout, store = ShardLayout.of(array), array.store_path.store
    if layout is None or not isinstance(store, LocalStore | BucketStore):
        array.with_config({"write_empty_chunks": True})[tuple(slice(*one) for one in ranges)] = (
            values
        )
        return
    threads = own_threads()
    with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:
        run = map if pool is None else pool.map
        for place, parts in layout.shards(ranges):
            encoded = run(lambda part: layout.encode(values[part.target]), parts)
            pieces = _join(layout, [part.place for part in parts], encoded)
            _put(store, _key(array, place), pieces)


def own_threads() -> int:
    """Return how many threads this process should use: the cores that the engine gave it."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    cores = int(given) if given.isdecimal() and int(given) else len(os.sched_getaffinity(0))
    return min(cores, MOST_CODING_THREADS)


class _Reading:
    """One read: where its numbers go, and the buffers of its threads."""

    def __init__(self, layout: ShardLayout, out: NDArray[Any]) -> None:
        self.layout, self._out = layout, out
        self._held = threading.local()

    def read_file(self, path: Path, parts: Sequence[Part]) -> int:
        """Read some chunks of a local shard; return how many numbers are not finite."""
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return sum(self.put(None, part) for part in parts)
        try:
            end = os.fstat(file).st_size
            if not end:
                return sum(self.put(None, part) for part in parts)
            begin = max(0, end - self.layout.index_bytes)
            index = self.layout.decode_index(os.pread(file, end - begin, begin))
            bad = 0
            for part in parts:
                span = span_of(index, part.place)
                bad += self.put(None if span is None else self._read_span(file, *span), part)
            return bad
        finally:
            os.close(file)

    def _read_span(self, file: int, start: int, stop: int) -> Bytes:
        """Return some bytes of a file, in a buffer of this thread."""
        held: Bytes | None = getattr(self._held, "stored", None)
        if held is None or len(held) < stop - start:
            held = self._held.stored = np.empty(stop - start, np.uint8)
        content = held[: stop - start]
        if os.preadv(file, [content], start) < len(content):  # type: ignore[list-item]
            raise ValueError("a shard ends within a chunk")
        return content

    def put(self, content: Bytes | None, part: Part) -> int:
        """Decode a chunk and copy what is wanted of it; None stands for one that is missing."""
        target = self._out[part.target]
        if content is None:
            target[...] = self.layout.fill
            return count_not_finite(target)
        if target.shape == self.layout.chunk and target.flags.c_contiguous:
            self.layout.decode(content, target)
            return count_not_finite(target)
        chunk: NDArray[Any] | None = getattr(self._held, "chunk", None)
        if chunk is None:
            chunk = self._held.chunk = np.empty(self.layout.chunk, self.layout.dtype)
        self.layout.decode(content, chunk)
        wanted = chunk[part.cells]
        target[...] = wanted
        return count_not_finite(wanted)


async def _read_objects(
    store: BucketStore,
    shards: Iterable[tuple[str, Sequence[Part]]],
    reading: _Reading,
    pool: ThreadPoolExecutor | None,
) -> list[int]:
    """Read some chunks of shards in a bucket; several are asked for while others are decoded."""
    limit = asyncio.Semaphore(_SHARDS_AT_ONCE)
    loop = asyncio.get_running_loop()

    async def read(key: str, parts: Sequence[Part]) -> int:
        async with limit:
            wanted = {part.place for part in parts}
            found = await request_chunks(store, key, reading.layout, wanted)

            def decode() -> int:
                return sum(reading.put(found.get(part.place), part) for part in parts)

            return await loop.run_in_executor(pool, decode)

    return await asyncio.gather(*(read(key, parts) for key, parts in shards))


def _join(
    layout: ShardLayout, places: Sequence[Place], encoded: Iterable[tuple[bytes, bytes]]
) -> list[bytes]:
    """Return the pieces of a shard in their order: chunks, checksums, index."""
    pieces: list[bytes] = []
    spans = []
    start = 0
    for place, (content, checksum) in zip(places, encoded, strict=True):
        pieces += content, checksum
        stop = start + len(content) + len(checksum)
        spans.append((place, (start, stop)))
        start = stop
    return [*pieces, layout.encode_index(spans)]


def _put(store: LocalStore | BucketStore, key: str, pieces: Sequence[bytes]) -> None:
    """Store an object; a reader of a local file sees the whole file or none."""
    if isinstance(store, BucketStore):
        content = default_buffer_prototype().buffer.from_bytes(b"".join(pieces))
        sync(store.set(key, content))
        return
    path = store.root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            file.writelines(pieces)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _key(array: Any, shard: Place) -> str:
    """Return the key of a shard in its store."""
    name: str = array.metadata.encode_chunk_key(shard)
    path: str = array.store_path.path
    return f"{path}/{name}" if path else name
