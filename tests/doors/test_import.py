"""A density cube, in a file of any common format or in memory, becomes a fields store."""

import json

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from astropy.io import fits

import cosmoflow
from cosmoflow.cli.app import run_app
from cosmoflow.cli.cards import make_card
from cosmoflow.config import CosmologyConfig
from cosmoflow.errors import ConfigError, DataError, OutputExistsError
from cosmoflow.stages.inputs.empty_cells import sampling_of
from cosmoflow.stages.inputs.paintings import painting_of
from cosmoflow.storage.fields import FieldStore
from tests.cases import each
from tests.conftest import refused
from tests.doors.foreign import BOX, GRID, dataset, fields

DENSITY, VELOCITY = fields()
COUNTS = np.random.default_rng(1).poisson(8.0 * DENSITY).astype(np.uint16)


def check(url, density=DENSITY, velocity=None, error=3e-7):
    store = FieldStore(url)
    np.testing.assert_allclose(store.read("density"), density, rtol=0.0, atol=error * 10)
    if velocity is None:
        assert store.variables == ["density"]
    else:
        np.testing.assert_allclose(store.read("velocity"), velocity, atol=1e-4)
    assert store.metadata.box_size == BOX
    return store.metadata.provenance["notes"]


def run_import(cube, out, *options):
    arguments = ["import", str(cube), str(out), f"--box={BOX}", "--redshift=0", *options]
    return run_app([*arguments, "--engine=serial", "--quiet"])


def save(folder, kind, density, velocity):
    """Write a density and a velocity in one format; return the names of both."""
    path = folder / f"cube.{kind}"
    if kind == "npy":
        np.save(path, density)
        np.save(folder / "v.npy", velocity)
        return path, folder / "v.npy"
    if kind == "npz":
        np.savez_compressed(path, density=density, velocity=velocity, other=np.ones(3))
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file["grid/density"] = density.astype(">f8")
            file["grid/vel"] = np.moveaxis(velocity, 0, -1)
            file["grid/vel"].attrs["units"] = "km/s"
            file["rho_baryons"] = 2.0 * density
    elif kind == "nc":
        dataset().drop_attrs(deep=False).transpose("z", "y", "x", "component").to_netcdf(
            path, engine="scipy"
        )
    else:
        image = fits.PrimaryHDU(density)
        fits.HDUList([image, fits.ImageHDU(velocity, name="VELOCITY")]).writeto(path)
    return path, path


@each("kind", ["npy", "npz", "h5", "nc", "fits"])
def test_every_format(tmp_path, kind):
    path, velocity = save(tmp_path, kind, DENSITY, VELOCITY)
    cube = f"{path}::grid/density" if kind == "h5" else path
    assert run_import(cube, tmp_path / "a.zarr", f"--velocity={velocity}") == 0
    notes = check(str(tmp_path / "a.zarr"), velocity=VELOCITY)
    assert ("The axes of the cube were taken to be x, y, z, as NumPy reads them." in notes) is (
        kind != "nc"
    )
    # Images of FITS have numbers for names.
    assert any("is the array" in note for note in notes) is (kind == "fits")
    if kind == "npz":
        np.savez(path, density=DENSITY, mask=DENSITY)
        assert run_import(path, tmp_path / "b.zarr") == 0
        said = (
            f"The density is the array {path}::density; the file also holds mask {DENSITY.shape}."
        )
        assert said in check(str(tmp_path / "b.zarr"))


def test_netcdf_4_is_read_by_the_names_of_its_axes(tmp_path):
    """As netCDF4 writes it: scales along the axes, packed numbers, z first."""
    path = tmp_path / "cube.nc"
    with h5py.File(path, "w") as file:
        packed = np.round((DENSITY.transpose(2, 1, 0) - 8.0) / 5e-4).astype("int16")
        array = file.create_dataset("density", data=packed)
        array.attrs.update(scale_factor=5e-4, add_offset=8.0)
        for axis, name in enumerate("zyx"):
            file[name] = (np.arange(GRID) + 0.5) * (BOX / GRID)
            file[name].make_scale(name)
            array.dims[axis].attach_scale(file[name])
    assert run_import(path, tmp_path / "a.zarr") == 0
    check(str(tmp_path / "a.zarr"), error=3e-5)
    with h5py.File(path, "r+") as file:
        file["x"][:] = np.arange(GRID) * (BOX / GRID)
    words = ["edges", "from 0, 2 to 22"]
    refused(
        DataError, 3,
        lambda: cosmoflow.import_fields(str(path), str(tmp_path / "b"), box_size=BOX, redshift=0.0),
        *words,
    )  # fmt: skip


