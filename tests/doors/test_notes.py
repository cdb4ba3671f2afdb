"""What was assumed of a snapshot: shown, kept in all that is made of it, printed by `info`."""

import json

import numpy as np
import pytest

from cosmoflow.cli.app import run_app
from cosmoflow.events import Message
from cosmoflow.stages.convert import convert
from cosmoflow.stages.derive import derive
from cosmoflow.stages.inspect import inspect
from cosmoflow.stages.paint import paint
from cosmoflow.stages.spectra import spectra
from cosmoflow.storage.urls import open_group
from tests import snapshot_files as files


@pytest.fixture(scope="module")
def box():
    return files.zeldovich_box(16)


@pytest.fixture
def snapshot(tmp_path, box):
    return files.write_gadget_hdf5(tmp_path / "snap.hdf5", box)


ASSUMED = "sigma8 is not in the header; 0.83 is assumed; --set snapshot.sigma8=VALUE states it"
SETTINGS = {"paint": {"grid": 8}, "snapshot": {"Omega_b": 0.04, "length_unit": "kpc/h"}}


def provenance(url):
    return dict(open_group(url).attrs["provenance"])


def check_kept(kept, snapshot):
    """Assert that a provenance says what the snapshot was, and how it was read."""
    assert ASSUMED in kept["notes"]
    said = kept["snapshot"]
    assert said["url"] == snapshot
    assert said["format"] == "Gadget HDF5"
    assert said["conventions"] == {
        "length": "kpc/h", "length_from": "hint", "velocity": "gadget: times sqrt(a)",
    }  # fmt: skip
    assert said["hints"]["Omega_b"] == 0.04
    assert said["counts"] == {"PartType1": 4096}


def test_painted_and_converted_stores_keep_what_was_assumed(tmp_path, snapshot, serial_run):
    heard = []
    run = serial_run(listener=heard.append, **SETTINGS)
    fields, store = str(tmp_path / "fields.zarr"), str(tmp_path / "particles.zarr")
    paint(snapshot, fields, run)
    assert Message(ASSUMED) in heard
    kept = provenance(fields)
    check_kept(kept, snapshot)
    assert kept["sources"] == {"particles": snapshot}
    assert kept["config"]["snapshot"]["length_unit"] == "kpc/h"
    heard.clear()
    convert(snapshot, store, run)
    assert Message(ASSUMED) in heard
    check_kept(provenance(store), snapshot)
    # What is painted from the store rests on the same assumptions.
    heard.clear()
    paint(store, str(tmp_path / "again.zarr"), serial_run(listener=heard.append, paint={"grid": 8}))
    assert Message(ASSUMED) in heard
    again = provenance(str(tmp_path / "again.zarr"))
    check_kept(again, snapshot)
    assert again["sources"] == {"particles": store}


def test_hints_are_part_of_the_identity_and_notes_are_not(tmp_path, snapshot, serial_run):
    digests = []
    for index, hints in enumerate([{}, {"n_s": 0.97}, {}]):
        out = str(tmp_path / f"{index}.zarr")
        paint(snapshot, out, serial_run(paint={"grid": 8}, snapshot=hints))
        digests.append(provenance(out)["digest"])
    assert digests[0] == digests[2] != digests[1]


def test_notes_go_on_to_what_is_made_of_fields(tmp_path, snapshot, serial_run):
    run = serial_run(**SETTINGS)
    fields, web = str(tmp_path / "fields.zarr"), str(tmp_path / "web.zarr")
    paint(snapshot, fields, run)
    derive(fields, web, ["velocity"], run)
    assert f"fields: {ASSUMED}" in provenance(web)["notes"]
    derive(web, str(tmp_path / "twice.zarr"), ["divergence"], run)
    assert f"fields: {ASSUMED}" in provenance(str(tmp_path / "twice.zarr"))["notes"]
    spectra(fields, str(tmp_path / "power.zarr"), "density", run)
    assert f"fields: {ASSUMED}" in provenance(str(tmp_path / "power.zarr"))["notes"]


def test_notes_go_on_to_predictions(tmp_path, snapshot, fields_store, serial_run, capsys):
    from cosmoflow.stages.infer import infer
    from cosmoflow.storage.outputs import add_notes

    store = fields_store(16, shard=16, chunk=16, cell=2.0)
    add_notes(store.url, [ASSUMED, "one", "two", "three"])
    out = str(tmp_path / "velocity.zarr")
    infer(store.url, out, "linear", serial_run())
    assert f"fields: {ASSUMED}" in provenance(out)["notes"]
    # Those of the prediction itself are shown first: they are not to be left out.
    add_notes(out, ["the density does not scatter as it should"])
    assert run_app(["info", out]) == 0
    notes = [
        one for one in capsys.readouterr().out.splitlines() if one[:7] in ("  note:", "  more ")
    ]
    assert notes == [
        "  note: the density does not scatter as it should",
        f"  note: fields: {ASSUMED}",
        "  note: fields: one",
        "  note: fields: two",
        "  more notes: 1, with -v",
    ]


def test_info_prints_notes_one_a_line(tmp_path, snapshot, serial_run, capsys):
    out = str(tmp_path / "fields.zarr")
    paint(snapshot, out, serial_run(**SETTINGS))
    assert ASSUMED in inspect(out)["notes"]
    assert run_app(["info", out]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"  note: {ASSUMED}" in lines
    assert f"  made by: paint of {snapshot}" in lines
    assert not any("provenance" in line for line in lines)
    assert run_app(["info", out, "-v"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"  note: {ASSUMED}" in lines
    assert f"  provenance.sources.particles: {snapshot}" in lines
    assert any("snapshot.conventions.length_from: hint" in line for line in lines)
    assert run_app(["info", out, "--json"]) == 0
    assert ASSUMED in json.loads(capsys.readouterr().out)["notes"]
    # A snapshot is described as before it is painted.
    assert run_app(["info", snapshot]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"  note: {ASSUMED}" in lines
    assert "  box: 500 Mpc/h" in lines
    assert any(line.endswith(" M_sun/h") for line in lines)
    assert any(line.startswith("  read as: length kpc/h; ") for line in lines)


def test_the_command_prints_notes_and_keeps_warnings(tmp_path, box, capsys):
    np.savez(tmp_path / "box.npz", **files.npz_arrays(box))
    out = str(tmp_path / "fields.zarr")
    call = ["paint", str(tmp_path / "box.npz"), out, "--grid", "8", "--engine", "serial"]
    assert run_app(call) == 0
    error = capsys.readouterr().err.splitlines()
    assert ASSUMED in error
    warning = "no masses are given: all particles are assumed to have the same mass"
    assert f"warning: {warning}" in error
    assert warning in provenance(out)["notes"]
