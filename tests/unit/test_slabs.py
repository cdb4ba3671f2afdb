"""Transforms in slabs: just what whole transforms give, however the box is cut."""

from functools import partial

import numba
import numpy as np
import pytest
import torch

from cosmoflow.numerics import fourier, slabs
from cosmoflow.numerics.blocks import axis_blocks
from cosmoflow.numerics.slabs import RowWaves
from cosmoflow.stages.slabs.plan import Cut, Grid
from cosmoflow.stages.slabs.transform import finish_task
from tests.cases import each

BOX = 50.0
CUTS = [(24, 8, 3), (24, 8, 8), (24, 24, 24), (25, 8, 3), (25, 25, 7), (18, 5, 1)]
"""Cells, shard, thickness: even and odd grids, slabs that are equal and that are not."""

cases = each(("cells", "shard", "thickness"), CUTS)


def noise(cells, seed=0):
    values = np.random.default_rng(seed).normal(size=(cells,) * 3).astype(np.float32)
    return torch.from_numpy(values)


def forward(field, cuts):
    """Do step 1 of every x-slab; return what each y-slab is handed."""
    cells = field.shape[-1]
    made = [
        slabs.forward_planes(blocks_of(field[x]), (x.stop - x.start, cells), cuts) for x in cuts
    ]
    return [[parts[y] for parts in made] for y in range(len(cuts))]


def blocks_of(planes):
    for block in slabs.plane_blocks(*planes.shape[:2]):
        yield block, partial(planes.__getitem__, block)


def joined(parts):
    """Return the blocks of an x-slab."""
    return [(own, join()) for own, join in slabs.joined_blocks(parts)]


def travel(field, cuts, count, multiply):
    """Do steps 1 and 2 of every slab; return what each x-slab is handed."""
    handed = forward(field, cuts)
    made = [
        slabs.filter_rows(
            [parts],
            RowWaves(field.shape[-1], BOX, rows),
            cuts,
            count,
            lambda modes, waves: multiply(modes[0], waves),
        )
        for rows, parts in zip(cuts, handed, strict=True)
    ]
    return [[parts[x] for parts in made] for x in range(len(cuts))]


def assert_close(found, expected, tolerance=2e-6):
    scale = float(expected.abs().square().mean().sqrt())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale * 10)


