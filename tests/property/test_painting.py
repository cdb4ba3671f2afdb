"""Mass assignment against the textbook, and exact in any order."""

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import j1

from cosmoflow.errors import DataError
from cosmoflow.numerics.blocks import grid_blocks
from cosmoflow.numerics.painting import (
    BlockPainter,
    bucket_particles,
    check_particles,
    cut_batches,
    paint_block,
    streams,
)
from cosmoflow.stages.paint import paint
from tests.cases import each
from tests.conftest import cut, displaced_lattice

SCHEMES = ("ngp", "cic", "tsc", "pcs")
NAMES = ("density", "momentum", "velocity")
quick = settings(max_examples=40)


def paint_in_pieces(
    position,
    velocity,
    grid,
    box,
    scheme,
    *,
    mass=None,
    shard=None,
    chunks=1,
    rows=None,
    **options,
):
    """Paint a box as the stage does: bucket every chunk, paint every shard; return whole fields."""
    shard = shard or grid
    weight = np.ones(len(position)) if mass is None else mass
    background = (velocity * weight[:, None]).sum(axis=0, dtype=np.float64) / weight.sum()
    pieces = [
        (position[rows], velocity[rows], None if mass is None else mass[rows])
        for rows in np.array_split(np.arange(len(position)), chunks)
    ]
    interlaced = "shift" in options
    buckets = [bucket_particles(p, grid, box, shard, scheme, interlaced=interlaced) for p in pieces]
    lead = {"density": (), "momentum": (3,), "velocity": (3,)}
    whole = {name: np.full((*lead[name], grid, grid, grid), np.nan, np.float32) for name in NAMES}
    for index, block in enumerate(grid_blocks(grid, shard)):
        painter = BlockPainter(
            block,
            grid,
            box,
            scheme,
            count=len(position),
            mean_mass=weight.mean(),
            background=background,
            **options,
        )
        parts = [bucket[index] for bucket in buckets]
        for batch, more in cut_batches(parts, rows or len(position)):
            if more:
                painter.add(batch)
                batch.clear()
        fields = painter.finish(batch)
        for name in NAMES:
            cut(whole[name], block)[:] = fields[name]
    return whole


def textbook_weight(scheme, s):
    """Weight of a cell whose centre lies ``s`` cells from the particle (Hockney & Eastwood)."""
    r = np.abs(s)
    if scheme == "ngp":
        return ((s > -0.5) & (s <= 0.5)).astype(float)
    if scheme == "cic":
        return np.clip(1.0 - r, 0.0, None)
    if scheme == "tsc":
        return np.where(r < 0.5, 0.75 - r**2, np.where(r < 1.5, 0.5 * (1.5 - r) ** 2, 0.0))
    near, far = (4.0 - 6.0 * r**2 + 3.0 * r**3) / 6.0, (2.0 - r) ** 3 / 6.0
    return np.where(r < 1.0, near, np.where(r < 2.0, far, 0.0))


def brute_force(position, velocity, grid, box, scheme, mass=None):
    """Density and momentum from the distance of every particle to every cell and its images."""
    centres = np.arange(grid) + 0.5
    u = position.astype(np.float64) * (grid / box)
    images = grid * np.arange(-3, 4)
    s = centres[:, None] + images - u[..., None, None]
    x, y, z = np.moveaxis(textbook_weight(scheme, s).sum(axis=-1), 1, 0)
    weight = np.ones(len(u)) if mass is None else mass / mass.mean()
    per_cell = grid**3 / len(u)
    density = per_cell * np.einsum("p,pi,pj,pk->ijk", weight, x, y, z)
    momentum = per_cell * np.einsum(
        "p,pc,pi,pj,pk->cijk", weight, velocity.astype(np.float64), x, y, z
    )
    return density, momentum


