"""Flipped bits and lost bytes in stored chunks: found, and named."""

import math
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec, ShardingCodec

from cosmoflow.errors import DataError
from cosmoflow.numerics.blocks import Block
from cosmoflow.storage.field_writing import create_fields, write_block
from cosmoflow.storage.fields import FieldStore, open_fields
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.particles import COVERAGE, ParticleStore
from cosmoflow.storage.urls import open_group_for_writing
from cosmoflow.storage.variables import COMPRESSORS
from tests.cases import each
from tests.conftest import make_metadata

ENTRY, CRC = 16, 4
"""Bytes of the index of a shard for each of its chunks, and of the index's own checksum."""

SECOND = Block((0, 0, 8), (8, 8, 4))
"""The cells of shard 1 of a grid of 12^3 in shards of 8^3."""


def flip(content, byte, bit=4):
    damaged = bytearray(content)
    damaged[byte] ^= 1 << bit
    return bytes(damaged)


def chunks_of(content, count):
    """Return where the chunks of a shard are: (first byte, bytes). The index is at its end."""
    entries = np.frombuffer(content[-count * ENTRY - CRC : -CRC], "<u8").reshape(-1, 2)
    return [(first, size) for first, size in entries.tolist() if first != 2**64 - 1]


# A test of its own flips a bit of every byte of a shard.
DAMAGE = {
    "payload": lambda c, n: flip(c, chunks_of(c, n)[0][0] + 40),
    "index, first entry": lambda c, n: flip(c, len(c) - n * ENTRY - CRC),
    "truncated in the index": lambda c, n: c[:-7],
    "truncated to half": lambda c, n: c[: len(c) // 2],
    "truncated to a few bytes": lambda c, n: c[:3],
    "emptied": lambda c, n: b"",
}


def damage(url, name, kind, *place):
    """Damage the shard of an array that is at a place among its shards."""
    array = zarr.open_group(url, mode="r")[name]
    shard = Path(url, name, "c", *(["0"] * (array.ndim - len(place))), *map(str, place))
    count = math.prod(s // c for s, c in zip(array.shards, array.chunks, strict=True))
    shard.write_bytes(DAMAGE[kind](shard.read_bytes(), count))


def floats(group):
    """Return the arrays of floating point of a store, by name."""
    return {n: a for n, a in group.arrays() if np.issubdtype(a.dtype, np.floating)}


def codecs(array):
    found = array.metadata.codecs
    return found[0].codecs if isinstance(found[0], ShardingCodec) else found


def test_every_array_of_numbers_has_checksums(fields_store, particle_store):
    fields = zarr.open_group(fields_store().url)
    particles = zarr.open_group(particle_store().url)
    assert set(floats(fields)) == {"x", "y", "z", "density", "velocity"}
    assert set(floats(particles)) == {"position", "velocity"}
    arrays = {**floats(fields), **floats(particles), "coverage": particles[COVERAGE]}
    for name, array in arrays.items():
        # Over the compressed bytes: what is stored is what is checked, and it is less.
        assert isinstance(codecs(array)[-1], Crc32cCodec), name
        assert len(codecs(array)) == 3, name


@each("name, kind", [("density", kind) for kind in DAMAGE] + [("velocity", "payload")])
def test_damaged_shard_of_fields_is_named(fields_store, name, kind):
    made = fields_store(12)
    damage(made.url, name, kind, 0, 0, 1)
    store = FieldStore(made.url)
    for block in (SECOND, Block((0, 0, 7), (1, 1, 2)), Block((0, 0, 0), (12, 12, 12))):
        with pytest.raises(DataError) as caught:
            store.read_block(name, block)
        assert caught.value.exit_code == 3
        assert caught.value.remedy
        for part in (made.url, name, str(block.origin), str(block.shape)):
            assert part in caught.value.where
    # The cells of other shards are as they were.
    first = store.read_block(name, Block((0, 0, 0), (8, 8, 8)))
    np.testing.assert_array_equal(first, getattr(made, name)[..., :8, :8, :8])


def test_every_flipped_bit_is_found(tmp_path):
    """Of a shard of a few hundred bytes."""
    url = str(tmp_path / "fields.zarr")
    density = np.random.default_rng(0).lognormal(size=(4, 4, 4)).astype(np.float32)
    create_fields(url, make_metadata(), 4, ("density",), shard=4, chunk=4)
    write_block(url, Block((0, 0, 0), density.shape), 0, {"density": density})
    finish_group(open_group_for_writing(url))
    shard = Path(url, "density/c/0/0/0")
    content = shard.read_bytes()
    store = FieldStore(url)
    assert len(content) > 200
    for byte in range(len(content)):
        shard.write_bytes(flip(content, byte, byte % 8))
        with pytest.raises(DataError):
            store.read("density")
    shard.write_bytes(content)
    np.testing.assert_array_equal(store.read("density"), density)


def test_a_flipped_bit_costs_its_chunk_alone(fields_store):
    made = fields_store(12)
    shard = Path(made.url, "density/c/0/0/0")
    content = shard.read_bytes()
    store = FieldStore(made.url)
    for index, (first, size) in enumerate(chunks_of(content, 8)):
        shard.write_bytes(flip(content, first + size // 2))
        damaged = []
        for place in np.ndindex(2, 2, 2):
            block = Block(tuple(4 * p for p in place), (4, 4, 4))
            try:
                store.read_block("density", block)
            except DataError:
                damaged.append(place)
        assert len(damaged) == 1, index


@each("name, kind", [("position", kind) for kind in DAMAGE] + [("velocity", "payload")])
def test_damaged_shard_of_particles_is_named(particle_store, name, kind):
    made = particle_store(8)
    damage(made.url, name, kind)
    with pytest.raises(DataError) as caught:
        ParticleStore(made.url).read(0, 512)
    assert made.url in caught.value.where
    # An emptied file is a lost one: particles that are not finite.
    if kind != "emptied":
        assert f"{name}, particles 0 to 512" in caught.value.where


def test_flipped_bit_of_the_coverage_is_named(particle_store):
    made = particle_store(8)
    chunk = Path(made.url, COVERAGE, "c/0/0/0")
    chunk.write_bytes(flip(chunk.read_bytes(), 12))
    with pytest.raises(DataError, match="coverage"):
        ParticleStore(made.url).coverage(0, 512)


def test_stores_without_checksums_still_open(fields_store, tmp_path, monkeypatch):
    made = fields_store(12)
    monkeypatch.setattr("cosmoflow.storage.variables.COMPRESSORS", COMPRESSORS[:1])
    old = str(tmp_path / "old.zarr")
    create_fields(old, make_metadata(24.0), 12, ("density",), shard=12, chunk=4)
    assert len(codecs(zarr.open_group(old)["density"])) == 2
    write_block(old, Block((0, 0, 0), (12, 12, 12)), 0, {"density": made.density})
    finish_group(open_group_for_writing(old))
    np.testing.assert_array_equal(FieldStore(old).read("density"), made.density)
    np.testing.assert_array_equal(open_fields(old)["density"], made.density)
