"""Density is 1 + delta: every stage refuses what is not, and says what it looks like."""

import numpy as np
import pytest
import zarr

import cosmoflow
from cosmoflow.cli.app import run_app
from cosmoflow.errors import DataError
from cosmoflow.events import Message
from cosmoflow.stages.inputs.density import Summary, check_contents
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.urls import open_group_for_writing
from tests.cases import each
from tests.conftest import refused
from tests.doors.foreign import BOX, dataset, fields, write

pytestmark = [
    pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning"),
    pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning"),
]

DENSITY, _ = fields()
COUNTS = np.random.default_rng(1).poisson(8.0 * DENSITY)

ZEROS = {"fill_value": 0.0}

WRONG = {
    "delta": (DENSITY - 1.0, ["looks like delta", "add 1"]),
    "counts": (COUNTS, ["looks like counts", f"divide by its mean, {COUNTS.mean():.9g}"]),
    "unit": (87.0 * DENSITY, ["in another unit", "a mean of 87 ", "divide by its mean, 8"]),
    "masses": (3e11 * DENSITY, ["looks like masses", "a mean of 3e+11"]),
    "logarithm": (np.log10(DENSITY), ["logarithm"]),
    "linear": (3.0 * (DENSITY - 1.0), ["falls below -1"]),
    "ringing": (1.0 + 3.0 * (DENSITY - 1.0), ["below 0", "a mean of 1 "]),
    "nothing": (0.0 * DENSITY, ["no mass"]),
    "2 per cent": (1.02 * DENSITY, ["a mean of 1.02 "]),
}


def store_of(density, url):
    data = dataset()
    data["density"] = (("x", "y", "z"), np.asarray(density, np.float32), {"units": "1"})
    return write(data, url)


@each("name", WRONG)
def test_what_is_no_density_is_refused_alike_in_stores_and_arrays(tmp_path, name):
    density, words = WRONG[name]
    url, out = store_of(density, tmp_path / "a.zarr"), tmp_path / "out.zarr"
    refused(DataError, 3, lambda: cosmoflow.infer(url, str(out), "linear:4"), url, *words)
    refused(
        DataError, 3, lambda: cosmoflow.infer_array(density, BOX, "linear:4", redshift=0.0), *words
    )
    refused(DataError, 3, lambda: cosmoflow.spectra(url, str(out), "density"), url, *words)
    assert not out.exists()
    assert "linear_velocity" not in zarr.open_group(url, mode="r")


STAGES = {
    "infer": ["infer", "IN", "OUT", "--model=linear"],
    "spectra": ["spectra", "IN", "--out=OUT", "--field=momentum_speed"],
    "derive": ["derive", "IN", "OUT", "--field=momentum"],
    "evaluate": ["evaluate", "IN", "GOOD", "--out=OUT", "--set=evaluate.subbox=12"],
    "train": ["train", "IN", "GOOD", "--out=OUT", "--set=train.model=wiener", "--set=train.crop=8"],
}


@each("stage", STAGES)
def test_every_stage_that_reads_the_density_refuses_counts(tmp_path, stage, capsys):
    places = {
        "IN": store_of(COUNTS, tmp_path / "in.zarr"),
        "GOOD": write(dataset(), tmp_path / "good.zarr"),
    }
    out = tmp_path / "out"
    arguments = [places.get(word, word.replace("OUT", str(out))) for word in STAGES[stage]]
    assert run_app([*arguments, "--engine=serial"]) == 3
    assert "looks like counts" in capsys.readouterr().err
    assert not out.exists()


def test_a_velocity_is_read_whatever_the_density_is(tmp_path, serial_run):
    url = store_of(COUNTS, tmp_path / "a.zarr")
    cosmoflow.spectra(url, str(tmp_path / "p.zarr"), "velocity", serial_run())
    cosmoflow.derive(url, str(tmp_path / "d.zarr"), ["divergence"], serial_run())


def test_a_density_that_is_right_gives_what_the_array_gives(tmp_path):
    url = store_of(DENSITY, tmp_path / "a.zarr")
    found = cosmoflow.infer(url, str(tmp_path / "v.zarr"), "linear:4")["velocity"]
    truth = cosmoflow.infer_array(DENSITY, BOX, "linear:4", redshift=0.0)["velocity"]
    np.testing.assert_allclose(found, truth, atol=1e-3)


