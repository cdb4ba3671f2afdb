"""Painting is exact in any order, and refuses particles and masses that it cannot add up."""

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmoflow.errors import DataError
from cosmoflow.numerics.blocks import grid_blocks
from cosmoflow.numerics.painting import (
    BlockPainter,
    bucket_particles,
    check_particles,
    paint_block,
    streams,
)
from tests.cases import each
from tests.clouds import NAMES, SCHEMES, boxes, brute_force, paint_in_pieces, quick
from tests.conftest import cut, displaced_lattice


@each("scheme", SCHEMES)
@each("unequal", [False, True])
def test_no_bit_depends_on_shards_chunks_or_order(scheme, unequal):
    grid, box = 13, 50.0
    position, velocity = displaced_lattice(12, box, seed=1)
    rng = np.random.default_rng(2)
    mass = rng.lognormal(0.0, 1.0, len(position)) if unequal else None
    if unequal:
        mass /= mass.mean()
        mass = np.round(mass * 2**20) / 2**20  # sums of masses are exact in any order
    expected = paint_in_pieces(position, velocity, grid, box, scheme, mass=mass)
    for shard, shards in ((13, 1), (7, 8), (5, 27)):
        assert len(grid_blocks(grid, shard)) == shards
        for chunks in (1, 13):
            for order, rows in ((slice(None), None), (rng.permutation(len(position)), 99)):
                found = paint_in_pieces(
                    position[order], velocity[order], grid, box, scheme, rows=rows,
                    mass=None if mass is None else mass[order], shard=shard, chunks=chunks,
                )  # fmt: skip
                for name in NAMES:
                    np.testing.assert_array_equal(found[name], expected[name])


@quick
@given(boxes(), st.sampled_from(SCHEMES), st.integers(1, 7), st.integers(1, 30), st.randoms())
def test_no_bit_depends_on_batches(particles, scheme, shard, rows, random):
    position, velocity, mass, grid, box = particles
    order = random.sample(range(len(position)), len(position))
    # Sums of masses, for the mean, depend on the order.
    mass = None if mass is None else np.round(mass * 2**10 + 1.0)
    expected = paint_in_pieces(position, velocity, grid, box, scheme, mass=mass)
    found = paint_in_pieces(
        position[order], velocity[order], grid, box, scheme, shard=shard, rows=rows,
        mass=None if mass is None else mass[order], chunks=random.randint(1, len(order)),
    )  # fmt: skip
    filled = expected["density"] > 0.0
    for name in ("density", "momentum"):
        np.testing.assert_array_equal(found[name], expected[name])
    # The background flow of cells without mass is summed in floating point here.
    np.testing.assert_array_equal(found["velocity"][:, filled], expected["velocity"][:, filled])


@each("scheme", SCHEMES)
@each("least_run", [0.0, np.inf], ids=["in place", "sorted"])
@each("threads", [1, 2])
def test_no_bit_depends_on_the_way_through_memory(scheme, least_run, threads, monkeypatch):
    grid, box = 70, 50.0
    position, velocity = displaced_lattice(40, box, seed=1)
    mass = np.random.default_rng(2).lognormal(0.0, 1.0, len(position))
    expected = paint_in_pieces(position, velocity, grid, box, scheme, mass=mass, shard=19)
    monkeypatch.setattr(streams, "LEAST_RUN", least_run)
    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, before))
    try:
        found = [
            paint_in_pieces(position, velocity, grid, box, scheme, mass=mass, chunks=3, rows=rows)
            for rows in (None, 9999)
        ]
    finally:
        numba.set_num_threads(before)
    for fields in found:
        for name in NAMES:
            np.testing.assert_array_equal(fields[name], expected[name])


@quick
@given(st.integers(0, 2**32), st.sampled_from(SCHEMES), st.integers(2, 9), st.integers(1, 9))
def test_a_shift_is_moving_the_particles(seed, scheme, grid, shard):
    """With positions on multiples of 1/64 cell, so that both ways are free of rounding."""
    box = float(grid)
    rng = np.random.default_rng(seed)
    position = (rng.integers(0, 64 * grid, (40, 3)) / 64.0).astype(np.float32)
    moved = ((position + 0.5) % box).astype(np.float32)
    velocity = rng.normal(0.0, 300.0, (40, 3)).astype(np.float32)
    found = paint_in_pieces(position, velocity, grid, box, scheme, shard=shard, shift=0.5)
    expected = paint_in_pieces(moved, velocity, grid, box, scheme)
    for name in NAMES:
        np.testing.assert_array_equal(found[name], expected[name])


def test_only_the_fields_that_are_asked_for_are_painted_where_they_are_wanted():
    position, velocity = displaced_lattice(8, 20.0)
    block = grid_blocks(10, 10)[0]
    every = paint_block([(position, velocity, None)], block, 10, 20.0, count=len(position))
    assert set(every) == set(NAMES)
    without = [(position, None, None)]
    alone = paint_block(without, block, 10, 20.0, count=len(position), fields=("density",))
    assert set(alone) == {"density"}
    np.testing.assert_array_equal(alone["density"], every["density"])
    out = {"momentum": np.full((3, 10, 10, 10), np.nan, np.float32)}
    given_ = paint_block(
        [(position, velocity, None)], block, 10, 20.0,
        count=len(position), fields=("momentum",), out=out,
    )  # fmt: skip
    assert given_["momentum"] is out["momentum"]
    np.testing.assert_array_equal(out["momentum"], every["momentum"])