# Neither states its particles per cell, and the cube is no simulation.
@pytest.mark.filterwarnings("ignore::cosmoflow.CosmoflowWarning")
def test_the_answer_is_that_of_the_array(tmp_path):
    np.save(tmp_path / "cube.npy", DENSITY)
    fields_url, out = str(tmp_path / "f.zarr"), str(tmp_path / "v.zarr")
    cosmoflow.import_fields(str(tmp_path / "cube.npy"), fields_url, box_size=BOX, redshift=0.0)
    found = cosmoflow.infer(fields_url, out, "wiener")["velocity"]
    truth = cosmoflow.infer_array(DENSITY, BOX, "wiener", redshift=0.0)["velocity"]
    np.testing.assert_allclose(found, truth, atol=1e-4)
    assert float(np.abs(truth).max()) > 5.0
    card = make_card(cosmoflow.info(fields_url))
    assert (card["fields"], card["kept flows"].partition(",")[0]) == ("density", "wiener_velocity")
    assert "infer.particles_per_cell=N" in card["particles per cell"]
    # What the remedy states is kept, for whatever is made of the output.
    cosmoflow.infer(fields_url, out, "wiener", particles_per_cell=8, overwrite=True)
    cosmoflow.derive(out, str(tmp_path / "w.zarr"), field="divergence")
    for url in (out, str(tmp_path / "w.zarr")):
        assert make_card(cosmoflow.info(url))["particles per cell"] == "8, as stated"
        assert cosmoflow.info(url)["sampling"]["stated"] is True


def test_as_many_particles_as_cells_are_counts(tmp_path):
    """Their mean of 1 is that of 1 + delta too, which would lose their number."""
    cells = np.random.default_rng(2).integers(0, GRID, (GRID**3, 3))
    counts = np.zeros((GRID,) * 3, np.uint8)
    np.add.at(counts, tuple(cells.T), 1)
    np.save(tmp_path / "cube.npy", counts)
    assert run_import(tmp_path / "cube.npy", tmp_path / "a.zarr") == 0
    store = FieldStore(str(tmp_path / "a.zarr"))
    assert sampling_of(store).particles_per_cell == 1.0
    assert painting_of(store).scheme == "ngp"
    np.testing.assert_array_equal(store.read("density"), counts)


def test_a_chunk_that_does_not_divide_the_shard_is_refused_before_anything_is_written(
    tmp_path, capsys
):
    np.save(tmp_path / "cube.npy", DENSITY)
    code = run_import(tmp_path / "cube.npy", tmp_path / "a.zarr", "--set=paint.chunk=64")
    assert code == ConfigError.exit_code
    assert f"shard {GRID // 2} is not a multiple of chunk 64" in capsys.readouterr().err
    assert not (tmp_path / "a.zarr").exists()


