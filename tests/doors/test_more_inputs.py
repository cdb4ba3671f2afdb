"""More inputs as others make them: each gives the right value, or is refused in words that help."""

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
from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.errors import CosmoflowError
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.particles import ParticleStore
from cosmoflow.storage.snapshots import open_particles
from tests import snapshot_files as files
from tests.cases import each
from tests.conftest import displaced_lattice
from tests.doors.foreign import ATTRIBUTES, BOX, CENTRES, dataset, fields, write

pytestmark = [
    pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning"),
    pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning"),
]

DENSITY, VELOCITY = fields()
POSITION, SPEED = displaced_lattice(8, BOX)
SNAPSHOT = files.zeldovich_box(12, 100.0)
LOWEST = float(VELOCITY.min())
STEP = float(np.ptp(VELOCITY)) / 65000.0
UNSIGNED = np.round((VELOCITY - LOWEST) / STEP).astype("uint16").view("int16")
"""Packed as netCDF 3, which has no unsigned integers, wants it."""
PACKING = {"scale_factor": STEP, "add_offset": LOWEST, "_Unsigned": "true"}


def refused(call, *words):
    """Assert that a call is refused with these words, and not by a traceback."""
    with pytest.raises(CosmoflowError) as caught:
        call()
    assert caught.value.exit_code in (2, 3)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


# Arrays in memory

CUBE = xr.DataArray(DENSITY, dims=("x", "y", "z"))
VECTOR = xr.DataArray(
    VELOCITY, dims=("component", "x", "y", "z"), coords={"component": list("xyz")}
)
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


# Snapshots


def gadget(path, change=None, **options):
    url = files.write_gadget_hdf5(path / "snap.hdf5", SNAPSHOT, **options)
    if change is not None:
        with h5py.File(url, "a") as file:
            change(file)
    return url


def swift(path, change):
    url = files.write_swift(path / "snap.hdf5", SNAPSHOT)
    with h5py.File(url, "a") as file:
        change(file)
    return url


def npz(path, **more):
    np.savez(path / "snap.npz", **files.npz_arrays(SNAPSHOT, **more))
    return str(path / "snap.npz")


def rewrite(name, make):
    """Replace a column of a file by what is made of it."""

    def change(file):
        values = file["PartType1"][name][:]
        del file["PartType1"][name]
        file["PartType1"][name] = make(values)

    return change


def pack(file):
    values = file["PartType1/Velocities"][:]
    step = float(np.abs(values).max()) / 32000.0
    del file["PartType1/Velocities"]
    file["PartType1/Velocities"] = np.round(values / step).astype("i2")
    file["PartType1/Velocities"].attrs["scale_factor"] = step


def attribute(group, name, value):
    return lambda file: file[group].attrs.__setitem__(name, value)


@each(
    "make",
    [
        lambda path: gadget(path, BoxSize=np.full(3, 1e5), Redshift=np.array([1.0])),
        lambda path: gadget(path, kind=np.dtype(">f8"), files=0),
        lambda path: gadget(path, named={1: {"Masses": np.full(SNAPSHOT.count, SNAPSHOT.mass)}}),
        lambda path: swift(path, attribute("Header", "BoxSize", 100.0 / files.H)),
        lambda path: npz(path, redshift=np.array([1.0]), units="Mpc/h"),
        lambda path: npz(path, velocity=SNAPSHOT.velocity.astype(">f8")),
    ],
)
def test_snapshots_whose_headers_vary(tmp_path, make):
    source = open_particles(make(tmp_path))
    found = source.read(0, source.count)
    away = (found.position - SNAPSHOT.position + 50.0) % 100.0 - 50.0
    assert np.abs(away).max() < 2e-5
    np.testing.assert_allclose(found.velocity, SNAPSHOT.velocity, atol=2e-3, rtol=1e-6)
    assert source.metadata.redshift == 1.0
    assert source.metadata.box_size == pytest.approx(100.0)


@each(
    ("make", "words"),
    [
        (lambda path: gadget(path, pack), ["packed", "scale_factor"]),
        (lambda path: gadget(path, rewrite("Velocities", np.transpose)), ["shape", "Velocities"]),
        (lambda path: gadget(path, rewrite("Velocities", lambda v: np.r_[v, v])), ["shape"]),
        (lambda path: gadget(path, HubbleParam=67.0), ["h = 67", "snapshot.h="]),
        (lambda path: gadget(path, BoxSize=np.nan), ["unit of length", "snapshot.length_unit"]),
        (lambda path: swift(path, attribute("Header", "Redshift", np.array([0.0]))),
         ["contradict", "Scale-factor 0.5", "snapshot.redshift="]),
        (lambda path: swift(path, attribute("Cosmology", "h", np.array([67.0]))), ["h = 67"]),
        (lambda path: npz(path, masses=SNAPSHOT.position[:, 0]), ["masses", "mass=..."]),
        (lambda path: npz(path, velocity=SNAPSHOT.velocity + 0j), ["real", "complex128"]),
        (lambda path: npz(path, velocity=1e4 * SNAPSHOT.velocity), ["faster than light"]),
        (lambda path: npz(path, position=SNAPSHOT.position - 50.0), ["outside", "snapshot.wrap"]),
        (lambda path: npz(path, cosmology=np.array({"h": 0.7}, object)), ["Python objects"]),
        (lambda path: npz(path, h=np.nan), ["h = nan"]),
        (lambda path: npz(path, box_size=np.inf), ["box_size", "inf"]),
    ],
)  # fmt: skip
def test_snapshots_that_contradict_themselves(tmp_path, make, words):
    url = make(tmp_path)
    refused(lambda: open_particles(url), url, *words)


def test_a_hint_decides_between_redshift_and_scale_factor(tmp_path):
    url = swift(tmp_path, attribute("Header", "Redshift", np.array([0.0])))
    assert open_particles(url, SnapshotHints(redshift=1.0)).metadata.redshift == 1.0


def test_positions_in_units_of_the_box_around_its_middle(tmp_path):
    """Wrapped, they lie in all corners of the box: it is periodic, and that is one corner."""
    pytest.importorskip("asdf")

    def columns(piece):
        centred = (piece.position + 50.0) % 100.0 - 50.0
        return {"pos": (centred / 100.0).astype("f4"), "vel": piece.velocity.astype("f4")}

    url = files.write_abacus(tmp_path / "sim", SNAPSHOT, columns=columns)
    refused(lambda: open_particles(url), "corner of the box", "length_unit")


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
