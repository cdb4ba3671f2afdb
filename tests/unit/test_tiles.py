"""Blocks of a periodic grid."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmoflow.numerics.blocks import (
    Block,
    grid_blocks,
    grow,
    read_periodic,
    shards_near,
    split_block,
)
from tests.cases import each
from tests.conftest import cut

quick = settings(max_examples=60)
triples = st.tuples


@quick
@given(
    st.integers(1, 6),
    triples(*[st.integers(-20, 20)] * 3),
    triples(*[st.integers(1, 15)] * 3),
    st.sampled_from([(), (3,), (2, 3)]),
)
def test_read_periodic_is_take_with_wrapping(cells, origin, shape, lead):
    grid = np.random.default_rng(0).normal(size=(*lead, cells, cells, cells)).astype(np.float32)
    asked = []

    def read(part):
        asked.append(part)
        return grid[(..., *part)]

    found = read_periodic(read, lead, Block(origin, shape), cells)
    expected = grid
    for axis, (start, length) in enumerate(zip(origin, shape, strict=True)):
        indices = np.arange(start, start + length)
        expected = np.take(expected, indices, axis=len(lead) + axis, mode="wrap")
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32
    for part in asked:
        for piece in part:
            assert 0 <= piece.start < piece.stop <= cells


@quick
@given(st.integers(1, 14), st.integers(1, 20))
def test_blocks_cover_each_cell_once(cells, size):
    count = np.zeros((cells,) * 3, int)
    blocks = grid_blocks(cells, size)
    for block in blocks:
        assert max(block.shape) <= size
        part = cut(count, block)
        assert part.shape == block.shape
        part += 1
    np.testing.assert_array_equal(count, 1)
    assert len(blocks) == int(np.ceil(cells / size)) ** 3
    assert blocks == sorted(blocks, key=lambda block: block.origin)


@quick
@given(triples(*[st.integers(-5, 5)] * 3), triples(*[st.integers(1, 8)] * 3), st.integers(1, 9))
def test_split_block_covers_the_block_and_nothing_else(origin, shape, size):
    count = np.zeros((40,) * 3, int)
    for block in split_block(Block(origin, shape), size):
        shifted = Block(tuple(o + 10 for o in block.origin), block.shape)
        cut(count, shifted)[...] += 1
    expected = np.zeros_like(count)
    cut(expected, Block(tuple(o + 10 for o in origin), shape))[...] = 1
    np.testing.assert_array_equal(count, expected)


def test_a_haloed_block_holds_the_block_in_its_middle():
    grid = np.arange(5**3, dtype=np.float32).reshape(5, 5, 5)

    def read(part):
        return grid[part]

    block = Block((0, 2, 4), (2, 3, 1))
    haloed = read_periodic(read, (), grow(block, 7), 5)
    assert haloed.shape == (16, 17, 15)
    np.testing.assert_array_equal(haloed[7:-7, 7:-7, 7:-7], cut(grid, block))


@each(("cells", "size", "bins"), [(12, 4, 256), (13, 5, 8), (100, 7, 16)])
@each("reach", [0, 2])
def test_shards_near_bins_are_those_that_their_cells_reach(cells, size, bins, reach):
    rng = np.random.default_rng(5)
    for _ in range(20):
        covered = rng.random(bins) < 0.2
        near = shards_near(covered, cells, size, reach)
        assert near.shape == (-(-cells // size),)
        u = np.linspace(0.0, 1.0, 2001, endpoint=False)
        inside = np.floor(u[covered[(u * bins).astype(int)]] * cells).astype(int)
        reached = (inside[:, None] + np.arange(-reach, reach + 1)) % cells // size
        assert set(np.unique(reached)) <= set(np.flatnonzero(near))
        # No more than a cell beyond: bins and cells have no common borders.
        wider = (inside[:, None] + np.arange(-reach - 1, reach + 2)) % cells // size
        assert set(np.flatnonzero(near)) <= set(np.unique(wider))
