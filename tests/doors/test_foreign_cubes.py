"""Density cubes of others, in memory and in files: read right, or refused in words that help."""

import re

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from astropy import units
from astropy.io import fits

import cosmoflow
from cosmoflow.cli.app import run_app
from cosmoflow.storage.fields import FieldStore
from tests.cases import each
from tests.doors.foreign import (
    BOX,
    CENTRES,
    DENSITY,
    PACKING,
    STEP,
    UNSIGNED,
    VECTOR,
    VELOCITY,
    refused,
)

# Arrays in memory

CUBE = xr.DataArray(DENSITY, dims=("x", "y", "z"))
PLACED = CUBE.assign_coords(dict.fromkeys("xyz", CENTRES))


@pytest.fixture(scope="module")
def linear():
    return cosmoflow.infer_array(DENSITY, BOX, "linear:4", redshift=0.0)["velocity"].values


@each(
    "density",
    [
        CUBE.transpose("z", "y", "x"),
        PLACED.transpose("y", "z", "x"),
        np.asfortranarray(DENSITY),
        np.ma.masked_array(DENSITY, mask=False),
        torch.from_numpy(DENSITY).requires_grad_(),
        DENSITY.astype(">f8"),
        DENSITY * units.dimensionless_unscaled,
    ],
    ids=["turned", "turned with coordinates", "Fortran", "no mask", "gradient", "big", "unit 1"],
)
def test_the_flow_of_an_array_of_any_kind(density, linear):
    found = cosmoflow.infer_array(density, BOX, "linear:4", redshift=0.0)["velocity"]
    np.testing.assert_array_equal(found, linear)


@each(
    ("density", "options", "words"),
    [
        (PLACED.isel(x=slice(None, None, -1)), {}, ["descends"]),
        (PLACED.assign_coords(y=CENTRES * 1e3), {}, ["kpc/h"]),
        (PLACED, {"box_size": 2 * BOX}, ["coordinate", "box_size of 48"]),
        (CUBE.to_dataset(name="rho"), {}, ["dataset", "rho"]),
        (np.ma.masked_array(DENSITY, mask=DENSITY > 3.0), {}, ["masked", "9 cells"]),
        (DENSITY, {"box_size": "24"}, ["number", "'24'"]),
        (DENSITY, {"box_size": [BOX, BOX, BOX]}, ["number", "24.0, 24.0"]),
        (DENSITY, {"box_size": BOX * units.Mpc}, ["number", "Mpc"]),
        (DENSITY, {"redshift": "0"}, ["number", "redshift"]),
        (DENSITY, {"model": []}, ["no model"]),
        (DENSITY, {"cosmology": "planck18"}, ["cosmology", "planck18", "mapping"]),
        (DENSITY, {"model": "linear:nan"}, ["radius", "linear:4"]),
    ],
)
def test_arrays_and_arguments_that_make_no_sense(density, options, words):
    given = {"box_size": BOX, "model": "linear:4", "redshift": 0.0, **options}
    refused(lambda: cosmoflow.infer_array(density, **given), *words)


@each(
    ("density", "velocity"),
    [
        (CUBE.transpose("z", "x", "y"), VECTOR.sel(component=list("zxy"))),
        (DENSITY, VECTOR.transpose("z", "y", "component", "x")),
        (PLACED, VECTOR.sel(component=list("yxz")).transpose("x", "y", "z", "component")),
        (DENSITY.tolist(), tuple(VELOCITY)),
    ],
)
def test_stores_of_arrays_whose_axes_have_names(tmp_path, density, velocity):
    out = str(tmp_path / "f.zarr")
    cosmoflow.store_density(density, out, box_size=BOX, redshift=0, velocity=velocity)
    np.testing.assert_array_equal(FieldStore(out).read("density"), DENSITY)
    np.testing.assert_array_equal(FieldStore(out).read("velocity"), VELOCITY)


@each(
    ("velocity", "words"),
    [
        (np.ma.masked_array(VELOCITY, mask=VELOCITY > 300.0), ["velocity", "masked"]),
        (VECTOR.assign_attrs(units="m/s"), ["m/s", "km/s"]),
        (VECTOR.assign_coords(component=list("rtp")), ["labels", "r, t, p"]),
        (VELOCITY * 1e3, ["speed of light"]),
    ],
)
def test_stores_of_vectors_that_make_no_sense(tmp_path, velocity, words):
    def store():
        cosmoflow.store_density(
            DENSITY, str(tmp_path / "f"), box_size=BOX, redshift=0, velocity=velocity
        )

    refused(store, *words)
    assert not (tmp_path / "f").exists()


# Cubes in files