@each(
    ("array", "options", "note"),
    [
        (DENSITY.astype(np.float64), [], "recognised as 1 + delta"),
        (DENSITY - 1.0, [], "recognised as delta: 1 was added"),
        (DENSITY - 1.0, ["--quantity=delta"], "said to be delta"),
        (COUNTS, [], f"recognised as counts: it was divided by its mean, {COUNTS.mean():.9g}"),
        (3e11 * DENSITY, ["--quantity=counts"], "divided by its mean, 2.9999"),
        (np.rint(3e11 * DENSITY), ["--quantity=counts"], "divided by its mean, 2.9999"),
        (np.asfortranarray(DENSITY), [], "taken to be x, y, z"),
        (DENSITY.T, ["--order=F"], "recognised as 1 + delta"),
    ],
)
def test_what_the_cube_holds(tmp_path, array, options, note):
    np.save(tmp_path / "cube.npy", array)
    assert run_import(tmp_path / "cube.npy", tmp_path / "a.zarr", *options) == 0
    truth = COUNTS / COUNTS.mean() if array is COUNTS else DENSITY
    notes = check(str(tmp_path / "a.zarr"), truth)
    assert note in " ".join(notes)
    store = FieldStore(str(tmp_path / "a.zarr"))
    sampling = store.metadata.sampling
    assert painting_of(store).scheme == ("ngp" if array is COUNTS else None)
    if array is COUNTS:
        assert (sampling.particles_per_cell, sampling.equal_masses) == (COUNTS.mean(), True)
        assert "kept as the number of particles per cell" in " ".join(notes)
        counts = cosmoflow.derive(tmp_path / "a.zarr", tmp_path / "n.zarr", field="count")["count"]
        np.testing.assert_allclose(counts, COUNTS, rtol=1e-6)
    else:
        assert (sampling.particles_per_cell, sampling.equal_masses) == (None, None)


@each(
    ("options", "assumed"),
    [
        ([], "h 0.6777, Omega_m 0.31, Omega_b 0.05, sigma8 0.83, n_s 0.96"),
        (["Omega_m=0.3", "sigma8=0.8"], "h 0.6777, Omega_b 0.05, n_s 0.96"),
        (["h=0.7", "Omega_m=0.3", "Omega_b=0.05", "sigma8=0.8", "n_s=0.96"], ""),
    ],
)
def test_what_is_not_stated_of_the_cosmology_is_listed(tmp_path, capsys, options, assumed):
    np.save(tmp_path / "cube.npy", DENSITY)
    arguments = ["import", str(tmp_path / "cube.npy"), str(tmp_path / "a.zarr"), f"--box={BOX}"]
    given = [f"--set=cosmology.{option}" for option in options]
    assert run_app([*arguments, "--redshift=0", *given]) == 0
    note = f"assumed, as not stated: {assumed}"
    lines = [line for line in capsys.readouterr().err.splitlines() if "assumed" in line]
    # A cosmology that is stated in part is no worse than one that is not stated.
    assert lines == ([note] if assumed else [])
    assert (note in check(str(tmp_path / "a.zarr"))) == bool(assumed)
    # Python says the same of a mapping and of an object.
    cosmology = {key: float(value) for key, value in (one.split("=") for one in options)}
    for number, one in enumerate((cosmology, CosmologyConfig(**cosmology)) if options else ()):
        out, given = tmp_path / f"{number}", {"box_size": BOX, "redshift": 0.0, "cosmology": one}
        cosmoflow.import_fields(tmp_path / "cube.npy", out, **given)
        assert (note in check(str(out))) == bool(assumed)


def test_a_velocity_in_fortran_order(tmp_path):
    np.save(tmp_path / "cube.npy", DENSITY.T)
    np.save(tmp_path / "v.npy", VELOCITY.T)
    options = ["--order=F", f"--velocity={tmp_path / 'v.npy'}"]
    assert run_import(tmp_path / "cube.npy", tmp_path / "a.zarr", *options) == 0
    check(str(tmp_path / "a.zarr"), velocity=VELOCITY)


def bad(change):
    values = DENSITY.copy()
    change(values)
    return values


def put(value):
    def change(values):
        values[1, 2, 3] = value

    return bad(change)


