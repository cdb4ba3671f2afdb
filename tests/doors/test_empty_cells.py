"""Cells without mass: the velocity that they are given, and how many of them a store counts."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree

from cosmoflow.cli.app import run_app
from cosmoflow.config import load_settings
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.events import StageAdvanced
from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.painting import fill_reach, fill_velocity, paint_block
from cosmoflow.stages.derive import derive
from cosmoflow.stages.infer import infer
from cosmoflow.stages.inspect import inspect
from cosmoflow.stages.paint import paint
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.urls import open_group_for_writing
from tests.cases import each
from tests.conftest import BOX, displaced_lattice, refused
from tests.doors.conftest import store_particles


def paint_filled(position, velocity, cells, size, scheme="ngp", mass=None):
    """Paint a whole box in memory and fill it; return the fields and how many found no particle."""
    pieces, block = [(position, velocity, mass)], Block((0, 0, 0), (cells,) * 3)
    count = len(position)
    mean = 1.0 if mass is None else float(mass.mean())
    fields = paint_block(
        pieces, block, cells, size, scheme, count=count, mean_mass=mean, background=(7.0, 8.0, 9.0)
    )
    whole = fields["velocity"].copy()
    where = block, cells, size
    left = fill_velocity(whole, fields["density"], pieces, *where, count=count)
    # The same in batches of particles.
    density, batch = fields["density"], max(1, count // 7)
    found = fill_velocity(fields["velocity"], density, pieces, *where, count=count, batch=batch)
    assert found == left
    np.testing.assert_array_equal(fields["velocity"], whole)
    return fields, left


# The estimator


@each("first", [0, 1, 2])
def test_a_lattice_gives_its_velocity_to_the_cells_around_every_particle(first):
    # A particle in every third cell: the nearest to a cell is in it or beside it, also around the
    # periodic border.
    cells, size, each = 15, 30.0, 5
    index = np.indices((each,) * 3).reshape(3, -1).T
    position = ((3 * index + first + 0.5) * (size / cells)).astype(np.float32)
    velocity = np.random.default_rng(1).normal(0.0, 300.0, position.shape).astype(np.float32)
    fields, left = paint_filled(position, velocity, cells, size)
    nearest = (np.arange(cells) - first + 1) // 3 % each
    expected = velocity.reshape(each, each, each, 3)[np.ix_(nearest, nearest, nearest)]
    np.testing.assert_array_equal(fields["velocity"], np.moveaxis(expected, -1, 0))
    assert left == 0
    # Momentum and density are as they were: nothing where there is no particle.
    assert np.count_nonzero(fields["density"]) == each**3
    assert np.count_nonzero(fields["momentum"][0]) == each**3


@each("scheme", ["ngp", "cic", "pcs"])
def test_random_particles_agree_with_a_tree(scheme):
    cells, size, count = 24, 60.0, 150
    rng = np.random.default_rng(2)
    position = rng.uniform(0.0, size, (count, 3)).astype(np.float32)
    velocity = rng.normal(0.0, 300.0, (count, 3)).astype(np.float32)
    fields, _ = paint_filled(position, velocity, cells, size, scheme)
    centres = (np.indices((cells,) * 3).reshape(3, -1).T + 0.5) * (size / cells)
    distance, row = cKDTree(position.astype(float), boxsize=size).query(centres)
    found = fields["velocity"].reshape(3, -1).T
    # Edges of wide clouds leave masses that are too small for a velocity, see docs/painting.md.
    empty = fields["density"].reshape(-1) * count / cells**3 < 2.0**-26
    near = distance <= fill_reach(cells, count) * size / cells
    assert empty.sum() > 1000
    np.testing.assert_array_equal(found[empty & near], velocity[row[empty & near]])
    ratio = fields["momentum"] / np.where(fields["density"] > 0.0, fields["density"], 1.0)
    np.testing.assert_allclose(found[~empty], ratio.reshape(3, -1).T[~empty], rtol=1e-5, atol=1e-3)


def test_beyond_the_reach_the_mean_flow_stays():
    cells, size = 32, 32.0
    rng = np.random.default_rng(3)
    # 4096 particles have a reach of 8 cells; all are in one corner.
    position = rng.uniform(0.0, 4.0, (4096, 3)).astype(np.float32)
    velocity = np.full((4096, 3), 300.0, np.float32)
    fields, left = paint_filled(position, velocity, cells, size)
    assert fill_reach(cells, 4096) == 8
    far = fields["velocity"][:, 20, 20, 20]
    np.testing.assert_array_equal(far, [7.0, 8.0, 9.0])
    np.testing.assert_array_equal(fields["velocity"][:, 6, 2, 2], 300.0)
    assert left == (fields["velocity"][0] == 7.0).sum() > 0


def test_of_two_at_one_distance_the_smaller_coordinates_count_in_any_order():
    # Cell 3's centre, 3.5, is as far from 1.5 as from 5.5.
    position = np.array([[5.5, 3.5, 3.5], [1.5, 3.5, 3.5]], np.float32)
    velocity = np.array([[50.0, 0.0, 0.0], [10.0, 0.0, 0.0]], np.float32)
    for order in ([0, 1], [1, 0]):
        fields, _ = paint_filled(position[order], velocity[order], 8, 8.0)
        assert fields["velocity"][0, 3, 3, 3] == 10.0
        assert fields["velocity"][0, 4, 3, 3] == 50.0


def test_particles_without_mass_are_passed_over():
    position = np.array([[0.5, 0.5, 0.5], [2.5, 0.5, 0.5]], np.float32)
    velocity = np.array([[10.0, 0.0, 0.0], [99.0, 0.0, 0.0]], np.float32)
    fields, _ = paint_filled(position, velocity, 4, 4.0, mass=np.array([2.0, 0.0]))
    assert fields["density"][2, 0, 0] == 0.0
    np.testing.assert_array_equal(fields["velocity"][0], 10.0)


@each("kind", ["plain", "interlaced tsc", "redshift space"])
def test_the_fill_is_the_same_however_the_box_is_cut(kind, serial_run, tmp_path, particle_store):
    own = {
        "plain": {},
        "interlaced tsc": {"interlaced": True, "scheme": "tsc"},
        "redshift space": {"redshift_space": "y"},
    }[kind]
    particles = particle_store(8, mass=kind == "plain")
    order = np.random.default_rng(5).permutation(512)
    shuffled = store_particles(
        str(tmp_path / "shuffled.zarr"), particles.position[order], particles.velocity[order]
    )
    if particles.mass is not None:
        group = open_group_for_writing(shuffled)
        group.create_array("mass", shape=(512,), chunks=(512,), dtype="float64")[:] = (
            particles.mass[order]
        )
    found = []
    for index, (shard, piece, url) in enumerate([(20, 512, particles.url), (12, 200, shuffled)]):
        options = {"grid": 20, "shard": shard, "chunk": shard, "particles_per_task": piece}
        run = serial_run(paint={**options, "fill": "nearest", **own})
        out = str(tmp_path / f"fields-{index}.zarr")
        paint(url, out, run)
        found.append(FieldStore(out))
    first = found[0]
    assert first.metadata.sampling.empty_share > 0.05
    assert first.metadata.sampling.fill == "nearest"
    for other in found[1:]:
        assert other.metadata.sampling == first.metadata.sampling
        for name in first.variables:
            np.testing.assert_array_equal(other.read(name), first.read(name))
    # The mean flow is in no cell any more: every empty one has a particle within the reach.
    plain = str(tmp_path / "background.zarr")
    paint(particles.url, plain, serial_run(paint={"grid": 20, **own}))
    empty = FieldStore(plain).read("density") * 512 / 20**3 < 2.0**-26
    before, after = FieldStore(plain).read("velocity"), first.read("velocity")
    np.testing.assert_array_equal(before[:, ~empty], after[:, ~empty])
    assert (before[:, empty] != after[:, empty]).any(axis=0).all()


def test_a_fill_without_a_velocity_is_refused():
    options = {"paint": {"fill": "nearest", "fields": ("density",)}}
    refused(ConfigError, 2, lambda: load_settings(options=options), "fill")


# The count


@each("fields", [("density", "momentum", "velocity"), ("velocity",)])
def test_the_empty_cells_are_counted_to_the_last(fields, sparse, serial_run, tmp_path, capsys):
    out = str(tmp_path / "fields.zarr")
    paint(sparse, out, serial_run(paint={"grid": 16, "shard": 6, "chunk": 6, "fields": fields}))
    position, velocity = displaced_lattice(8)
    density = paint_block(
        [(position, velocity, None)], Block((0, 0, 0), (16,) * 3), 16, BOX,
        count=512, fields=("density",),
    )["density"]  # fmt: skip
    expected = {
        "particles_per_cell": 0.125,
        "empty_share": float((density == 0.0).mean()),
        "fill": "background",
        "equal_masses": True,
    }
    assert 0.2 < expected["empty_share"] < 0.8
    assert inspect(out)["sampling"] == expected
    assert inspect(out)["shards"] == {"fields": "27 of 27"}
    # The squares are summed by shards, in whole (km/s)^2.
    true = FieldStore(out).read("velocity").astype(np.float64)
    rms = float(np.sqrt(np.square(true).sum(axis=0).mean()))
    assert inspect(out)["velocity_rms"] == pytest.approx(rms, rel=1e-4)
    assert run_app(["info", out]) == 0
    printed = capsys.readouterr().out
    assert f"  rms velocity: {rms:.1f} km/s (3-D, over all cells)\n" in printed
    share = f"{100 * expected['empty_share']:.2g} %"
    assert f"  empty cells: {share}, velocity there: the mean flow of the box\n" in printed
    assert "  particles per cell: 0.125\n" in printed
    assert run_app(["info", out, "-v"]) == 0
    assert f"sampling.empty_share: {expected['empty_share']}" in capsys.readouterr().out


def test_a_resumed_run_counts_the_shards_that_were_finished_before(sparse, serial_run, tmp_path):
    class StopError(Exception):
        pass

    def stop(event):
        if isinstance(event, StageAdvanced) and event.done == 5:
            raise StopError

    whole, parts = str(tmp_path / "whole.zarr"), str(tmp_path / "parts.zarr")
    options = {"grid": 16, "shard": 6, "chunk": 6}
    paint(sparse, whole, serial_run(paint=options))
    with pytest.raises(StopError):
        paint(sparse, parts, serial_run(paint=options, listener=stop))
    assert "sampling" not in open_group_for_writing(parts).attrs
    paint(sparse, parts, serial_run(paint=options, existing="resume"))
    found = FieldStore(parts).metadata.sampling
    assert found == FieldStore(whole).metadata.sampling
    assert FieldStore(parts).velocity_rms == FieldStore(whole).velocity_rms > 0.0
    assert found.empty_share == (FieldStore(parts).read("density") == 0.0).mean()


def test_the_number_of_particles_follows_from_the_density(sparse, serial_run, tmp_path):
    """By `derive` and `infer`; it is refused where the density does not tell it."""
    fields, counts, flow = (str(tmp_path / f"{name}.zarr") for name in ("fields", "counts", "flow"))
    run = serial_run(paint={"grid": 10, "scheme": "ngp"})
    paint(sparse, fields, run)
    found = derive(fields, counts, ["count"], run)["count"]
    position, _ = displaced_lattice(8)
    places = tuple((position * (10 / BOX)).astype(int).T)
    expected = np.zeros((10,) * 3)
    np.add.at(expected, places, 1)
    assert expected.min() == 0.0
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.attrs["particles_per_cell"] == 0.512
    options = serial_run(infer={"fields": ("count",)})
    np.testing.assert_array_equal(infer(fields, flow, "linear:8", options)["count"], found)
    again = str(tmp_path / "again.zarr")
    spectral = serial_run(derive={"method": "spectral"})
    np.testing.assert_array_equal(derive(fields, again, ["count"], spectral)["count"], found)

    group, said = open_group_for_writing(fields), FieldStore(fields).metadata.sampling
    for equal, mean, mass, word in (
        (False, 0.512, None, "individual masses"),
        (None, 0.512, None, "equal_masses: true"),
        (True, None, None, "no particles_per_cell"),
        (None, 0.512, 1e10, None),
    ):
        changed = replace(said, equal_masses=equal, particles_per_cell=mean)
        group.attrs.update({"sampling": changed.to_attribute(), "particle_mass": mass or 1.0})
        if mass is None:
            del group.attrs["particle_mass"]
        out = str(tmp_path / f"{equal}-{mean}.zarr")
        if word is None:
            np.testing.assert_array_equal(derive(fields, out, ["count"], run)["count"], found)
            continue
        for command in (
            lambda out=out: derive(fields, out, ["count"], run),
            lambda out=out: infer(fields, out, "linear:8", options),
        ):
            refused(DataError, 3, command, "attribute sampling", word)


@each(
    "said",
    [
        {"empty_share": 1.5},
        {"empty_share": 0.1, "particles_per_cell": -1.0},
        {"empty_share": 0.1, "equal_masses": "yes"},
        3,
    ],
)
def test_a_sampling_that_makes_no_sense_is_refused(said, sparse, serial_run, tmp_path):
    out = str(tmp_path / "fields.zarr")
    paint(sparse, out, serial_run(paint={"grid": 4}))
    open_group_for_writing(out).attrs["sampling"] = said
    refused(DataError, 3, lambda: FieldStore(out), "sampling")
