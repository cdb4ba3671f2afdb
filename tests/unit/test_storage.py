"""Stores: what goes in comes out, xarray reads them, and what is not whole is refused."""

import shutil
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import xarray as xr
import zarr

from cosmoflow.errors import (
    DataError,
    IncompleteError,
    StorageError,
)
from cosmoflow.numerics.blocks import Block
from cosmoflow.stages.paint import paint
from cosmoflow.storage import urls
from cosmoflow.storage.fields import FieldStore, open_fields
from cosmoflow.storage.particles import ParticleStore, create_particles
from tests.cases import each
from tests.conftest import keep_linear_velocity, make_metadata, refused

WHOLE = Block((0, 0, 0), (12, 12, 12))
NEW = {"shard": 8, "chunk": 4}


# Round trips


@each("mass", [False, True])
def test_particles_come_back(particle_store, mass):
    made = particle_store(8, mass=mass)
    store = ParticleStore(made.url)
    assert (store.count, store.has_mass) == (512, mass)
    assert store.metadata.box_size == 64.0
    # Together they are the matter of the box: 0.31 of 2.775e11 M_sun/h in a cubic Mpc/h.
    total = store.metadata.particle_mass * store.count
    assert total == pytest.approx(0.31 * 2.77536627e11 * store.metadata.box_size**3)
    ranges = store.ranges(100)
    assert [start for start, _ in ranges] == [0, 100, 200, 300, 400, 500]
    parts = [store.read(*piece) for piece in ranges]
    np.testing.assert_array_equal(np.concatenate([p.position for p in parts]), made.position)
    np.testing.assert_array_equal(np.concatenate([p.velocity for p in parts]), made.velocity)
    if mass:
        np.testing.assert_array_equal(np.concatenate([p.mass for p in parts]), made.mass)
    else:
        assert parts[0].mass is None


def test_fields_come_back_block_by_block_and_whole(fields_store):
    made = fields_store(12)
    store = FieldStore(made.url)
    assert (store.grid, store.shard, store.cell_size) == (12, 8, 2.0)
    assert store.metadata == made.metadata
    assert store.variables == ["density", "velocity"]
    np.testing.assert_array_equal(store.read("density"), made.density)
    np.testing.assert_array_equal(store.read("velocity"), made.velocity)
    found = store.read_block("velocity", Block((-3, 10, 5), (5, 4, 20)))
    expected = made.velocity
    for axis, indices in enumerate((range(-3, 2), range(10, 14), range(5, 25)), start=1):
        expected = np.take(expected, list(indices), axis=axis, mode="wrap")
    np.testing.assert_array_equal(found, expected)


def test_xarray_opens_fields_with_no_help(fields_store):
    made = fields_store(12)
    keep_linear_velocity(made.url, 2.0, made.velocity)
    data = xr.open_zarr(made.url, consolidated=False)
    assert data["density"].dims == ("x", "y", "z")
    assert data["velocity"].dims == ("component", "x", "y", "z")
    assert data["linear_velocity"].dims == ("smoothing", "component", "x", "y", "z")
    for axis in ("x", "y", "z"):
        np.testing.assert_allclose(data[axis], 1.0 + 2.0 * np.arange(12), rtol=1e-14)
        assert data[axis].attrs["units"] == "Mpc/h"
    assert data["component"].values.tolist() == ["x", "y", "z"]
    np.testing.assert_array_equal(data["smoothing"], [2.0])
    assert data["density"].attrs["units"] == "1"
    for name in ("velocity", "linear_velocity"):
        assert data[name].attrs["units"] == "km/s"
    assert all(data[name].attrs["long_name"] for name in data.data_vars)
    assert all(data[name].dtype == np.float32 for name in data.data_vars)
    np.testing.assert_array_equal(data["velocity"].sel(component="y"), made.velocity[1])
    np.testing.assert_array_equal(data["density"].sel(x=5.0, y=1.0, z=23.0), made.density[2, 0, 11])
    assert data.attrs["format"] == "cosmoflow/fields"
    assert data.attrs["box_size"] == 24.0


def test_open_fields_makes_one_chunk_of_a_shard(fields_store):
    made = fields_store(12)
    assert open_fields(made.url)["density"].chunks == ((8, 4),) * 3
    assert open_fields(made.url, shards=False)["density"].chunks == ((4, 4, 4),) * 3
    np.testing.assert_array_equal(open_fields(made.url)["velocity"].values, made.velocity)


@each("name", ["fields.zarr", "a folder/with space é.zarr"])
def test_file_urls_are_paths(tmp_path, fields_store, name):
    url = "file://" + quote(str(tmp_path / name))
    made = fields_store(12, name=url)
    assert (tmp_path / name / "zarr.json").is_file()
    for location in (url, str(tmp_path / name)):
        np.testing.assert_array_equal(FieldStore(location).read("density"), made.density)
    assert urls.exists(url)
    urls.remove(url)
    assert not (tmp_path / name).exists()
    assert not urls.exists(url)


def test_unknown_kinds_of_url_are_refused():
    refused(StorageError, 4, lambda: FieldStore("ftp://host/a.zarr"), "ftp", "s3://")


# What is not what it should be


def test_an_unfinished_store_is_refused(fields_store, tmp_path):
    made = fields_store(12, finish=False)
    refused(IncompleteError, 5, lambda: FieldStore(made.url), made.url, "--resume")
    url = str(tmp_path / "p.zarr")
    create_particles(url, 10, make_metadata())
    refused(IncompleteError, 5, lambda: ParticleStore(url), url, "--resume")