@each(
    ("array", "options", "words"),
    [
        (put(np.nan), [], ["not finite", "1 of 1728"]),
        (put(np.inf), ["--quantity=counts"], ["not finite"]),
        (put(-0.5), [], ["below 0", "-0.5"]),
        (put(-0.5), ["--quantity=counts"], ["never below 0", "-0.5", "another cube"]),
        (DENSITY - 1.0, ["--quantity=counts"], ["never below 0", "--quantity delta, which adds 1"]),
        (DENSITY - 1.0, ["--quantity=density"], ["like delta", "--quantity delta, which adds 1"]),
        (np.ones((8, 8, 8)), [], ["is constant"]),
        (DENSITY[:, :, :7], [], ["not cubic", "(12, 12, 7)"]),
        (DENSITY[0], [], ["not a cube", "(12, 12)"]),
        (DENSITY.astype(complex), [], ["complex128"]),
        (87.0 * DENSITY, [], ["another unit", "a mean of 87", "--quantity counts"]),
        (87.0 * DENSITY, ["--quantity=density"], ["a mean of 87", "--quantity counts"]),
        (DENSITY, ["--quantity=delta"], ["not delta", "a mean of 1 ", "--quantity density"]),
        (np.log10(DENSITY), [], ["logarithm", "undo the logarithm"]),
    ],
)
def test_cubes_that_make_no_sense_are_refused(tmp_path, capsys, array, options, words):
    np.save(tmp_path / "cube.npy", array)
    assert run_import(tmp_path / "cube.npy", tmp_path / "a.zarr", *options) == 3
    message = capsys.readouterr().err
    for word in words:
        assert word in message
    assert not (tmp_path / "a.zarr").exists()


def test_files_that_cannot_be_read_are_refused(tmp_path, capsys):
    cube, out = tmp_path / "cube", tmp_path / "a.zarr"
    good = tmp_path / "good.npy"
    np.save(good, DENSITY)
    cases = [
        (lambda: None, 4, "no such file"),
        (lambda: cube.write_bytes(b"hello"), 3, "NumPy (.npy, .npz), HDF5, FITS, netCDF"),
        (lambda: cube.write_bytes(good.read_bytes()[:1000]), 3, "cannot be read"),
        (lambda: cube.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), 3, "cannot be read"),
        (lambda: np.savez(cube.open("wb"), a=DENSITY, b=DENSITY), 3, "::NAME"),
    ]
    for make, code, word in cases:
        make()
        assert run_import(cube, out) == code
        assert word in capsys.readouterr().err
        assert not out.exists()
    assert run_import(f"{cube}::b", out) == 0
    check(str(out))
    # Particles are painted, and not imported.
    with h5py.File(tmp_path / "snap.hdf5", "w") as file:
        file["PartType1/Coordinates"] = np.zeros((8, 3))
    for place, word in (
        (tmp_path, "this is a folder"),
        (tmp_path / "snap.hdf5", "holds particles"),
    ):
        assert run_import(place, tmp_path / "b.zarr") == 3
        message = capsys.readouterr().err
        assert word in message
        assert f"cosmoflow paint {place}" in message


def test_vectors_that_make_no_sense_are_refused(tmp_path):
    def store(velocity, **options):
        arguments = {"box_size": BOX, "redshift": 0.0, **options}
        return lambda: cosmoflow.store_density(
            DENSITY, str(tmp_path / "a.zarr"), velocity=velocity, **arguments
        )

    fast = VELOCITY.copy()
    fast[0, 0, 0, 0] = 4e5
    refused(DataError, 3, store(fast), "speed of light")
    refused(DataError, 3, store(VELOCITY[:2]), "not a vector", "(2, 12, 12, 12)")
    refused(DataError, 3, store(VELOCITY[:, :8, :8, :8]), "another grid", "12")
    refused(ConfigError, 2, store(VELOCITY, box_size=-1.0), "--box", "give the side in Mpc/h")
    refused(ConfigError, 2, store(VELOCITY, box_size=64e3), "64000 kpc/h are 64 Mpc/h")
    refused(ConfigError, 2, store(VELOCITY, redshift=-1.0), "--redshift")
    assert not (tmp_path / "a.zarr").exists()
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["velocity"] = VELOCITY
        file["velocity"].attrs["units"] = "m/s"
    np.save(tmp_path / "cube.npy", DENSITY)
    assert (
        run_import(tmp_path / "cube.npy", tmp_path / "a.zarr", f"--velocity={tmp_path}/v.h5") == 3
    )