@each("masses", [[2.0e8], [2.0**26] * 4, [2.0**26] * 5, [6.0e8], [3e7] * 3])
@each("fields", [("density",), NAMES])
def test_a_cell_with_more_mass_than_can_be_added_up_is_refused(masses, fields):
    position = np.full((len(masses), 3), 5.0, np.float32)
    heavy = [(position, np.zeros_like(position), np.array(masses))]
    with pytest.raises(DataError, match="more mass"):
        paint_block(heavy, grid_blocks(4, 4)[0], 4, 8.0, "ngp", count=10**9, fields=fields)
    apart = np.linspace(0.0, 7.9, 8)[:, None].repeat(3, axis=1).astype(np.float32)
    light = [(apart, np.zeros_like(apart), np.full(8, 3e7))]
    found = paint_block(light, grid_blocks(8, 8)[0], 8, 8.0, "ngp", count=8, mean_mass=3e7)
    assert found["density"].sum(dtype=float) == 512.0


@each("least_run", [1.0, np.inf], ids=["in place", "sorted"])
def test_equal_particles_that_are_too_many_for_a_cell_are_refused(least_run, monkeypatch):
    """2^28 in one cell add up to zero, modulo 2^64; the particles are one array, offered often."""
    monkeypatch.setattr(streams, "LEAST_RUN", least_run)
    position = np.full((1 << 22, 3), 5.0, np.float32)
    pieces = [(position, None, None)] * 17
    with pytest.raises(DataError, match="more mass"):
        paint_block(pieces, grid_blocks(4, 4)[0], 4, 8.0, "ngp", count=1 << 28, fields=("density",))
    painter = BlockPainter(grid_blocks(4, 4)[0], 4, 8.0, "ngp", count=1 << 28, fields=("density",))
    for piece in pieces[1:]:
        painter.add([piece])
    # Sums are checked before they can overflow, and at the end.
    with pytest.raises(DataError, match="more mass"):
        painter.finish(pieces[:1])
    once = paint_block(
        pieces[:1], grid_blocks(4, 4)[0], 4, 8.0, "ngp", count=1 << 22, fields=("density",)
    )
    assert once["density"].max() == 64.0


@each("value", [np.nan, np.inf, -np.inf, 3e38])
def test_positions_that_are_none_are_left_out(value):
    """Checked particles have none of these; others must not end up in some cell."""
    position, velocity = displaced_lattice(6, 20.0)
    block = grid_blocks(8, 8)[0]
    good = [(position[1:], velocity[1:], None)]
    expected = paint_block(good, block, 8, 20.0, count=len(position))
    position[0, 1] = value
    found = paint_block([(position, velocity, None)], block, 8, 20.0, count=len(position))
    for name in NAMES:
        np.testing.assert_array_equal(found[name], expected[name])


@quick
@given(boxes(), st.sampled_from(SCHEMES), st.integers(1, 7))
def test_buckets_list_every_particle_that_a_shard_needs_once(particles, scheme, shard):
    position, velocity, _, grid, box = particles
    velocity[:, 0] = np.arange(len(position))  # to tell the particles apart
    buckets = bucket_particles((position, velocity, None), grid, box, shard, scheme)
    blocks = grid_blocks(grid, shard)
    assert len(buckets) == len(blocks)
    for index in range(len(position)):
        one = slice(index, index + 1)
        density, _ = brute_force(position[one], velocity[one], grid, box, scheme)
        for block, (positions, velocities, _) in zip(blocks, buckets, strict=True):
            listed = np.count_nonzero(velocities[:, 0] == index)
            assert listed <= 1
            if listed:
                np.testing.assert_array_equal(positions[velocities[:, 0] == index], position[one])
            if cut(density, block).max() > 1e-12:
                assert listed == 1


@each("name", ["position", "velocity"])
@each("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_index(name, value):
    position, velocity = displaced_lattice(4, 20.0)
    bad = {"position": position, "velocity": velocity}[name]
    bad[[17, 30], [1, 0]] = value
    with pytest.raises(DataError, match=name) as caught:
        check_particles(position, velocity, 20.0, "box.zarr", first=1000)
    assert caught.value.where == "box.zarr, particle 1017 (2 in this chunk)"
    np.testing.assert_array_equal(caught.value.value, bad[17])


@each("value", [-1e-6, 20.0, 2e4])
def test_positions_outside_the_box_are_refused_by_index(value):
    position, velocity = displaced_lattice(4, 20.0)
    position[63, 2] = value
    with pytest.raises(DataError, match="outside the box") as caught:
        check_particles(position, velocity, 20.0, "box.zarr")
    assert "particle 63 (1 in this chunk)" in caught.value.where
    assert "20.0" in caught.value.limit
