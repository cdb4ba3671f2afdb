"""Fields stores that xarray wrote: what is in another order is honoured, the rest is refused."""

import json

import numpy as np
import pytest
import xarray as xr
import zarr

import cosmoflow
from cosmoflow.cli.app import run_app
from cosmoflow.errors import DataError
from cosmoflow.storage.fields import FieldStore, open_fields
from cosmoflow.storage.layout import same_unit
from tests.cases import each
from tests.conftest import refused
from tests.doors.foreign import BOX, CENTRES, GRID, dataset, fields, write

# zarr warns of consolidated metadata and of labels of fixed length, which xarray writes.
pytestmark = [
    pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning"),
    pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning"),
]

PACKED = {
    "density": {"dtype": "int16", "scale_factor": 5e-4, "add_offset": 8.0, "_FillValue": -32768},
    "velocity": {"dtype": "int16", "scale_factor": 0.05, "add_offset": 0.0, "_FillValue": -32768},
}


def check(url, density_error=0.0, velocity_error=0.0):
    density, velocity = fields()
    store = FieldStore(url)
    assert np.abs(store.read("density") - density).max() <= density_error
    assert np.abs(store.read("velocity") - velocity).max() <= velocity_error
    one = store.read("velocity", lead=(1,))
    assert np.abs(one - velocity[1]).max() <= velocity_error
    assert store.read("density").dtype == one.dtype == np.float32
    opened = open_fields(url)
    assert opened["velocity"].dims == ("component", "x", "y", "z")
    assert np.abs(opened["density"].values - density).max() <= density_error
    assert np.abs(opened["velocity"].sel(component="z").values - velocity[2]).max() <= (
        velocity_error
    )


@each(
    "order",
    [("component", "z", "y", "x"), ("x", "y", "z", "component"), ("y", "component", "z", "x")],
)
def test_dimensions_in_any_order(tmp_path, order):
    check(write(dataset().transpose(*order), tmp_path / "a.zarr"))


def test_each_variable_has_its_own_order(tmp_path):
    data = dataset()
    data["velocity"] = data["velocity"].transpose("z", "component", "y", "x")
    check(write(data, tmp_path / "a.zarr"))


@each("labels", ["zyx", "yzx"])
def test_components_in_any_order(tmp_path, labels):
    check(write(dataset().sel(component=list(labels)), tmp_path / "a.zarr"))


@each("dtype", [">f4", "float64", ">f8"])
def test_numbers_of_any_size_and_byte_order(tmp_path, dtype):
    check(write(dataset(dtype), tmp_path / "a.zarr"))


def test_packed_numbers(tmp_path):
    check(write(dataset(), tmp_path / "a.zarr", encoding=PACKED), 3e-4, 0.03)


def test_packed_numbers_in_another_order(tmp_path):
    data = dataset().transpose("z", "y", "x", "component").sel(component=list("zxy"))
    check(write(data, tmp_path / "a.zarr", encoding=PACKED, consolidated=True), 3e-4, 0.03)


def test_missing_values_are_no_numbers(tmp_path):
    data = dataset()
    data["density"][1, 2, 3] = np.nan
    for name, fill in (("a", {"_FillValue": -999.0}), ("b", {"_FillValue": np.nan})):
        url = write(data, tmp_path / name, encoding={"density": fill})
        refused(DataError, 3, lambda url=url: FieldStore(url).read("density"), "not finite", "1 ")


def test_chunks_of_any_shape(tmp_path):
    """A file's pages make chunks one cell thin: what is added to the store has cubes."""
    data = dataset().chunk(x=1, y=GRID, z=5)
    url = write(data, tmp_path / "a.zarr")
    check(url)
    assert (FieldStore(url).shard, FieldStore(url).chunk) == (GRID, GRID)


@pytest.mark.filterwarnings("ignore:.*(particles per cell|scatter):cosmoflow.CosmoflowWarning")
@each(("order", "consolidated"), [(None, True), ("yzx", False)])
def test_flows_are_added_in_the_order_of_the_store(tmp_path, order, consolidated):
    density, _ = fields()
    data = dataset()
    if order is not None:
        data = data.sel(component=list(order)).transpose("z", "y", "x", "component")
    url = write(data, tmp_path / "a.zarr", consolidated=consolidated)
    truth = cosmoflow.infer_array(density, BOX, "wiener", redshift=0.0)["velocity"]
    assert float(np.abs(truth).max()) > 5.0
    # The first run makes the flow and keeps it in the store; the second finds it there.
    for name in ("first", "second"):
        found = cosmoflow.infer(url, str(tmp_path / name), "wiener")["velocity"]
        np.testing.assert_allclose(found, truth, atol=2e-3)
    kept = xr.open_zarr(url, consolidated=False)["wiener_velocity"]
    np.testing.assert_allclose(kept.sel(component=list("xyz")).values, truth, atol=2e-3)


# What is refused


def moved(values, **attributes):
    return dataset().assign_coords(x=("x", values, {"units": "Mpc/h", **attributes}))