@each("change", [lambda rho: 2.0 * rho, lambda rho: rho - 1.0])
def test_a_painted_density_is_read_whole_only_if_it_was_changed(
    tmp_path, particle_store, serial_run, monkeypatch, change
):
    url = str(tmp_path / "f.zarr")
    run = serial_run(paint={"grid": 8, "shard": 4})
    cosmoflow.paint(particle_store(8).url, url, run)
    whole = []
    monkeypatch.setattr(
        "cosmoflow.stages.inputs.density.summarise",
        lambda store, name, run: whole.append(name) or Summary.of(store.read(name)),
    )
    check_contents(FieldStore(url), ["density"], run)
    assert not whole
    density = zarr.open_group(url)["density"]
    density[:] = change(density[:])
    refused(DataError, 3, lambda: check_contents(FieldStore(url), ["density"], run), "1 + delta")
    assert whole == ["density"]


def test_one_cell_that_changed_since_is_noticed(tmp_path, serial_run):
    rho = np.ones((24, 24, 24), np.float32)
    rho[:12], rho[12:] = 0.5, 1.5
    url = str(tmp_path / "f.zarr")
    cosmoflow.store_density(rho, url, box_size=48.0, redshift=0.0, run=serial_run())
    check_contents(FieldStore(url), ["density"], serial_run())
    zarr.open_group(url)["density"][5, 17, 11] = -1.0
    refused(
        DataError, 3, lambda: check_contents(FieldStore(url), ["density"], serial_run()), "below 0"
    )


def test_missing_chunks_are_not_empty_cells(tmp_path):
    data = dataset().chunk(x=4, y=4, z=4)
    url = write(data, tmp_path / "a.zarr", encoding={"density": ZEROS})
    # One of 27 chunks, less than what the density varies by.
    (tmp_path / "a.zarr" / "density" / "c" / "0" / "1" / "2").unlink()
    out = str(tmp_path / "v.zarr")
    refused(DataError, 3, lambda: cosmoflow.infer(url, out, "linear"), "missing", "1 of 27 chunks")


def test_chunks_that_are_empty_need_not_be_stored(tmp_path, serial_run):
    density = DENSITY.copy()
    density[:4, :4, :4] = 0.0
    density /= density.mean()
    data = dataset()
    data["density"][:] = density
    data["velocity"][:, :4, :4, :4] = 0.0
    url = write(
        data.chunk(x=4, y=4, z=4),
        tmp_path / "a.zarr",
        write_empty_chunks=False,
        encoding={"density": ZEROS, "velocity": ZEROS},
    )
    assert not (tmp_path / "a.zarr" / "density" / "c" / "0" / "0" / "0").exists()
    found = cosmoflow.infer(url, str(tmp_path / "v.zarr"), "linear:4")["velocity"]
    truth = cosmoflow.infer_array(density, BOX, "linear:4", redshift=0.0)["velocity"]
    np.testing.assert_allclose(found, truth, atol=1e-3)
    heard = []
    cosmoflow.derive(
        url, str(tmp_path / "d.zarr"), ["divergence"], serial_run(listener=heard.append)
    )
    texts = [one.text for one in heard if isinstance(one, Message) and one.level == "warning"]
    assert sum("1 of 27 chunks are not stored and read as 0" in text for text in texts) == 1


def test_a_region_of_a_box_has_no_mean(tmp_path, fields_store, serial_run):
    made = fields_store(12)
    group = open_group_for_writing(made.url)
    group.attrs["region"] = [[0, 12], [0, 12], [0, 6]]
    group["density"][:] = 2.0 * made.density
    check_contents(FieldStore(made.url), ["density"], serial_run())


@each("values", [DENSITY + 0j, DENSITY > 1.0, DENSITY.astype(str)])
def test_arrays_that_are_no_numbers_are_refused(values):
    refused(DataError, 3, lambda: cosmoflow.infer_array(values, BOX, "linear"), "real numbers")
