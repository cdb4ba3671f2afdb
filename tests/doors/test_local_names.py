"""Local paths, file URLs and ``~`` are literal; what is no place is refused."""

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

import cosmoflow
from cosmoflow.cli.app import run_app
from cosmoflow.cli.console import Reporter
from cosmoflow.config.loading import load_settings
from cosmoflow.errors import StorageError
from cosmoflow.stages.evaluate.inputs import open_inputs
from cosmoflow.stages.models import find_model
from cosmoflow.storage import urls
from cosmoflow.storage.initial import read_power_table
from cosmoflow.storage.places import absolute, overlaps
from cosmoflow.storage.snapshots import open_particles
from tests.cases import each
from tests.doors.literal import BOX, OTHER, SERIAL, use
from tests.snapshot_files import write_gadget_hdf5


@each(
    "name",
    [
        "run#2",
        "a%2Fb",
        "run[1]",
        "a:b",
        "x:1",
        "~",
        "~me",
        "file:x",
        "gcs:",
        "s3:b",
        "a b\n",
        "\x7f",
    ],
)
def test_a_local_name_is_literal(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for url, place in (
        (f"./{name}", name),
        (f"{tmp_path}/{name}", name),
        (f"in:1/{name}", f"in:1/{name}"),
    ):
        before = {path for path in tmp_path.rglob("*") if path.is_file()}
        written = use(absolute(url))
        after = {path for path in tmp_path.rglob("*") if path.is_file()}
        # Compared as the operating system has them.
        assert after - before == {Path(os.path.join(tmp_path, place, one)) for one in written}  # noqa: PTH118
        urls.remove(url)
        assert not urls.exists(url)


@each(
    ("url", "path"),
    [
        ("file:///a%20b", "/a b"),
        ("FILE:///a%23b%3Fc%25", "/a#b?c%"),
        ("file://localhost/a:b", "/a:b"),
        ("file:/a[1]", "/a[1]"),
        ("file:///caf%E9", os.fsdecode(b"/caf\xe9")),
    ],
)
def test_a_file_url_is_decoded_as_its_standard_says(url, path):
    assert absolute(url) == path
    assert overlaps(url, f"{path}/inside")


@each(
    "url",
    ["file:///a#b", "file:///a?b", "file:///100%", "file:///a%2Fb", "file:///a%00", "file://out.zarr",
     "file://host/a", "file://", "file:a", "s3:/b/a", "s3:a", "s3://", "s3:///a", "s3://b#c/a",
     "s3://host:9000/b/a", "gcs://b/a", "http://host/a", "", "a\0b"],
)  # fmt: skip
def test_what_is_no_place_is_refused(files, tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    if "\0" not in url:
        assert run_app(["paint", f"{files}/snap.hdf5", url, *SERIAL]) == 4
    with pytest.raises(StorageError):
        cosmoflow.open_fields(url)
    assert not list(tmp_path.iterdir())


def test_a_remedy_for_a_file_url_works(tmp_path):
    with pytest.raises(StorageError) as caught:
        urls.write_bytes(f"file://{tmp_path}/a#b", "x", b"x")
    assert f"plain path, {tmp_path}/a#b;" in caught.value.remedy
    urls.write_bytes(f"{tmp_path}/a#b", "x", b"x")
    assert urls.read_bytes(f"file://{tmp_path}/a%23b", "x") == b"x"


@each("name", ["snap[0].hdf5", "x:1", "run:2.hdf5", "http:snap", "s3:snap", "a?b*"])
def test_a_snapshot_that_exists_is_meant_literally(files, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copy(files / "snap.hdf5", name)
    # What a glob would find instead.
    for decoy in ("snap0.hdf5", "axb", "axbc"):
        shutil.copy(files / "other.hdf5", decoy)
    with h5py.File(name) as file:
        expected = file["PartType1/Coordinates"][:] * 1e-3
    np.testing.assert_allclose(open_particles(name).read(0, 512).position, expected, atol=1e-3)


def test_unknown_schemes_hide_no_file(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("http:").mkdir()
    shutil.copy(files / "snap.hdf5", "http:/snap.hdf5")
    assert open_particles("http://snap.hdf5").count == 512
    with pytest.raises(StorageError, match="unknown kind"):
        open_particles("http://snap2.hdf5")


def test_folders_of_globs_and_base_names_are_literal(tmp_path):
    for folder, boxes in (("run[1]", BOX), ("run1", OTHER)):
        (tmp_path / folder).mkdir()
        for index, part in enumerate(boxes.split(2)):
            path = tmp_path / folder / f"snap[0].{index}.hdf5"
            write_gadget_hdf5(path, part, total={1: 512}, files=2, mass=BOX.mass)
    for url in ("run[1]", "run[1]/snap*", "run[1]/snap[[]0[]].?.hdf5", "run[1]/snap[0]"):
        found = open_particles(f"{tmp_path}/{url}").read(0, 512).position
        np.testing.assert_allclose(found, BOX.position, atol=1e-3)
    # Where there is no such folder, it is a pattern as before.
    found = open_particles(f"{tmp_path}/run[12]/snap*.hdf5").read(0, 512).position
    np.testing.assert_allclose(found, OTHER.position, atol=1e-3)


def test_home_is_expanded_everywhere(files, tmp_path, monkeypatch, capsys):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(home))
    shutil.copytree(files / "fields.zarr", home / "a=fields.zarr")
    (home / "c.yaml").write_text("paint: {grid: 24}")
    (home / "table").write_text("0.1 2\n1 3\n")
    options = ("--field", "density", "--engine", "serial", "--json", "--config", "~/c.yaml")
    assert run_app(["spectra", "~/a=fields.zarr", "--out=~/p.zarr", *options]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["out"] == f"{home}/p.zarr"
    assert (home / "p.zarr/zarr.json").is_file()
    assert load_settings("~/c.yaml").paint.grid == 24
    assert read_power_table("~/table")[1].tolist() == [2.0, 3.0]
    assert find_model("~/model") == f"{home}/model"
    assert urls.overlaps("~/a", f"{home}/a/b")
    assert open_inputs("~/a=fields.zarr", ["mine=~/a=fields.zarr"], ()).found.keys() == {"mine"}
    assert not list(elsewhere.iterdir())
    # A file of such a name is meant by ./~, and by its name where that is no user's.
    Path("~me").write_text("x")
    assert absolute("~me") == f"{elsewhere}/~me"
    assert absolute("./~") == f"{elsewhere}/~"
    assert absolute("~root/x") == f"{os.path.expanduser('~root')}/x"  # noqa: PTH111
    for unusable in ("", "relative"):
        monkeypatch.setenv("HOME", unusable)
        with pytest.raises(StorageError, match="home folder"):
            absolute("~/x")


def test_a_store_may_have_a_name_with_an_equals_sign(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(files / "fields.zarr", "a=b.zarr")
    found = open_inputs("a=b.zarr", ["a=b.zarr", "c=a=b.zarr"], ()).found
    assert list(found) == ["a=b", "c"]


def test_a_deleted_working_directory_is_named(files, tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    store, snapshot = f"{files}/fields.zarr", f"{files}/snap.hdf5"
    for command in (
        ["info", "x"], ["info", store], ["models"], ["plan", "gigabox"], ["demo", "--out", "x"],
        ["paint", snapshot, "x", *SERIAL], ["paint", snapshot, f"{tmp_path}/x", *SERIAL],
        ["infer", store, f"{tmp_path}/y", "--model", "linear"], ["simulate", "x", "--dry-run"],
        ["evaluate", store, store, "--out", "x"], ["train", store, "--out", "x"],
    ):  # fmt: skip
        assert run_app(command) == 4
        assert "working directory has been deleted" in capsys.readouterr().err
    with pytest.raises(StorageError, match="working directory"):
        cosmoflow.infer(store, f"{tmp_path}/z", "linear")
    with pytest.raises(StorageError, match="working directory"):
        cosmoflow.inspect("x")
    assert cosmoflow.open_fields(store).sizes["x"] == 16
    assert not list(tmp_path.iterdir())


@each("name", ["run[bold].zarr", "x[/].zarr", "a\\[b].zarr", "a\\[/b].zarr"])
def test_names_are_printed_as_they_are(name, capsys):
    Reporter(as_json=False, verbosity=0).error(StorageError("no such store", where=name))
    assert f" {name}\n" in capsys.readouterr().err