def virtual(file, _):
    folder = file.filename.rpartition("/")[0]
    layout = h5py.VirtualLayout(DENSITY.shape, "f4")
    for index, part in enumerate(np.split(DENSITY, 2)):
        if index == 0:
            with h5py.File(f"{folder}/0.h5", "w") as source:
                source["density"] = part
        half = slice(6 * index, 6 * index + 6)
        layout[half] = h5py.VirtualSource(f"{folder}/{index}.h5", "density", part.shape)
    file.create_virtual_dataset("density", layout, fillvalue=0.0)


def half_written(file, values):
    array = file.create_dataset("density", values.shape, "f4", chunks=(6, 12, 12))
    array[:6] = values[:6]


def raw(file, values):
    path = f"{file.filename}.raw"
    values[:6].tofile(path)
    places = [(path, 0, values.nbytes)]
    file.create_dataset("density", shape=values.shape, dtype="f4", external=places)


@each(
    ("make", "words"),
    [(virtual, ["1.h5", "missing"]), (half_written, ["never written"]), (raw, ["raw files"])],
)
def test_hdf5_that_would_read_as_zeros(tmp_path, make, words):
    """Half of the cube is not there; as counts, which have any mean, it would be taken."""
    with h5py.File(tmp_path / "cube.h5", "w") as file:
        make(file, DENSITY)
    options = {"box_size": BOX, "redshift": 0, "quantity": "counts"}
    cube = str(tmp_path / "cube.h5")
    refused(lambda: cosmoflow.import_fields(cube, str(tmp_path / "f"), **options), *words)


def test_velocity_of_which_half_was_never_written(tmp_path):
    with h5py.File(tmp_path / "cube.h5", "w") as file:
        file["density"] = DENSITY
        array = file.create_dataset("velocity", VELOCITY.shape, "f4", chunks=(3, 6, 12, 12))
        array[:, :6] = VELOCITY[:, :6]
    cube, out = str(tmp_path / "cube.h5"), str(tmp_path / "f")
    options = {"box_size": BOX, "redshift": 0, "velocity": f"{cube}::velocity"}
    refused(lambda: cosmoflow.import_fields(cube, out, **options), "never written", "velocity")


def test_unsigned_numbers_that_hdf5_holds_as_signed_ones(tmp_path):
    with h5py.File(tmp_path / "cube.h5", "w") as file:
        file["density"] = DENSITY
        file["velocity"] = UNSIGNED
        file["velocity"].attrs.update({**PACKING, "_Unsigned": np.bytes_("true")})
    cube, out = str(tmp_path / "cube.h5"), str(tmp_path / "f")
    cosmoflow.import_fields(cube, out, box_size=BOX, redshift=0, velocity=f"{cube}::velocity")
    assert np.abs(FieldStore(out).read("velocity") - VELOCITY).max() < STEP


def scaled():
    image = fits.PrimaryHDU(np.round((DENSITY - 8.0) / 5e-4).astype("i2"))
    image.header.update(BSCALE=5e-4, BZERO=8.0)
    return image


@each(
    ("image", "options"),
    [
        (scaled, []),
        (lambda: fits.PrimaryHDU(np.round(4000 * DENSITY).astype("u2")), ["--quantity=counts"]),
    ],
)
def test_fits_of_scaled_integers(tmp_path, image, options):
    image().writeto(tmp_path / "cube.fits")
    where = [str(tmp_path / "cube.fits"), str(tmp_path / "f"), f"--box={BOX}", "--redshift=0"]
    assert run_app(["import", *where, *options, "--engine=serial", "--quiet"]) == 0
    assert np.abs(FieldStore(str(tmp_path / "f")).read("density") - DENSITY).max() < 3e-4


def blank():
    image = fits.PrimaryHDU(np.where(DENSITY > 3.0, -1, np.round(100 * DENSITY)).astype("i2"))
    image.header["BLANK"] = -1
    return image


@each(
    ("name", "save", "words"),
    [
        ("blank.fits", lambda path: blank().writeto(path), "not finite.*9 of 1728"),
        ("records.npy", lambda path: np.save(path, DENSITY.view([("rho", "f4")])), "real numbers"),
        ("percent.npy", lambda path: np.save(path, 100.0 * DENSITY), "divides by the mean"),
        ("log.npy", lambda path: np.save(path, np.log(DENSITY)), "logarithm"),
        ("one.npy", lambda path: np.save(path, DENSITY[None]), "not a cube"),
    ],
)
def test_cubes_in_files_that_make_no_sense(tmp_path, capsys, name, save, words):
    save(tmp_path / name)
    where = [str(tmp_path / name), str(tmp_path / "f"), f"--box={BOX}", "--redshift=0"]
    assert run_app(["import", *where, "--engine=serial", "--quiet"]) == 3
    assert re.search(words, capsys.readouterr().err, re.DOTALL)
