"""Mass assignment against the textbook: clouds, conserved sums, phases, unequal masses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import j1

from cosmoflow.numerics.painting import check_particles
from cosmoflow.stages.paint import paint
from tests.cases import each
from tests.clouds import NAMES, SCHEMES, boxes, brute_force, paint_in_pieces, quick, textbook_weight
from tests.conftest import displaced_lattice


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


def test_positions_at_both_ends_of_the_box_are_taken():
    position = np.zeros((2, 3), np.float32)
    position[1] = np.nextafter(np.float32(20.0), np.float32(0.0))
    velocity = np.zeros_like(position)
    check_particles(position, velocity, 20.0, "box.zarr")
    fields = paint_in_pieces(position, velocity, 4, 20.0, "cic")
    # Both lie on the corner that eight cells share.
    np.testing.assert_allclose(fields["density"][np.ix_([0, 3], [0, 3], [0, 3])], 8.0, rtol=1e-5)