@st.composite
def boxes(draw):
    """A few particles anywhere in a small box, some on borders, some of unequal mass."""
    grid = draw(st.integers(2, 7))
    box = draw(st.sampled_from([1.0, 7.3, 250.0]))
    count = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    position = (rng.random((count, 3)) * box).astype(np.float32)
    special = (np.arange(2 * grid) * (0.5 * box / grid)).astype(np.float32)
    where = rng.random(position.shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    position = np.where(where, rng.choice(special, position.shape), position)
    position = np.minimum(position, np.nextafter(np.float32(box), np.float32(0.0)))
    velocity = (rng.normal(size=(count, 3)) * 400.0 + 50.0).astype(np.float32)
    mass = rng.lognormal(0.0, 2.0, count) if draw(st.booleans()) else None
    return position, velocity, mass, grid, box


@quick
@given(boxes(), st.sampled_from(SCHEMES))
def test_mass_and_momentum_are_conserved(particles, scheme):
    position, velocity, mass, grid, box = particles
    fields = paint_in_pieces(position, velocity, grid, box, scheme, mass=mass)
    assert fields["density"].min() >= 0.0
    assert fields["density"].mean(dtype=np.float64) == pytest.approx(1.0, abs=1e-6)
    weight = np.ones(len(position)) if mass is None else mass / mass.mean()
    expected = (weight[:, None] * velocity).sum(axis=0, dtype=np.float64)
    found = fields["momentum"].sum(axis=(1, 2, 3), dtype=np.float64) * len(position) / grid**3
    scale = (weight[:, None] * np.abs(velocity)).sum()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


@quick
@given(boxes(), st.sampled_from(SCHEMES))
def test_clouds_are_the_textbooks(particles, scheme):
    position, velocity, mass, grid, box = particles
    fields = paint_in_pieces(position, velocity, grid, box, scheme, mass=mass)
    density, momentum = brute_force(position, velocity, grid, box, scheme, mass)
    np.testing.assert_allclose(fields["density"], density, rtol=1e-6, atol=1e-8 * grid**3)
    np.testing.assert_allclose(
        fields["momentum"], momentum, rtol=1e-6, atol=1e-6 * np.abs(momentum).max()
    )


@each("scheme", SCHEMES)
def test_a_full_box_agrees_with_adding_up_particle_by_particle(scheme):
    """The other route for many particles: NumPy's add.at over the cells around each one."""
    grid, box = 12, 64.0
    position, velocity = displaced_lattice(20, box, seed=4)
    fields = paint_in_pieces(position, velocity, grid, box, scheme)
    density, momentum = np.zeros((grid,) * 3), np.zeros((3, *(grid,) * 3))
    u = position.astype(np.float64) * (grid / box)
    home = np.floor(u).astype(int)
    for offset in np.ndindex(5, 5, 5):
        cell = home + np.array(offset) - 2
        w = textbook_weight(scheme, cell + 0.5 - u).prod(axis=1) * grid**3 / len(u)
        index = tuple((cell % grid).T)
        np.add.at(density, index, w)
        for axis in range(3):
            np.add.at(momentum[axis], index, w * velocity[:, axis])
    np.testing.assert_allclose(fields["density"], density, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(fields["momentum"], momentum, rtol=1e-6, atol=1e-5)
    filled = density > 0.0
    np.testing.assert_allclose(
        fields["velocity"][:, filled], (momentum[:, filled] / density[filled]), rtol=1e-5, atol=0.1
    )


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


def test_masses_may_differ_by_ten_orders_of_magnitude():
    """Heavy particles are counted in larger units."""
    grid, box = 6, 12.0
    position, velocity = displaced_lattice(5, box, seed=6)
    mass = np.geomspace(1e-6, 1e4, len(position))
    fields = paint_in_pieces(position, velocity, grid, box, "tsc", mass=mass)
    density, momentum = brute_force(position, velocity, grid, box, "tsc", mass)
    np.testing.assert_allclose(fields["density"], density, rtol=1e-6, atol=1e-8 * grid**3)
    scale = np.abs(momentum).max()
    np.testing.assert_allclose(fields["momentum"], momentum, rtol=1e-6, atol=1e-6 * scale)


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


@each("cell", [(0, 0, 0), (3, 7, 5), (7, 7, 7)])
@each("scheme", ["ngp", "cic"])
def test_a_particle_at_a_cells_centre_gives_it_everything(cell, scheme):
    grid, box = 8, 32.0
    position = ((np.array([cell]) + 0.5) * (box / grid)).astype(np.float32)
    velocity = np.array([[100.0, -200.0, 7.0]], np.float32)
    fields = paint_in_pieces(position, velocity, grid, box, scheme)
    expected = np.zeros((grid,) * 3, np.float32)
    expected[cell] = grid**3
    np.testing.assert_array_equal(fields["density"], expected)
    np.testing.assert_array_equal(fields["momentum"], expected * velocity[0][:, None, None, None])
    np.testing.assert_array_equal(fields["velocity"][(slice(None), *cell)], velocity[0])


@each("scheme", SCHEMES)
@each("axis", [0, 1, 2])
def test_phase_and_amplitude_of_a_displaced_plane_wave(scheme, axis):
    """Zel'dovich's plane wave: the k mode of x = q + A sin(kq + phi) is -J1(kA) exp(i phi)."""
    grid, per_axis, box, waves, phi = 32, 8192, 100.0, 2, 0.4
    k = 2.0 * np.pi * waves / box
    amplitude = 0.4 / k
    line = (np.arange(per_axis) + 0.5) * (box / per_axis)
    others = (np.arange(2) + 0.5) * (box / 2)
    lines = [others] * 3
    lines[axis] = line
    q = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 3)
    q[:, axis] = (q[:, axis] + amplitude * np.sin(k * q[:, axis] + phi)) % box
    position = q.astype(np.float32)
    fields = paint_in_pieces(position, np.zeros_like(position), grid, box, scheme)
    profile = np.moveaxis(fields["density"], axis, 0).mean(axis=(1, 2), dtype=np.float64)

    centres = (np.arange(grid) + 0.5) * (box / grid)
    mode = (profile * np.exp(-1j * k * centres)).mean()
    expected = -j1(k * amplitude) * np.exp(1j * phi)
    assert abs(np.angle(mode / expected)) < 1e-3
    window = np.sinc(waves / grid) ** (1 + SCHEMES.index(scheme))
    assert abs(mode) == pytest.approx(abs(expected) * window, rel=1e-3)
    # The same with the cells' corners for their centres: this test sees half a cell.
    shifted = (profile * np.exp(-1j * k * (centres - 0.5 * box / grid))).mean()
    assert abs(np.angle(shifted / expected)) > 0.1


@quick
@given(
    st.integers(0, 2**32),
    st.tuples(*[st.integers(-9, 9)] * 3),
    st.sampled_from(SCHEMES),
)
def test_moving_by_whole_cells_rolls_the_grid(seed, shift, scheme):
    grid, box = 8, 16.0
    rng = np.random.default_rng(seed)
    # Positions are multiples of 1/64 cell, so that the moved ones are exact too.
    steps = rng.integers(0, 64 * grid, (40, 3))
    moved = (steps + 64 * np.array(shift)) % (64 * grid)
    velocity = rng.normal(0.0, 300.0, (40, 3)).astype(np.float32)
    before, after = (
        paint_in_pieces((s * (box / grid / 64)).astype(np.float32), velocity, grid, box, scheme)
        for s in (steps, moved)
    )
    for name in NAMES:
        rolled = np.roll(before[name], shift, axis=(-3, -2, -1))
        np.testing.assert_array_equal(after[name], rolled)


def test_cells_without_mass_flow_with_the_background():
    grid, box = 8, 8.0
    position = np.array([[0.5, 0.5, 0.5], [4.5, 4.5, 4.5]], np.float32)
    velocity = np.array([[100.0, 0.0, -60.0], [-20.0, 8.0, 0.0]], np.float32)
    mass = np.array([1.0, 3.0])
    fields = paint_in_pieces(position, velocity, grid, box, "cic", mass=mass)
    background = np.array([10.0, 6.0, -15.0])
    empty = fields["density"] == 0.0
    assert empty.sum() == grid**3 - 2
    np.testing.assert_array_equal(
        fields["velocity"][:, empty], np.repeat(background[:, None], grid**3 - 2, axis=1)
    )
    np.testing.assert_array_equal(fields["momentum"][:, empty], 0.0)
    np.testing.assert_allclose(fields["velocity"][:, 0, 0, 0], velocity[0], rtol=1e-6)
    np.testing.assert_allclose(fields["density"][4, 4, 4], 0.75 * grid**3, rtol=1e-6)


def test_a_particle_of_twice_the_mass_is_two_particles():
    position, velocity = displaced_lattice(4, 20.0, seed=3)
    mass = np.ones(len(position))
    mass[::3] = 2.0
    twice = np.repeat(np.arange(len(position)), mass.astype(int))
    one = paint_in_pieces(position, velocity, 6, 20.0, "tsc", mass=mass)
    other = paint_in_pieces(position[twice], velocity[twice], 6, 20.0, "tsc")
    np.testing.assert_allclose(one["density"], other["density"], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(one["velocity"], other["velocity"], rtol=1e-4, atol=1e-2)


@each("unequal", [False, True])
def test_the_stage_paints_what_brute_force_paints(particle_store, serial_run, tmp_path, unequal):
    particles = particle_store(8, mass=unequal)
    out = str(tmp_path / "fields.zarr")
    run = serial_run(paint={"grid": 10, "scheme": "pcs", "shard": 4, "particles_per_task": 100})
    found = paint(particles.url, out, run)
    density, momentum = brute_force(
        particles.position, particles.velocity, 10, 64.0, "pcs", particles.mass
    )
    np.testing.assert_allclose(found["density"].values, density, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found["velocity"].values, momentum / density, rtol=1e-4, atol=1e-2)


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


def test_positions_at_both_ends_of_the_box_are_taken():
    position = np.zeros((2, 3), np.float32)
    position[1] = np.nextafter(np.float32(20.0), np.float32(0.0))
    velocity = np.zeros_like(position)
    check_particles(position, velocity, 20.0, "box.zarr")
    fields = paint_in_pieces(position, velocity, 4, 20.0, "cic")
    # Both lie on the corner that eight cells share.
    np.testing.assert_allclose(fields["density"][np.ix_([0, 3], [0, 3], [0, 3])], 8.0, rtol=1e-5)
