"""Transforms in bars and slabs: just what whole transforms give, however the box is cut."""

from functools import partial

import numba
import numpy as np
import pytest
import torch

from cosmoflow.numerics import fourier, slabs
from cosmoflow.numerics.blocks import grid_blocks
from cosmoflow.numerics.waves import BOX_AXES, WaveBlock
from cosmoflow.stages.slabs.plan import Cut, Grid
from cosmoflow.stages.slabs.transform import finish_task
from tests.cases import each

BOX = 50.0
CUTS = [
    (24, 8, (8, 4), 3), (24, 24, (24, 24), 13), (25, 8, (3, 8), 4), (25, 25, (7, 7), 1),
    (18, 5, (5, 2), 8),
]  # fmt: skip
"""Cells, shard, widths of a bar, planes of a slab: even and odd grids, equal pieces and not."""

cases = each(("cells", "shard", "width", "planes"), CUTS)


def noise(cells, seed=0):
    values = np.random.default_rng(seed).normal(size=(cells,) * 3).astype(np.float32)
    return torch.from_numpy(values)


def cut_box(cells, shard, width, planes):
    return Cut.of(Grid(cells, BOX, shard, shard), width, planes)


def forward(field, cut):
    """Do step 1 of every bar; return what each slab is handed."""
    made = []
    for bar in cut.bars:
        own = field[bar.x, bar.y]
        blocks = (
            (x, partial(own.__getitem__, x)) for x in slabs.line_blocks(bar.shape, len(field))
        )
        made.append(slabs.forward_lines(blocks, bar.shape, cut.slabs))
    return [[parts[z] for parts in made] for z in range(len(cut.slabs))]


def travel(fields, cut, count, multiply):
    """Do steps 1 and 2 of every bar and slab; return what each bar is handed."""
    handed = [forward(field, cut) for field in fields]
    made = [
        slabs.filter_planes(
            [parts[z] for parts in handed],
            WaveBlock.slab(cut.grid.cells, BOX, planes),
            cut.bars,
            count,
            multiply,
        )
        for z, planes in enumerate(cut.slabs)
    ]
    return [[parts[bar] for parts in made] for bar in range(len(cut.bars))]


def joined(handed, cut, count):
    """Do step 3 of every bar; return the fields of the whole box."""
    cells = cut.grid.cells
    found = torch.full((count, cells, cells, cells), torch.nan)
    for bar, parts in zip(cut.bars, handed, strict=True):
        assert all(part.flags.c_contiguous for part in parts)
        for x, make in slabs.joined_lines(parts, cells):
            found[:, bar.x, bar.y][:, x] = make()
    return found


def assert_close(found, expected, tolerance=2e-6):
    scale = float(expected.abs().square().mean().sqrt())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale * 10)