@pytest.fixture(params=[1, 1 << 20], ids=["a plane at once", "many planes at once"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(fourier, "BLOCK_BYTES_CPU", request.param)


@cases
def test_slabs_cover_the_axis_and_lie_in_one_shard_each(cells, shard, thickness):
    cuts = slabs.cut_axis(cells, shard, thickness)
    covered = [cell for cut in cuts for cell in range(cut.start, cut.stop)]
    assert covered == list(range(cells))
    assert max(cut.stop - cut.start for cut in cuts) <= thickness
    for begin, length in axis_blocks(cells, shard):
        inside = [cut for cut in cuts if begin <= cut.start < begin + length]
        sizes = [cut.stop - cut.start for cut in inside]
        assert sum(sizes) == length
        assert len(sizes) == -(-length // thickness)


@cases
@pytest.mark.usefixtures("_blocks")
def test_modes_are_those_of_the_whole_transform(cells, shard, thickness):
    field = noise(cells)
    cuts = slabs.cut_axis(cells, shard, thickness)
    found = torch.full((cells, cells, cells // 2 + 1), torch.nan, dtype=torch.complex64)
    for rows, parts in zip(cuts, forward(field, cuts), strict=True):
        assert all(part.flags.c_contiguous for part in parts)
        for block in slabs.plane_blocks(rows.stop - rows.start, cells):
            own = slice(rows.start + block.start, rows.start + block.stop)
            found[:, own] = slabs.transform_rows(parts, block)
    assert_close(found, torch.fft.rfftn(field, dim=(0, 1, 2)))


@cases
@pytest.mark.usefixtures("_blocks")
def test_there_and_back_again(cells, shard, thickness):
    field = noise(cells)
    cuts = slabs.cut_axis(cells, shard, thickness)
    for x, parts in zip(cuts, travel(field, cuts, 1, lambda modes, waves: [modes]), strict=True):
        assert all(part.flags.c_contiguous for part in parts)
        for own, modes in joined(parts):
            assert_close(slabs.inverse_planes(modes[0]), field[x][own])


@cases
def test_gradients_are_linear_velocities(cells, shard, thickness):
    field = noise(cells)
    cuts = slabs.cut_axis(cells, shard, thickness)
    expected = fourier.linear_velocity(field, BOX, 1.0)
    found = torch.full_like(expected, torch.nan)
    for x, parts in zip(cuts, travel(field, cuts, 2, slabs.gradient_rows), strict=True):
        for own, modes in joined(parts):
            for axis, component in slabs.gradient_planes(modes, BOX):
                found[axis, x][own] = component
    assert_close(found, expected)


@cases
def test_tides_are_those_of_the_whole_box(cells, shard, thickness):
    field = noise(cells)
    cuts = slabs.cut_axis(cells, shard, thickness)
    expected = {
        axes: component.clone()
        for axes, component in fourier.tidal_components(fourier.forward(field), BOX)
    }
    found = {axes: torch.full_like(component, torch.nan) for axes, component in expected.items()}
    for x, parts in zip(cuts, travel(field, cuts, 3, slabs.tide_rows), strict=True):
        for own, modes in joined(parts):
            for axes, component in slabs.tide_planes(modes, BOX):
                found[axes][x][own] = component
    for axes, component in expected.items():
        assert_close(found[axes], component)


@each("cells", [24, 25])
def test_wavenumbers_of_rows_are_those_of_the_grid(cells):
    squared = fourier.squared_wavenumber(cells, BOX)
    for rows in (slice(0, 5), slice(7, 8), slice(20, cells)):
        waves = RowWaves(cells, BOX, rows)
        torch.testing.assert_close(waves.squared(), squared[:, rows], rtol=0, atol=0)
        inverse = waves.inverse_squared()
        assert bool(torch.isfinite(inverse).all())
        torch.testing.assert_close((inverse * squared[:, rows] > 0.5), squared[:, rows] > 0.0)
    assert float(RowWaves(cells, BOX, slice(0, 1)).inverse_squared()[0, 0, 0]) == 0.0


def finished(cuts, made, threads):
    """Transform products back with some threads; return the values of all slabs."""
    before = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(threads)
    torch.set_num_threads(threads)
    try:
        cut = Cut(Grid(cuts[-1].stop, BOX, cuts[-1].stop, cuts[-1].stop), tuple(cuts), tuple(cuts))
        return [
            array
            for x in range(len(cuts))
            for array in finish_task(slabs.inverse_planes, 2, cut, x, [part[x] for part in made])
        ]
    finally:
        numba.set_num_threads(before[0])
        torch.set_num_threads(before[1])


def test_several_fields_are_filtered_together():
    """A product of two fields' modes with functions of k, in one pass, with any threads."""
    cells = 64
    one, two = noise(cells, 1), noise(cells, 2)
    cuts = slabs.cut_axis(cells, 32, 16)
    handed = [forward(field, cuts) for field in (one, two)]

    def multiply(modes, waves):
        yield modes[0] + 2.0 * modes[1]
        yield modes[1] * waves.squared()

    made = [
        slabs.filter_rows(
            [parts[y] for parts in handed], RowWaves(cells, BOX, rows), cuts, 2, multiply
        )
        for y, rows in enumerate(cuts)
    ]
    # Transforms of torch differ in the last bits with its number of threads.
    for alone, shared in zip(finished(cuts, made, 1), finished(cuts, made, 2), strict=True):
        np.testing.assert_array_equal(alone, shared)
    expected = torch.stack(
        [
            one + 2.0 * two,
            fourier.inverse(fourier.forward(two) * fourier.squared_wavenumber(cells, BOX), cells),
        ]
    )
    for x, slab in enumerate(cuts):
        for own, modes in joined([parts[x] for parts in made]):
            assert_close(slabs.inverse_planes(modes), expected[:, slab][:, own])
