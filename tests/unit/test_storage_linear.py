"""Linear velocities appended to a store, file:// URLs and unknown ones (see test_storage.py)."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from cosmoflow.config import CosmologyConfig
from cosmoflow.errors import DataError, StorageError
from cosmoflow.numerics.blocks import Block
from cosmoflow.storage.field_writing import create_fields, write_block
from cosmoflow.storage.fields import FieldStore, open_fields
from cosmoflow.storage.flows import adding_linear_velocity, adding_wiener_velocity
from cosmoflow.storage.metadata import BoxMetadata, make_provenance
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.particles import ParticleStore
from cosmoflow.storage.urls import list_names, open_group_for_writing
from tests.cases import each
from tests.conftest import keep_linear_velocity

GRID = 8
DENSITY = np.random.default_rng(7).random((GRID, GRID, GRID), np.float32)


def begin(url):
    metadata = BoxMetadata(16.0, 0.0, CosmologyConfig(), None, make_provenance("test", {}))
    create_fields(url, metadata, GRID, ("density",), shard=GRID, chunk=4)


def fill(url):
    write_block(url, Block((0, 0, 0), (GRID, GRID, GRID)), 0, {"density": DENSITY})
    finish_group(open_group_for_writing(url))


@pytest.fixture
def fields(tmp_path):
    return make_fields(tmp_path)


def make_fields(folder):
    url = str(folder / "fields.zarr")
    begin(url)
    fill(url)
    return url


def linear(radius):
    return np.full((3, GRID, GRID, GRID), radius, np.float32)


def test_linear_velocity_is_added_scale_by_scale(fields):
    assert FieldStore(fields).smoothing_scales() == []
    for radius, index in ((2.0, 0), (0.0, 1), (2.0, 0), (4.5, 2), (0.0, 1)):
        assert keep_linear_velocity(fields, radius, linear(radius)) == index
    radii = [2.0, 0.0, 4.5]
    store = FieldStore(fields)
    assert store.smoothing_scales() == radii
    for index, radius in enumerate(radii):
        read = store.read("linear_velocity", lead=(index,))
        np.testing.assert_array_equal(read, linear(radius))
    np.testing.assert_array_equal(store.read("density"), DENSITY)
    with xr.open_zarr(fields, consolidated=False) as dataset:
        assert dataset.linear_velocity.dims == ("smoothing", "component", "x", "y", "z")
        assert dataset.smoothing.values.tolist() == radii
        assert dataset.smoothing.attrs["units"] == "Mpc/h"
        assert dataset.linear_velocity.sel(smoothing=4.5).mean() == 4.5


@each("done", [0, 1])
def test_linear_velocity_that_is_refused_leaves_a_whole_store(tmp_path, done):
    fields = make_fields(tmp_path)
    for radius in range(done):
        keep_linear_velocity(fields, float(radius), linear(0))
    with pytest.raises(DataError), adding_linear_velocity(fields, 9.0):
        raise DataError("no velocity")
    assert len(FieldStore(fields).smoothing_scales()) == done
    with open_fields(fields) as dataset:
        assert dataset.sizes.get("smoothing", 0) == done
    assert keep_linear_velocity(fields, 9.0, linear(9)) == done
    np.testing.assert_array_equal(FieldStore(fields).read("linear_velocity", lead=(done,)), 9.0)


def test_linear_velocity_killed_before_its_listing_is_added_again(fields):
    keep_linear_velocity(fields, 1.0, linear(1))
    shutil.rmtree(Path(fields, "smoothing"))
    assert keep_linear_velocity(fields, 2.0, linear(2)) == 0
    assert FieldStore(fields).smoothing_scales() == [2.0]


def test_file_urls(tmp_path):
    url = f"file://{tmp_path}/my%20box.zarr"
    begin(url)
    fill(url)
    assert list_names(f"file://{tmp_path}") == ["my box.zarr"]
    np.testing.assert_array_equal(FieldStore(url).read("density"), DENSITY)
    with open_fields(url) as dataset:
        np.testing.assert_array_equal(dataset.density, DENSITY)


@each("use", [FieldStore, ParticleStore, begin, list_names])
def test_unknown_scheme(use):
    with pytest.raises(StorageError, match="ftp") as caught:
        use("ftp://host/box.zarr")
    assert "s3://" in caught.value.limit


@each("name", ["linear_velocity", "wiener_velocity"])
def test_a_velocity_of_another_program_is_not_replaced(tmp_path, name):
    """A user may need it, and it says neither a radius nor a filter."""
    fields = make_fields(tmp_path)
    group = open_group_for_writing(fields)
    lead = ("smoothing",) if name == "linear_velocity" else ()
    theirs = np.ones((*(1 for _ in lead), 3, GRID, GRID, GRID), np.float32)
    group.create_array(name, data=theirs, dimension_names=(*lead, "component", "x", "y", "z"))
    adding = (
        adding_linear_velocity(fields, 9.0) if lead else adding_wiener_velocity(fields, "filter")
    )
    with pytest.raises(DataError, match="of another program"), adding:
        pass
    np.testing.assert_array_equal(group[name][:], theirs)


def test_a_linear_velocity_killed_before_it_had_a_radius_is_added_again(fields):
    """The variable was created, and the coordinate was not."""
    with pytest.raises(KeyboardInterrupt), adding_linear_velocity(fields, 9.0):
        raise KeyboardInterrupt
    del open_group_for_writing(fields)["smoothing"]
    assert keep_linear_velocity(fields, 2.0, linear(2.0)) == 0
    assert FieldStore(fields).smoothing_scales() == [2.0]


def test_the_first_finished_velocity_is_read(fields):
    for radius in (4.0, 8.0):
        keep_linear_velocity(fields, radius, linear(radius))
    open_group_for_writing(fields)["smoothing"][0] = np.nan
    assert FieldStore(fields).first_scale() == (1, 8.0)
    open_group_for_writing(fields)["smoothing"][1] = np.nan
    with pytest.raises(DataError, match="no linear velocity of the store is finished"):
        FieldStore(fields).first_scale()
