"""Shards that are read and written without zarr: the same bytes, the same numbers."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from cosmoflow.storage import transfer
from cosmoflow.storage.chunks import ShardLayout
from cosmoflow.storage.transfer import own_threads, read_part, write_part
from tests.cases import each

BLOSC = BloscCodec(cname="lz4", clevel=1, shuffle="shuffle")
ARRAYS = {
    "cells": ((20, 20, 20), (8, 8, 8), (4, 4, 4), "float32", [BLOSC, Crc32cCodec()]),
    "components": ((3, 9, 9, 9), (3, 6, 6, 6), (1, 3, 3, 3), "float32", [BLOSC, Crc32cCodec()]),
    "scales": ((2, 3, 8, 8, 8), (1, 3, 8, 8, 8), (1, 1, 4, 4, 4), "float32", [BLOSC]),
    "particles": ((50, 3), (16, 3), (8, 3), "float64", [BLOSC, Crc32cCodec()]),
    "identities": ((50,), (16,), (8,), "int64", [BLOSC, Crc32cCodec()]),
    "of another program": ((9, 9), (6, 6), (3, 3), "float32", "auto"),
    "in one piece": ((9, 9), None, (3, 3), "float32", "auto"),
}
"""Shape, shard, chunk, type and compressors of arrays."""


def create(folder, name):
    shape, shard, chunk, kind, codecs = ARRAYS[name]
    fill = np.nan if kind.startswith("float") else -1
    return zarr.create_array(
        str(folder), name="array", shape=shape, shards=shard, chunks=chunk, dtype=kind,
        fill_value=fill, compressors=codecs, overwrite=True,
    )  # fmt: skip


def numbers(name):
    shape, *_, kind, _ = ARRAYS[name]
    return (1000.0 * np.random.default_rng(1).normal(size=shape)).astype(kind)


def whole(array):
    return [(0, length) for length in array.shape]


def shards_of(folder):
    root = Path(folder, "array/c")
    return {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}


@each("threads", ["1", "3"])
@each("name", list(ARRAYS))
def test_shards_are_those_of_zarr(name, threads, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    values = numbers(name)
    ours, theirs = (create(tmp_path / one, name) for one in ("ours", "theirs"))
    write_part(ours, whole(ours), values)
    theirs.with_config({"write_empty_chunks": True})[...] = values
    found, expected = shards_of(tmp_path / "ours"), shards_of(tmp_path / "theirs")
    assert found.keys() == expected.keys()
    # zarr stores the same chunks in another order.
    sizes = [{key: path.stat().st_size for key, path in one.items()} for one in (found, expected)]
    assert sizes[0] == sizes[1]
    assert (ShardLayout.of(ours) is None) == (name in ("of another program", "in one piece"))
    rng = np.random.default_rng(2)
    cuts = [whole(ours), *(
        [tuple(sorted(rng.choice(length + 1, 2, replace=False).tolist())) for length in ours.shape]
        for _ in range(12)
    )]  # fmt: skip
    for array in (ours, theirs):
        np.testing.assert_array_equal(array[...], values)
        for cut in cuts:
            # Into a part of a larger array, as blocks are read that wrap around.
            out = np.zeros([2 + stop - start for start, stop in cut], values.dtype)
            inside = out[tuple(slice(1, -1) for _ in cut)]
            assert read_part(array, cut, inside) == 0
            np.testing.assert_array_equal(inside, values[tuple(slice(*one) for one in cut)])
            assert np.count_nonzero(out) <= inside.size


def test_what_is_not_stored_is_the_fill_value(tmp_path):
    """Chunks and shards that are missing count as values that are not finite."""
    values = numbers("cells")
    array = create(tmp_path / "store", "cells")
    values[5, 6, 7] = np.inf
    array[:8] = values[:8]
    out = np.empty(array.shape, np.float32)
    assert read_part(array, whole(array), out) == 1 + 12 * 20 * 20
    np.testing.assert_array_equal(out[:8], values[:8])
    assert np.isnan(out[8:]).all()
    assert read_part(array, [(0, 5), (0, 20), (0, 20)], out[:5]) == 0


def test_a_failed_write_leaves_the_shard_before(tmp_path, monkeypatch):
    array, values = create(tmp_path / "store", "cells"), numbers("cells")
    write_part(array, whole(array), values)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer.Path, "replace", fail)
    with pytest.raises(OSError, match="space"):
        write_part(array, [(0, 8)] * 3, -values[:8, :8, :8])
    np.testing.assert_array_equal(array[...], values)
    assert all(path.suffix != ".partial" for path in Path(tmp_path).rglob("*"))


@each("said", ["", "0", "many", "2", "64"])
def test_threads_are_those_that_the_engine_gave(said, monkeypatch):
    monkeypatch.setattr(transfer.os, "sched_getaffinity", lambda _: set(range(5)))
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert own_threads() == {"2": 2, "64": transfer.MOST_CODING_THREADS}.get(said, 5)