@each(
    ("data", "words"),
    [
        (dataset().rename(x="lat"), ["dimensions", "lat", "(x, y, z)", "rename"]),
        (dataset().rename_dims(x="dim_0"), ["dim_0", "(x, y, z)"]),
        (dataset().expand_dims(time=1), ["time"]),
        (dataset().assign_coords(component=[0, 1, 2]), ["labels", "0, 1, 2", "x, y, z"]),
        (dataset().isel(x=slice(None, None, -1)), ["descends", "sortby('x')"]),
        (moved(CENTRES - 1.0), ["edges", "half a cell", "from 0, 2 to 22", "from 1, 3 to 23"]),
        (moved(CENTRES * 1e3), ["kpc/h", "from 1000"]),
        (moved(CENTRES, units="kpc/h"), ["unit", "kpc/h", "Mpc/h"]),
        (moved(CENTRES, units="Mpc"), ["unit", "Mpc/h"]),
        (moved(np.linspace(0.0, BOX, GRID) ** 1.1), ["coordinate", "box_size of 24"]),
        (dataset(box_size=48.0), ["coordinate", "from 1, 3 to 23", "from 2, 6 to 46"]),
        (dataset("complex64"), ["complex64", "real"]),
        (dataset().assign(density=dataset()["density"] > 1.0), ["bool", "real"]),
        (
            dataset().assign(velocity=dataset()["velocity"].assign_attrs(units="m/s")),
            ["unit", "m/s", "km/s"],
        ),
        (
            dataset().assign(density=dataset()["density"].assign_attrs(units="Msun/Mpc^3")),
            ["unit", "Msun/Mpc^3"],
        ),
        (dataset().isel(component=[0, 1]), ["labels", "x, y"]),
        (dataset().isel(x=slice(0, 6)), ["cubic"]),
    ],
)
def test_what_cannot_be_read_right_is_refused(tmp_path, data, words):
    url = write(data, tmp_path / "a.zarr")
    refused(DataError, 3, lambda: FieldStore(url), url, *words)


def test_zarr_format_2_is_refused_with_a_remedy_that_works(tmp_path, capsys):
    old, new = str(tmp_path / "old.zarr"), str(tmp_path / "new.zarr")
    for options in ({}, {"consolidated": True, "mode": "w"}):
        write(dataset(), old, zarr_format=2, **options)
        with pytest.raises(DataError) as caught:
            FieldStore(old)
    assert run_app(["info", old]) == 3
    assert "zarr format" in capsys.readouterr().err
    command = caught.value.remedy.partition(": ")[2].replace("NEW", repr(new))
    eval(command, {"xarray": xr})
    check(new)


def test_the_remedy_for_descending_coordinates_works(tmp_path):
    url = write(dataset().isel(x=slice(None, None, -1)), tmp_path / "a.zarr")
    check(write(xr.open_zarr(url, consolidated=False).sortby("x"), tmp_path / "b.zarr"))


def test_other_variables_are_left_alone(tmp_path):
    data = dataset().assign(mask=(("lat", "lon"), np.ones((3, 4), bool)))
    check(write(data, tmp_path / "a.zarr"))


def test_stores_without_coordinates_have_cell_centres(tmp_path):
    check(write(dataset().drop_vars(["x", "y", "z", "component"]), tmp_path / "a.zarr"))


@each(
    ("found", "expected", "same"),
    [
        ("Mpc/h", "Mpc/h", True), ("h^-1 Mpc", "Mpc/h", True), ("Mpc h**-1", "Mpc/h", True),
        ("cMpc/h", "Mpc/h", True), ("kpc/h", "Mpc/h", False), ("Mpc", "Mpc/h", False),
        ("km s-1", "km/s", True), ("km/s", "km/s", True), ("km s$^{-1}$", "km/s", True),
        ("m/s", "km/s", False), ("cm/s", "km/s", False), ("", "km/s", True),
        ("dimensionless", "1", True), ("1", "1", True), ("counts", "1", False),
    ],
)  # fmt: skip
def test_units_have_several_spellings(found, expected, same):
    assert same_unit(found, expected) is same


# Written elsewhere


@pytest.mark.filterwarnings("ignore:.*(particles per cell|scatter):cosmoflow.CosmoflowWarning")
def test_what_open_fields_returns_can_be_written(tmp_path, fields_store):
    made = fields_store(12, shard=8, chunk=4)
    data = open_fields(made.url)
    truth = cosmoflow.infer(made.url, str(tmp_path / "v.zarr"), "wiener")["velocity"].values
    data.to_netcdf(tmp_path / "copy.nc")
    found = xr.open_dataset(tmp_path / "copy.nc")
    np.testing.assert_array_equal(found["velocity"], made.velocity)
    assert found["component"].values.tolist() == ["x", "y", "z"]
    assert json.loads(found.attrs["cosmology"])["Omega_m"] == 0.31
    copies = {"as it is": data, "turned": data.chunk(5).transpose(..., "x")}
    for name, copy in copies.items():
        copy.to_zarr(tmp_path / name)
        again = cosmoflow.infer(str(tmp_path / name), str(tmp_path / f"{name}-v"), "wiener")
        np.testing.assert_array_equal(again["velocity"], truth)
        assert FieldStore(str(tmp_path / name)).metadata == made.metadata


def test_what_inference_returns_can_be_written(tmp_path, fields_store, serial_run):
    made = fields_store(12)
    run = serial_run(infer={"region": "0:24,4:20,0:8"})
    part = cosmoflow.infer(made.url, str(tmp_path / "v.zarr"), "linear:4", run)
    whole = cosmoflow.infer_array(made.density, 24.0, "linear:4", redshift=0.0)
    for name, data in (("part", part), ("whole", whole)):
        data.to_zarr(tmp_path / f"{name}.zarr")
        data.to_netcdf(tmp_path / f"{name}.nc")
        found = xr.open_dataset(tmp_path / f"{name}.nc")["velocity"]
        np.testing.assert_array_equal(found, data["velocity"])
    assert FieldStore(str(tmp_path / "whole.zarr")).metadata.box_size == 24.0
    refused(DataError, 3, lambda: FieldStore(str(tmp_path / "part.zarr")), "cubic")


def test_attributes_of_stores_stay_as_they_were(fields_store):
    made = fields_store(12)
    attributes = zarr.open_group(made.url).attrs
    assert attributes["cosmology"]["Omega_m"] == 0.31
    assert attributes["provenance"]["stage"] == "paint"