@pytest.fixture(params=[1, 1 << 20], ids=["a plane at once", "many planes at once"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(fourier, "BLOCK_BYTES_CPU", request.param)


@cases
def test_bars_and_slabs_cover_the_box_once_and_bars_lie_in_one_shard(cells, shard, width, planes):
    cut = cut_box(cells, shard, width, planes)
    count = np.zeros((cells, cells), int)
    for bar in cut.bars:
        count[bar.x, bar.y] += 1
        for own, most in zip((bar.x, bar.y), width, strict=True):
            assert own.start // shard == (own.stop - 1) // shard
            assert own.stop - own.start <= most
    assert (count == 1).all()
    assert [z for one in cut.slabs for z in range(one.start, one.stop)] == [*range(cells // 2 + 1)]
    # Every column of shards consists of its bars.
    columns = [cut.bars_inside(column) for column in range(cut.layers**2)]
    assert sorted(bar for column in columns for bar in column) == [*range(len(cut.bars))]
    blocks = grid_blocks(cells, shard)
    assert [cut.shard(number) for number in range(len(blocks))] == blocks
    for column, inside in enumerate(columns):
        x, y, _ = blocks[column * cut.layers].origin
        assert all(cut.bars[bar].x.start // shard == x // shard for bar in inside)
        assert all(cut.bars[bar].y.start // shard == y // shard for bar in inside)


@cases
@pytest.mark.usefixtures("_blocks")
def test_modes_are_those_of_the_whole_transform(cells, shard, width, planes):
    field, cut = noise(cells), cut_box(cells, shard, width, planes)
    found = torch.full((cells, cells, cells // 2 + 1), torch.nan, dtype=torch.complex64)
    for slab, parts in zip(cut.slabs, forward(field, cut), strict=True):
        assert all(part.flags.c_contiguous for part in parts)
        for block in slabs.plane_blocks(slab, cells):
            own = slice(slab.start + block.start, slab.start + block.stop)
            modes = slabs.transform_planes(parts, cut.bars, block)
            found[..., own] = modes.movedim(0, -1)
    assert_close(found, torch.fft.rfftn(field, dim=(0, 1, 2)))


@cases
@pytest.mark.usefixtures("_blocks")
def test_there_and_back_again(cells, shard, width, planes):
    field, cut = noise(cells), cut_box(cells, shard, width, planes)
    handed = travel([field], cut, 1, lambda modes, waves: modes)
    assert_close(joined(handed, cut, 1)[0], field)


@cases
def test_gradients_and_tides_are_those_of_the_whole_box(cells, shard, width, planes):
    field, cut = noise(cells), cut_box(cells, shard, width, planes)
    handed = travel([field], cut, 3, lambda modes, waves: slabs.gradient(modes[0], waves))
    assert_close(joined(handed, cut, 3), fourier.linear_velocity(field, BOX, 1.0))
    handed = travel([field], cut, 6, lambda modes, waves: slabs.tides(modes[0], waves))
    found = dict(zip(slabs.TIDES, joined(handed, cut, 6), strict=True))
    for axes, component in fourier.tidal_components(fourier.forward(field), BOX):
        assert_close(found[axes], component)


@each("cells", [24, 25])
def test_wavenumbers_of_slabs_are_those_of_the_grid(cells):
    squared = fourier.squared_wavenumber(cells, BOX).movedim(-1, 0)
    for planes in (slice(0, 5), slice(7, 8), slice(9, cells // 2 + 1)):
        waves = WaveBlock.slab(cells, BOX, planes)
        torch.testing.assert_close(waves.squared(), squared[planes], rtol=0, atol=0)
        inverse = waves.inverse_squared()
        assert bool(torch.isfinite(inverse).all())
        torch.testing.assert_close((inverse * squared[planes] > 0.5), squared[planes] > 0.0)
        inner = slice(1, planes.stop - planes.start)
        torch.testing.assert_close(waves.part(inner).squared(), waves.squared()[inner])
        mx, my, mz = WaveBlock.box(cells, BOX).integers()
        for own, expected in zip(waves.integers(), (mz[planes], mx, my), strict=True):
            np.testing.assert_array_equal(own, expected)
    assert float(WaveBlock.slab(cells, BOX, slice(0, 1)).inverse_squared()[0, 0, 0]) == 0.0
    assert WaveBlock.box(cells, BOX).axes == BOX_AXES
    torch.testing.assert_close(WaveBlock.box(cells, BOX).squared().movedim(-1, 0), squared)


def finished(cut, handed, threads):
    """Transform products back with some threads; return the values of all bars."""
    before = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(threads)
    torch.set_num_threads(threads)
    try:
        return [
            array
            for bar, parts in enumerate(handed)
            for array in finish_task(lambda products: products, 2, cut, bar, parts)
        ]
    finally:
        numba.set_num_threads(before[0])
        torch.set_num_threads(before[1])


def test_several_fields_are_filtered_together():
    """A product of two fields' modes with functions of k, in one pass, with any threads."""
    cells = 64
    one, two = noise(cells, 1), noise(cells, 2)
    cut = cut_box(cells, 32, (32, 16), 12)

    def multiply(modes, waves):
        yield modes[0] + 2.0 * modes[1]
        yield modes[1] * waves.squared()

    handed = travel([one, two], cut, 2, multiply)
    # Transforms of torch differ in the last bits with its number of threads.
    for alone, shared in zip(finished(cut, handed, 1), finished(cut, handed, 2), strict=True):
        np.testing.assert_array_equal(alone, shared)
    expected = torch.stack(
        [
            one + 2.0 * two,
            fourier.inverse(fourier.forward(two) * fourier.squared_wavenumber(cells, BOX), cells),
        ]
    )
    assert_close(joined(handed, cut, 2), expected)


@each("cells", [20, 25, 48, 96])
def test_the_cut_does_not_change_a_bit(cells):
    """Of the modes, nor of the fields that are made from them."""
    field, found = noise(cells), []
    for width, planes in (((8, 8), 4), ((8, 4), 1), ((3, 5), 8), ((cells, 2), 64)):
        cut = cut_box(cells, cells, width, planes)
        handed = travel([field], cut, 3, lambda modes, waves: slabs.gradient(modes[0], waves))
        found.append(joined(handed, cut, 3))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)