def test_arrays_in_memory(tmp_path, serial_run):
    url = str(tmp_path / "a.zarr")
    cosmology = CosmologyConfig(h=0.7, Omega_m=0.25, Omega_b=0.04, sigma8=0.8, n_s=0.97)
    given = {"box_size": BOX, "redshift": 0.5, "cosmology": cosmology}
    momentum = np.moveaxis(DENSITY * VELOCITY, 0, -1)
    found = cosmoflow.store_density(
        5.0 * DENSITY, url, quantity="counts", velocity=VELOCITY, momentum=momentum, **given
    )
    np.testing.assert_allclose(found["density"], DENSITY, rtol=1e-6)
    np.testing.assert_array_equal(found["velocity"], VELOCITY)
    np.testing.assert_array_equal(found["momentum"], DENSITY * VELOCITY)
    store = FieldStore(url)
    assert (store.metadata.redshift, store.metadata.cosmology) == (0.5, cosmology)
    assert not any("assumed" in note for note in store.metadata.provenance["notes"])
    refused(OutputExistsError, 2, lambda: cosmoflow.store_density(DENSITY, url, **given), url)
    run = serial_run(existing="overwrite")
    cosmoflow.store_density(DENSITY, url, run, **given)
    assert FieldStore(url).variables == ["density"]
    assert store.velocity_rms == pytest.approx(np.sqrt(3.0 * np.square(VELOCITY).mean()), rel=1e-3)
    assert FieldStore(url).velocity_rms is None


def test_a_run_goes_on_where_it_stopped(tmp_path, capsys):
    cube, out = tmp_path / "cube.npy", tmp_path / "a.zarr"
    np.save(cube, DENSITY)
    assert run_import(cube, out) == 0
    digest = zarr.open_group(out).attrs["provenance"]["digest"]
    group = zarr.open_group(out)
    group.attrs["status"] = "incomplete"
    group["ledger/fields"][3] = 0
    group["density"][:] = 7.0
    assert run_import(cube, out, "--resume") == 0
    again = FieldStore(str(out)).read("density")
    # Shard 3 only: of the first 6 cells along x, the last along y and z.
    np.testing.assert_array_equal(again[:6, 6:, 6:], DENSITY[:6, 6:, 6:])
    assert (again[6:] == 7.0).all()
    np.save(cube, DENSITY[::-1])
    assert run_import(cube, out, "--resume") == 2
    assert "another state of the input 'density'" in capsys.readouterr().err
    assert run_import(cube, out, "--overwrite") == 0
    check(str(out), DENSITY[::-1])
    assert zarr.open_group(out).attrs["provenance"]["digest"] != digest


def test_the_command_says_what_it_would_do_and_did(tmp_path, capsys):
    cube, out = tmp_path / "cube.npy", tmp_path / "a.zarr"
    np.save(cube, DENSITY)
    common = ["import", str(cube), str(out), f"--box={BOX}", "--redshift=0.5", "--json"]
    assert run_app([*common, "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert '"written": 6912' in json.dumps(plan)
    assert not out.exists()
    assert run_app([*common, "--set=cosmology.Omega_m=0.3", "--engine=serial"]) == 0
    assert '"variables": "density"' in capsys.readouterr().out
    found = xr.open_zarr(out, consolidated=False)
    assert found.attrs["cosmology"]["Omega_m"] == 0.3
    assert found.attrs["redshift"] == 0.5
    provenance = found.attrs["provenance"]
    assert provenance["sources"] == {"density": str(cube)}
    assert not any("cosmology" in note for note in provenance["notes"])
    assert run_app(["import", str(cube), str(tmp_path / "b"), "--redshift=0"]) == 2
    assert "--box" in capsys.readouterr().err


def test_fits_files_need_astropy_and_say_so(tmp_path, monkeypatch, capsys):
    path, _ = save(tmp_path, "fits", DENSITY, VELOCITY)
    monkeypatch.setitem(__import__("sys").modules, "astropy.io", None)
    assert run_import(path, tmp_path / "a.zarr") == 2
    assert "pip install 'cosmoflow[readers]'" in capsys.readouterr().err
