"""Stores as others write them, read right or refused, and outputs over files that are not ours."""

import numpy as np
import pytest
import xarray as xr

import cosmoflow
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.particles import ParticleStore
from tests.cases import each
from tests.conftest import displaced_lattice
from tests.doors.foreign import (
    ATTRIBUTES,
    BOX,
    PACKING,
    STEP,
    UNSIGNED,
    VECTOR,
    VELOCITY,
    dataset,
    refused,
    write,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning"),
    pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning"),
]
POSITION, SPEED = displaced_lattice(8, BOX)


# Stores


def test_unsigned_numbers_that_a_store_holds_as_signed_ones(tmp_path):
    """xarray decodes them so; taken as they are they were wrong by 1,500 km/s."""
    packed = dataset().assign(velocity=(VECTOR.dims, UNSIGNED, {"units": "km/s", **PACKING}))
    store = FieldStore(write(packed, tmp_path / "a.zarr"))
    assert np.abs(store.read("velocity") - VELOCITY).max() < STEP


@each(
    ("attributes", "words"),
    [
        ({"cosmology": {"h": 67.77, "Omega_m": 0.31}}, ["h", "less than 2"]),
        ({"cosmology": {"h": 0.7, "Omega_m": 0.3, "w": -0.7}}, ["w", "not permitted"]),
        ({"box_size": [BOX, BOX, BOX]}, ["attributes", "list"]),
        ({"box_size": "24 Mpc/h"}, ["attributes", "24 Mpc/h"]),
        ({"redshift": float("nan")}, ["redshift", "nan"]),
        ({"redshift_space": "Z"}, ["redshift_space", "x, y, z"]),
        ({"particle_mass": -3.0}, ["particle_mass", "-3.0"]),
        ({"provenance": "made by me"}, ["attributes"]),
    ],
)
def test_attributes_that_make_no_sense(tmp_path, attributes, words):
    url = write(dataset(**attributes), tmp_path / "a.zarr")
    refused(lambda: FieldStore(url), url, *words)


def particles(dims=("particle", "component"), order=(0, 1, 2), **more):
    columns = {
        "position": (dims, POSITION[:, order], {"units": "Mpc/h"}),
        "velocity": (dims, SPEED[:, order], {"units": "km/s"}),
    }
    labels = {dims[1]: [("x", "y", "z")[index] for index in order]}
    kind = {"format": "cosmoflow/particles"}
    return xr.Dataset({**columns, **more}, labels, {**ATTRIBUTES, **kind})


@each(
    "data",
    [
        particles(("particle", "axis"), (2, 1, 0)),
        particles(("n", "xyz"), (1, 2, 0)).transpose(),
        particles(("n", "axis")).assign_coords(axis=[0, 1, 2]),
    ],
)
def test_labels_count_whatever_the_name_of_their_dimension(tmp_path, data):
    found = ParticleStore(write(data, tmp_path / "p.zarr")).read(0, 512)
    np.testing.assert_array_equal(found.position, POSITION)
    np.testing.assert_array_equal(found.velocity, SPEED)


@each(("name", "noun"), [("velocity", "velocities"), ("mass", "masses")])
def test_missing_parts_of_any_column_are_not_zeros(tmp_path, name, noun):
    data = particles(mass=("particle", np.linspace(1.0, 2.0, 512))).chunk(particle=128)
    url = write(data, tmp_path / "p.zarr", encoding={name: {"fill_value": 0.0}})
    ParticleStore(url)
    part = tmp_path / "p.zarr" / name / "c" / "1"
    (part / "0" if part.is_dir() else part).unlink()
    refused(lambda: ParticleStore(url), noun, "missing", "1 of 4 chunks")


def test_particles_at_rest_and_equal_masses_need_no_chunks(tmp_path):
    """Zarr does not store chunks that hold the fill value only."""
    data = particles(mass=("particle", np.full(512, 2.0)))
    data["velocity"] = 0.0 * data["velocity"]
    url = write(
        data, tmp_path / "p.zarr",
        encoding={"velocity": {"fill_value": 0.0}, "mass": {"fill_value": 2.0}},
    )  # fmt: skip
    found = ParticleStore(url).read(0, 512)
    assert (found.velocity == 0.0).all()
    assert (found.mass == 2.0).all()


@each(
    ("more", "words"),
    [
        ({"masses": ("particle", np.arange(1.0, 513.0))}, ["masses", "rename"]),
        ({"mass": (("particle", "one"), np.ones((512, 1)))}, ["mass", "shape"]),
    ],
)
def test_masses_that_are_not_where_they_are_read(tmp_path, more, words):
    url = write(particles(**more), tmp_path / "p.zarr")
    refused(lambda: ParticleStore(url), *words)


@each("mass", [-1.0, np.nan, np.inf])
def test_masses_of_a_store_that_are_none(tmp_path, mass):
    values = np.where(np.arange(512) == 7, mass, 1.0)
    url = write(particles(mass=("particle", values)), tmp_path / "p.zarr")
    refused(lambda: ParticleStore(url).read(0, 512), "mass", "particle 7")


# Outputs


@each("name", ["run.json", "model.json", "zarr.json", "config.yaml"])
def test_folders_of_other_programs_are_not_overwritten(tmp_path, name):
    """A folder with a `model.json` may be another program's: its work is not deleted."""
    url = write(particles(), tmp_path / "p.zarr")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / name).write_text('{"layers": 3}')
    (tmp_path / "thesis" / "text.tex").write_text("years of work")
    out = str(tmp_path / "thesis")
    refused(lambda: cosmoflow.paint(url, out, grid=4, overwrite=True), "not made by cosmoflow")
    assert (tmp_path / "thesis" / "text.tex").read_text() == "years of work"


@each("kind", ["text", "netCDF"])
def test_netcdf_files_of_other_programs_are_not_overwritten(tmp_path, kind):
    url, out = write(dataset(), tmp_path / "a.zarr"), tmp_path / "other.nc"
    if kind == "text":
        out.write_text("notes")
    else:
        xr.Dataset({"t": ("x", np.ones(3))}).to_netcdf(out, engine="scipy")
    before = out.read_bytes()

    def measure():
        return cosmoflow.spectra(url, str(out), field="velocity", overwrite=True)

    refused(measure, "not made by cosmoflow")
    assert out.read_bytes() == before
    out.unlink()
    power = measure()["power"].values
    np.testing.assert_array_equal(measure()["power"], power)


def test_spectra_that_are_returned_are_whole(tmp_path):
    url = write(dataset(), tmp_path / "a.zarr")
    found = cosmoflow.spectra(url, str(tmp_path / "power.zarr"), field="velocity")
    assert found.attrs["status"] == "complete"


@each("out", ["p.zarr/fields", ".", "link.zarr"])
def test_no_output_lies_over_its_input(tmp_path, monkeypatch, out):
    url = write(particles(), tmp_path / "p.zarr")
    (tmp_path / "link.zarr").symlink_to("p.zarr")
    monkeypatch.chdir(tmp_path)
    refused(lambda: cosmoflow.paint(url, out, grid=4, overwrite=True), "over an input")
    assert ParticleStore(url).count == 512
