"""Boxes that cannot be: their size, time or cosmology; copies of files and of whole boxes."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
import zarr

import cosmoflow
from cosmoflow.config import load_settings
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.events import Message
from cosmoflow.stages.train import plan_train
from tests import snapshot_files as files
from tests.cases import each
from tests.conftest import refused

BOX = files.zeldovich_box(8, 500.0)
PAINT = {"paint": {"grid": 4}}


def user_store(path, position, velocity=BOX.velocity, **attributes):
    """Write particles as a user of zarr would, without cosmoflow."""
    group = zarr.open_group(path, mode="w", zarr_format=attributes.pop("zarr_format", 3))
    group.create_array("position", data=np.asarray(position, np.float32))
    group.create_array("velocity", data=np.asarray(velocity, np.float32))
    cosmology = {"h": 0.67, "Omega_m": 0.32, "Omega_b": 0.049, "sigma8": 0.8, "n_s": 0.96}
    group.attrs.update(
        format="cosmoflow/particles", format_version=1, box_size=500.0, redshift=1.0,
        cosmology=cosmology,
    )  # fmt: skip
    group.attrs.update(attributes)
    return str(path)


@each("mode", ["plain", "copied"])
def test_a_file_that_was_copied_over_another_is_found(tmp_path, serial_run, mode):
    """All counts are as the headers say; half of the particles are there twice."""
    halves = [
        replace(BOX, position=BOX.position[part], velocity=BOX.velocity[part])
        for part in (slice(256), slice(256, None))
    ]
    if mode == "copied":
        halves[1] = halves[0]
    for index, half in enumerate(halves):
        files.write_gadget_hdf5(
            tmp_path / f"snap.{index}.hdf5", half, total={1: 512}, files=2, mass=BOX.mass
        )
    url, out = str(tmp_path / "snap.0.hdf5"), str(tmp_path / "f.zarr")

    def paint():
        return cosmoflow.paint(url, out, serial_run(**PAINT))

    if mode == "copied":
        refused(DataError, 3, paint, "same particles", "snap.1.hdf5", "snap.0.hdf5")
    else:
        mean = paint()["momentum"].values.reshape(3, -1).mean(axis=1)
        np.testing.assert_allclose(mean, BOX.velocity.mean(axis=0), atol=1e-2)


def test_three_equal_sides_are_one(tmp_path, serial_run):
    one = files.write_gadget_hdf5(tmp_path / "a.hdf5", BOX)
    three = files.write_gadget_hdf5(tmp_path / "b.hdf5", BOX, BoxSize=np.full(3, BOX.size * 1e3))
    fields = [
        cosmoflow.paint(url, f"{url}.zarr", serial_run(**PAINT))["density"].values
        for url in (one, three)
    ]
    np.testing.assert_array_equal(*fields)
    unlike = np.array([1.0, 1.0, 2.0]) * BOX.size * 1e3
    url = files.write_gadget_hdf5(tmp_path / "c.hdf5", BOX, BoxSize=unlike)
    refused(DataError, 3, lambda: cosmoflow.paint(url, f"{url}.zarr", serial_run(**PAINT)), "cube")


def test_a_box_in_kpc_is_no_box_in_mpc(tmp_path, serial_run, fields_store):
    """Nothing in an npz file says the unit, and masses of a store need not be known."""
    url = str(tmp_path / "box.npz")
    np.savez(
        url, position=BOX.position * 1e3, velocity=BOX.velocity, box_size=BOX.size * 1e3,
        redshift=1.0, h=0.67, Omega_m=0.32,
    )  # fmt: skip
    paint = lambda: cosmoflow.paint(url, str(tmp_path / "f.zarr"), serial_run(**PAINT))  # noqa: E731
    refused(DataError, 3, paint, "500 Mpc/h", "500000", "--set snapshot.length_unit=kpc/h")
    assert cosmoflow.info(url, length_unit="kpc/h")["box_size"] == BOX.size
    made = fields_store(8)
    zarr.open_group(made.url).attrs["box_size"] = 32_000.0
    refused(DataError, 3, lambda: cosmoflow.open_fields(made.url), "32 Mpc/h")
    refused(
        DataError, 3, lambda: cosmoflow.infer_array(made.density, 32_000.0, "linear"), "32 Mpc/h"
    )
    with pytest.raises(ConfigError, match="box_size"):
        load_settings(None, ["simulate.box_size=500000"])


@each(
    ("name", "value", "words"),
    [
        ("redshift", float("nan"), "redshift"),
        ("redshift", -2.0, "above -1"),
        ("cosmology", {}, "lacks h and Omega_m"),
        ("cosmology", {"Omega_m": 0.3}, "lacks h"),
        ("cosmology", {"h": 0.7, "sigma8": 0.8}, "lacks Omega_m"),
        ("format_version", "1", "an integer"),
        ("box_size", 0.0, "above 0"),
    ],
)
def test_attributes_of_a_store_are_not_assumed(fields_store, name, value, words):
    made = fields_store(8)
    zarr.open_group(made.url).attrs[name] = value
    refused(DataError, 3, lambda: cosmoflow.open_fields(made.url), words)


@each("position", [BOX.position / BOX.size, np.full((512, 3), 7.0)], ids=["unit box", "one place"])
def test_particles_of_a_store_fill_its_box(tmp_path, serial_run, position):
    url = user_store(tmp_path / "p.zarr", position)
    paint = lambda: cosmoflow.paint(url, str(tmp_path / "f.zarr"), serial_run(**PAINT))  # noqa: E731
    refused(DataError, 3, paint, "only a corner of the box", "box_size")


def test_particles_in_zarr_format_2_are_called_so(tmp_path, serial_run):
    url = user_store(tmp_path / "p.zarr", BOX.position, zarr_format=2)
    paint = lambda: cosmoflow.paint(url, str(tmp_path / "f.zarr"), serial_run(**PAINT))  # noqa: E731
    refused(DataError, 3, paint, "zarr format")


def train_filter(fields, out, serial_run, fraction=0.3):
    """Train a filter; return the warnings that boxes validate as well as train."""
    heard = []
    run = serial_run(
        train={"model": "wiener", "crop": 8, "validation_fraction": fraction}, listener=heard.append
    )
    model = cosmoflow.train([str(url) for url in fields], str(out), run)
    texts = [one.text for one in heard if isinstance(one, Message) and one.level == "warning"]
    found = [text for text in texts if "is of the same box" in text]
    assert [note for note in model.spec.provenance["notes"] if "the same box" in note] == found
    return found


@each("again", ["the same URL", "a copy"])
def test_a_box_that_is_trained_on_and_validated_on_is_warned_of(
    fields_store, serial_run, tmp_path, again
):
    url = fields_store(12).url
    other = url if again == "the same URL" else shutil.copytree(url, tmp_path / "copy.zarr")
    (text,) = train_filter([url, other], tmp_path / "model", serial_run)
    assert str(other) in text
    heard = []
    plan_train([url, str(other)], serial_run(train={"model": "wiener"}, listener=heard.append))
    assert [one.text for one in heard] == [text]


def test_boxes_of_one_simulation_train_or_validate(serial_run, tmp_path):
    """Two boxes of one run, each at two redshifts, one of them also on other cells."""
    simulate = {"box_size": 32.0, "particles": 16, "steps": 3, "mesh_factor": 1, "count": 2}
    boxes = tmp_path / "boxes"
    cosmoflow.simulate(str(boxes), serial_run(simulate={**simulate, "redshift": [1, 0]}))
    first, second = [], []
    for number, fields in enumerate((first, second)):
        for z, grid in ((1, 16), (0, 16), (0, 12)):
            fields.append(str(tmp_path / f"{number}-{z}-{grid}.zarr"))
            particles = str(boxes / f"box-{number:04d}-z{z}.zarr")
            cosmoflow.paint(particles, fields[-1], serial_run(paint={"grid": grid}))
    (text,) = train_filter([*first, *second[1:], second[0]], tmp_path / "a", serial_run, 0.2)
    assert text.startswith(f"{second[0]} validates the model, but {second[2]}, which trains it")
    assert "the last 1 of 6" in text
    (text,) = train_filter(
        [first[0], second[0], *second[1:], *first[1:]], tmp_path / "b", serial_run
    )
    assert "and so for 1 more" in text
    # What the warnings advise.
    assert not train_filter([*first, *second], tmp_path / "c", serial_run, 0.45)
    (text,) = train_filter(first, tmp_path / "d", serial_run)
    assert text.endswith("Add stores of another box")


def test_a_velocity_in_m_s_without_a_unit_is_refused(tmp_path, fields_store, serial_run):
    """As another program wrote it: with no ledger, and no `units` on the variable."""
    made = fields_store(8)
    with xr.open_zarr(made.url, consolidated=False) as data:
        attributes, centres = data.attrs, {name: data[name].values for name in "xyz"}
    dims = ("component", "x", "y", "z")
    for factor in (1.0, 1e4):
        url = str(tmp_path / f"{factor:g}.zarr")
        xr.Dataset({"velocity": (dims, factor * made.velocity)}, centres, attributes).to_zarr(
            url, zarr_format=3, consolidated=False
        )
        spectrum = lambda url=url: cosmoflow.spectra(  # noqa: E731
            url, f"{url}-power.zarr", "velocity", serial_run()
        )
        if factor == 1.0:
            assert float(spectrum()["power"][0]) > 0.0
        else:
            refused(DataError, 3, spectrum, "speed of light", "km/s")


def test_headers_with_text_or_another_name_of_w(tmp_path, serial_run):
    text = np.array(["a"] * 6, "S1")
    url = files.write_gadget_hdf5(tmp_path / "a.hdf5", BOX, MassTable=text)
    paint = lambda: cosmoflow.paint(url, f"{url}.zarr", serial_run(**PAINT))  # noqa: E731
    refused(DataError, 3, paint, "MassTable", "does not hold numbers")
    np.savez(tmp_path / "b.npz", **files.npz_arrays(BOX, w=-0.7))
    assert cosmoflow.info(str(tmp_path / "b.npz"))["cosmology"]["w0"] == -0.7
