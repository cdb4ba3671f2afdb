"""The tiles of a block: they cover it, each of its cells once, or with weights that add up to 1."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmoflow.model.geometry import Geometry
from cosmoflow.numerics.blocks import Block, bounding_block, intersect, overlap, place
from cosmoflow.stages.infer.tiles import Layout, blending_weights, cut_tiles
from tests.cases import each

quick = settings(max_examples=100)
origins = st.tuples(*[st.integers(-5, 25)] * 3)
shapes = st.tuples(*[st.integers(1, 9)] * 3)
blocks = st.builds(Block, origins, shapes)
strides = st.integers(1, 4)


def unpadded(stride):
    return Geometry(halo=3, stride=stride, fixed_output=None, default_output=8)


def padded(size):
    return Geometry(halo=2, stride=2, fixed_output=size, default_output=size)


@st.composite
def cuts(draw):
    """A block, a geometry and a layout that suit one another."""
    if draw(st.booleans()):
        stride = draw(strides)
        return draw(blocks), unpadded(stride), Layout(9, (9,) * 3, stride * draw(st.integers(1, 4)))
    return draw(blocks), padded(draw(st.integers(1, 11))), Layout(9, (9,) * 3, 1)


def cells(block):
    """The cells of a block as a set of triples."""
    return {tuple(np.add(block.origin, index)) for index in np.ndindex(*block.shape)}


@quick
@given(cuts())
def test_each_cell_of_a_block_is_written_once_and_from_its_own_place(cut):
    block, geometry, layout = cut
    count = np.zeros(block.shape, int)
    where = np.full((3, *block.shape), -99)
    for tile in cut_tiles(block, geometry, layout):
        inside, source = overlap(block, tile)
        count[inside] += 1
        lattice = np.indices(tile.shape) + np.reshape(tile.origin, (3, 1, 1, 1))
        where[(slice(None), *inside)] = lattice[(slice(None), *source)]
    np.testing.assert_array_equal(count, 1)
    expected = np.indices(block.shape) + np.reshape(block.origin, (3, 1, 1, 1))
    np.testing.assert_array_equal(where, expected)


@quick
@given(cuts())
def test_tiles_are_alike_all_needed_and_no_larger_than_asked_for(cut):
    block, geometry, layout = cut
    grid = cut_tiles(block, geometry, layout)
    tiles = list(grid)
    assert len(grid) == len(tiles)
    assert grid.bounds == bounding_block(tiles)
    assert len({tile.shape for tile in tiles}) == 1
    assert len({tile.origin for tile in tiles}) == len(tiles)
    assert all(cells(tile) & cells(block) for tile in tiles)
    if geometry.fixed_output is None:
        assert max(grid.shape) <= layout.tile


@quick
@given(cuts())
def test_tiles_lie_on_the_lattice_of_cell_0(cut):
    block, geometry, layout = cut
    lattice = geometry.fixed_output or geometry.stride
    for tile in cut_tiles(block, geometry, layout):
        assert all(origin % lattice == 0 for origin in tile.origin)
        assert all(side % geometry.stride == 0 for side in tile.shape) or geometry.fixed_output


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
@given(blocks, blocks)
def test_an_intersection_holds_the_shared_cells(first, second):
    shared = intersect(first, second)
    assert (cells(shared) if shared else set()) == cells(first) & cells(second)
    if shared:
        numbers = np.arange(math.prod(first.shape)).reshape(first.shape)
        part = numbers[place(shared, first)]
        assert part.shape == shared.shape
        corner = np.subtract(shared.origin, first.origin)
        assert part[0, 0, 0] == numbers[tuple(corner)]


@quick
@given(blocks, st.integers(2, 11), st.data())
def test_blending_weights_of_all_tiles_add_up_to_1(block, size, data):
    shared = data.draw(st.integers(1, size // 2))
    weights = blending_weights(size, shared)
    total = np.zeros(block.shape)
    for tile in cut_tiles(block, padded(size), Layout(9, (9,) * 3, 1, overlap=shared)):
        assert tile.shape == (size,) * 3
        inside, part = overlap(block, tile)
        total[inside] += weights[part]
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


@quick
@given(st.integers(2, 11), st.data())
def test_the_tiles_of_a_cell_do_not_depend_on_the_block(size, data):
    shared = data.draw(st.integers(0, size // 2))
    layout, cell = Layout(9, (9,) * 3, 1, overlap=shared), data.draw(origins)
    alone = list(cut_tiles(Block(cell, (1, 1, 1)), padded(size), layout))
    around = data.draw(shapes)
    block = Block(tuple(np.subtract(cell, np.array(around) // 2).tolist()), around)
    among = [tile for tile in cut_tiles(block, padded(size), layout) if cell in cells(tile)]
    assert among == alone


def test_nothing_shared_needs_no_weights():
    assert blending_weights(20, 0) is None


def test_weights_rise_and_fall_over_what_is_shared():
    axis = blending_weights(5, 2)[2, 2] * 1.0
    np.testing.assert_allclose(axis, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3], rtol=1e-6)


@each("stride", [1, 2, 4])
def test_equal_tiles_waste_less_than_a_stride_each(stride):
    for length in range(1, 60):
        block = Block((0, 0, 0), (length,) * 3)
        tiles = cut_tiles(block, unpadded(stride), Layout(60, (60,) * 3, 16))
        per_axis = round(len(tiles) ** (1 / 3))
        assert per_axis * tiles.shape[0] - length < stride * (per_axis + 1)
