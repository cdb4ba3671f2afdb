"""A box read through the cache is the box, and no piece is read more often than need be."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmoflow.model.caching import CachedFields
from cosmoflow.model.sources import MemoryFields
from cosmoflow.numerics.blocks import Block
from tests.cases import each

GRID = 10
FIELDS = {
    "density": np.arange(GRID**3, dtype=np.float32).reshape((GRID,) * 3),
    "velocity": np.random.default_rng(0).normal(size=(3, GRID, GRID, GRID)).astype(np.float32),
    "linear_velocity": np.arange(2 * 3 * GRID**3, dtype=np.float32).reshape(2, 3, *(GRID,) * 3),
}


class Counting(MemoryFields):
    """Notes every block that is read."""

    def __init__(self, fields):
        super().__init__(fields)
        self.read = []

    def read_block(self, name, block, *, lead=()):
        self.read.append((name, lead, block))
        return super().read_block(name, block, lead=lead)


blocks = st.builds(
    Block, st.tuples(*[st.integers(-12, 22)] * 3), st.tuples(*[st.integers(1, 13)] * 3)
)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(FIELDS)), blocks), min_size=1, max_size=4),
    st.integers(1, 11),
    st.sampled_from([0, 3000, 10**9]),
    st.sampled_from([1, 3]),
)
def test_what_is_read_is_the_box(reads, piece, capacity, at_once):
    plain = MemoryFields(FIELDS)
    cached = CachedFields(MemoryFields(FIELDS), (piece, 4, piece), capacity, at_once=at_once)
    assert cached.grid == GRID
    for name, block in reads:
        lead = (1,) if name == "linear_velocity" else ()
        expected = plain.read_block(name, block, lead=lead)
        np.testing.assert_array_equal(cached.read_block(name, block, lead=lead), expected)


@each("at_once", [1, 4])
def test_with_room_for_all_every_piece_is_read_once(at_once):
    source = Counting(FIELDS)
    cached = CachedFields(source, (4, 4, 4), 10**9, at_once=at_once)
    for origin in np.ndindex(2, 2, 2):
        block = Block(tuple(5 * o - 1 for o in origin), (7, 7, 7))
        cached.read_block("density", block)
    assert sum(np.prod(block.shape) for _, _, block in source.read) == GRID**3
    # Eight blocks that wrap need at least the pieces of 27 places, and read some of them together.
    assert len(source.read) < 27


@each("capacity", [0, 27 * 256])
def test_no_more_than_the_capacity_is_kept(capacity):
    cached = CachedFields(MemoryFields(FIELDS), (4, 4, 4), capacity)
    whole = Block((0, 0, 0), (GRID,) * 3)
    for name in ("density", "velocity"):
        cached.read_block(name, whole)
    held = sum(piece.nbytes for piece in cached._held.values())
    assert held <= max(capacity, 3 * 256)
    assert held == cached._size
