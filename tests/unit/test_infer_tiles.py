"""The tiles of a block: they cover it, and each of its cells is written by one tile."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmoflow.numerics.painting import Block
from cosmoflow.stages.prediction import bounding_block, covering_tiles, overlap

quick = settings(max_examples=100, deadline=None)
origins = st.tuples(*[st.integers(0, 25)] * 3)
shapes = st.tuples(*[st.integers(1, 9)] * 3)
blocks = st.builds(Block, origins, shapes)


def cells(block):
    """The cells of a block as a set of triples."""
    return {tuple(np.add(block.origin, index)) for index in np.ndindex(*block.shape)}


@quick
@given(blocks, st.integers(1, 11))
def test_each_cell_of_a_block_is_written_once_and_from_its_own_place(block, size):
    count = np.zeros(block.shape, int)
    where = np.full((3, *block.shape), -1)
    for tile in covering_tiles(block, size):
        inside, source = overlap(block, tile)
        count[inside] += 1
        lattice = np.indices(tile.shape) + np.reshape(tile.origin, (3, 1, 1, 1))
        where[(slice(None), *inside)] = lattice[(slice(None), *source)]
    np.testing.assert_array_equal(count, 1)
    expected = np.indices(block.shape) + np.reshape(block.origin, (3, 1, 1, 1))
    np.testing.assert_array_equal(where, expected)


@quick
@given(blocks, st.integers(1, 11))
def test_tiles_lie_on_the_lattice_of_cell_0_and_all_are_needed(block, size):
    tiles = covering_tiles(block, size)
    for tile in tiles:
        assert tile.shape == (size, size, size)
        assert all(origin % size == 0 for origin in tile.origin)
        assert cells(tile) & cells(block)
    assert len({tile.origin for tile in tiles}) == len(tiles)
    assert [tile.origin for tile in tiles] == sorted(tile.origin for tile in tiles)


@quick
@given(st.lists(blocks, min_size=1, max_size=4))
def test_a_bounding_block_is_the_smallest_that_holds_all(parts):
    found = cells(bounding_block(parts))
    every = set().union(*(cells(part) for part in parts))
    assert every <= found
    for axis in range(3):
        assert {cell[axis] for cell in found} == set(
            range(min(c[axis] for c in every), max(c[axis] for c in every) + 1)
        )


@quick
@given(blocks, st.integers(1, 11))
def test_the_tiles_of_a_block_fill_their_bounding_block(block, size):
    tiles = covering_tiles(block, size)
    region = bounding_block(tiles)
    assert set().union(*(cells(tile) for tile in tiles)) == cells(region)
    assert sum(size**3 for _ in tiles) == np.prod(region.shape)