def test_a_store_without_the_mark_counts_as_whole(fields_store, tmp_path):
    made = fields_store(12)
    url = str(tmp_path / "by-xarray.zarr")
    data = xr.open_zarr(made.url, consolidated=False).load()
    assert data.attrs.pop("status") == "complete"
    for name in data.variables:
        data[name].encoding = {}
    data.drop_vars("component").to_zarr(url, zarr_format=3, consolidated=False)
    store = FieldStore(url)
    np.testing.assert_array_equal(store.read("velocity"), made.velocity)
    assert store.metadata.box_size == 24.0


def test_a_store_of_the_other_kind_is_refused(fields_store, particle_store):
    fields, particles = fields_store(12).url, particle_store(4).url
    refused(DataError, 3, lambda: ParticleStore(fields), "cosmoflow/particles", fields)
    refused(DataError, 3, lambda: FieldStore(particles), "cosmoflow/fields", particles)


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    refused(DataError, 3, lambda: FieldStore(str(tmp_path)), "zarr")


def test_a_missing_store_is_refused(tmp_path):
    for kind in (FieldStore, ParticleStore):
        refused(StorageError, 4, lambda kind=kind: kind(str(tmp_path / "none")), "none")


@each("version", [2, 0, "1", None])
def test_another_format_version_is_refused(fields_store, version):
    made = fields_store(12)
    zarr.open_group(made.url, mode="r+").attrs["format_version"] = version
    refused(DataError, 3, lambda: FieldStore(made.url), "version")


@each(
    ("name", "value"),
    [
        ("box_size", -5.0), ("box_size", "wide"), ("box_size", None), ("box_size", "nan"),
        ("redshift", None), ("cosmology", {"h": 0.7, "Omega_m": 7.0}), ("cosmology", 5),
        ("box_size", "inf"),
    ],
)  # fmt: skip
def test_attributes_without_sense_are_refused(fields_store, name, value):
    made = fields_store(12)
    zarr.open_group(made.url, mode="r+").attrs[name] = value
    refused(DataError, 3, lambda: FieldStore(made.url), made.url)


def test_a_missing_attribute_is_named(fields_store):
    made = fields_store(12)
    del zarr.open_group(made.url, mode="r+").attrs["redshift"]
    refused(DataError, 3, lambda: FieldStore(made.url), "redshift")


def test_a_missing_variable_is_named(fields_store):
    store = FieldStore(fields_store(12).url)
    store.require("density", "velocity")
    refused(DataError, 3, lambda: store.require("density", "momentum"), "'momentum'", "velocity")


def test_particles_of_the_wrong_shape_are_refused(particle_store):
    made = particle_store(4)
    group = zarr.open_group(made.url, mode="r+")
    group.create_array("mass", shape=(7,), dtype="float64")
    refused(DataError, 3, lambda: ParticleStore(made.url), "mass", "(7,)", "64")


def test_values_that_are_not_finite_are_found(fields_store):
    made = fields_store(12)
    zarr.open_group(made.url, mode="r+")["velocity"][1, 9, 3, 4] = np.inf
    store = FieldStore(made.url)
    store.read("density")
    store.read_block("velocity", Block((0, 0, 0), (9, 12, 12)))
    refused(DataError, 3, lambda: store.read("velocity"), "velocity", "1 cells", made.url)


def test_a_missing_chunk_of_fields_is_found_and_named(fields_store):
    made = fields_store(12)
    (Path(made.url) / "density" / "c" / "1" / "0" / "1").unlink()
    store = FieldStore(made.url)
    store.read("velocity")
    np.testing.assert_array_equal(
        store.read_block("density", Block((0, 0, 0), (8, 12, 12))), made.density[:8]
    )
    inside = Block((7, 0, 9), (2, 2, 2))
    for block in (inside, WHOLE):
        refused(
            DataError, 3, lambda block=block: store.read_block("density", block),
            "density", made.url, str(block.origin),
        )  # fmt: skip


@each("damage", ["truncated", "empty", "overwritten"])
def test_a_damaged_chunk_is_found_and_named(fields_store, damage):
    made = fields_store(12)
    path = Path(made.url) / "velocity" / "c" / "0" / "1" / "0" / "0"
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(
        {"truncated": content[:half], "empty": b"", "overwritten": b"\0" * 64 + content[64:]}[
            damage
        ]
    )
    refused(DataError, 3, lambda: FieldStore(made.url).read("velocity"), "velocity", made.url)


@each("name", ["position", "velocity"])
def test_a_missing_chunk_of_particles_is_found_and_named(
    particle_store, serial_run, tmp_path, name
):
    """Its particles must not count as lying at the origin."""
    made = particle_store(4)
    shutil.rmtree(Path(made.url) / name / "c")
    run = serial_run(paint={"grid": 4})
    refused(DataError, 3, lambda: paint(made.url, str(tmp_path / "out.zarr"), run), name, made.url)


def test_a_damaged_chunk_of_particles_is_found_and_named(particle_store):
    made = particle_store(4)
    path = Path(made.url) / "position" / "c" / "0" / "0"
    path.write_bytes(path.read_bytes()[:40])
    refused(DataError, 3, lambda: ParticleStore(made.url).read(0, 64), made.url, "0 to 64")
