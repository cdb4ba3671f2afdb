"""Runs whose inputs have changed: none is resumed with another state, and no output mixes two."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
import zarr

from cosmoflow.cosmology.linear_power import LinearPower
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.events import StageAdvanced
from cosmoflow.stages.convert import convert
from cosmoflow.stages.derive import derive
from cosmoflow.stages.evaluate import command as stage
from cosmoflow.stages.infer import infer
from cosmoflow.stages.paint import paint
from cosmoflow.stages.simulate import simulate
from cosmoflow.stages.spectra import spectra
from cosmoflow.stages.train import train
from tests.cases import each
from tests.conftest import refused
from tests.doors.changes import GRID, PAINT, correct, write_npz


def rms(url):
    with xr.open_zarr(url, consolidated=False) as data:
        return float(np.sqrt((data["velocity"].values.astype(float) ** 2).sum(axis=0).mean()))


def interrupt(url, ledger="fields"):
    """Make an output what a run leaves that dies after half of its shards."""
    group = zarr.open_group(str(url), mode="r+")
    flags = group[f"ledger/{ledger}"]
    flags[flags.shape[0] // 2 :] = 0
    group.attrs["status"] = "incomplete"


# Resuming


def resumes(run, interrupted, *words):
    """Assert that a stage resumes what it began, and refuses it when an input has changed."""
    run("error")
    interrupted()
    run("resume")
    interrupted()
    yield
    refused(ConfigError, 2, lambda: run("resume"), *words, "--overwrite")
    yield


@each("whole", [False, True])
def test_another_realisation_of_the_same_name_and_size_is_refused(tmp_path, serial_run, whole):
    snapshot, out = tmp_path / "snap.npz", str(tmp_path / "fields.zarr")
    write_npz(snapshot, 1, 100.0)
    size = snapshot.stat().st_size
    paint(str(snapshot), out, serial_run(**PAINT))
    first = rms(out)
    if not whole:
        interrupt(out)
    write_npz(snapshot, 2, 200.0)
    assert snapshot.stat().st_size == size
    resuming = serial_run(**PAINT, existing="resume")
    refused(
        ConfigError, 2, lambda: paint(str(snapshot), out, resuming),
        "another state of the input 'particles'", str(snapshot), "--overwrite",
    )  # fmt: skip
    paint(str(snapshot), out, serial_run(**PAINT, existing="overwrite"))
    paint(str(snapshot), str(tmp_path / "direct.zarr"), serial_run(**PAINT))
    assert rms(out) == rms(tmp_path / "direct.zarr") == pytest.approx(2.0 * first, rel=0.15)


def test_derive_does_not_pass_mixed_data_on(fields_store, tmp_path, serial_run):
    made, out = fields_store(GRID, shard=8, chunk=4), str(tmp_path / "out.zarr")

    def run(existing):
        derive(made.url, out, ["divergence"], serial_run(existing=existing))

    steps = resumes(run, lambda: interrupt(out), "another state of the input 'fields'", made.url)
    next(steps)
    correct(made.url, "velocity")
    next(steps)


def test_infer_names_the_fields_that_changed(fields_store, tmp_path, serial_run):
    made, out = fields_store(GRID, shard=8, chunk=4), str(tmp_path / "out.zarr")
    options = {"infer": {"tile": 8, "shard": 8}}

    def run(existing):
        infer(made.url, out, "linear:2", serial_run(existing=existing, **options))

    steps = resumes(run, lambda: interrupt(out), "another state of the input 'fields'", made.url)
    next(steps)
    zarr.open_group(made.url, mode="r+").attrs["redshift"] = 1.0
    next(steps)


def test_convert_names_the_snapshot_that_changed(tmp_path, serial_run):
    snapshot, out = tmp_path / "snap.npz", str(tmp_path / "out.zarr")
    write_npz(snapshot, 1, 100.0)

    def run(existing):
        convert(str(snapshot), out, serial_run(existing=existing))

    steps = resumes(run, lambda: interrupt(out, "particles"), "input 'snapshot'", str(snapshot))
    next(steps)
    write_npz(snapshot, 2, 100.0)
    next(steps)


def test_evaluate_names_the_prediction_that_changed(
    fields_store, tmp_path, serial_run, monkeypatch
):
    made, out = fields_store(GRID, shard=4, chunk=2), str(tmp_path / "report")
    prediction = str(shutil.copytree(made.url, tmp_path / "mine.zarr"))
    options = {"evaluate": {"subbox": 8.0, "smoothing": (0.0,)}}
    mark = tmp_path / "report" / "cosmoflow.json"

    def run(existing):
        stage.evaluate(
            made.url, f"mine={prediction}", out, serial_run(existing=existing, **options)
        )

    # Measuring and drawing take their time, and nothing of them is looked at.
    monkeypatch.setattr(
        stage, "measure", lambda *arguments: SimpleNamespace(metrics={"residual": {}})
    )
    monkeypatch.setattr(stage, "_write", lambda *a: stage._mark(out, "complete", a[-1]))
    run("error")
    run("resume")
    correct(prediction, "velocity")
    refused(ConfigError, 2, lambda: run("resume"), "another state of the input 'mine'", prediction)
    assert json.loads(mark.read_text())["status"] == "complete"


def test_spectra_name_the_store_that_changed(fields_store, tmp_path, serial_run):
    made, out = fields_store(GRID, shard=8, chunk=4), str(tmp_path / "power.zarr")
    other = str(shutil.copytree(made.url, tmp_path / "other.zarr"))

    def run(existing):
        return spectra(made.url, out, "density", serial_run(existing=existing), cross_fields=other)

    first = float(run("error")["correlation"][0])
    assert first == pytest.approx(1.0)
    run("resume")
    values = zarr.open_group(other, mode="r+")["density"]
    values[:] = 1.0 - 0.1 * (values[:] - 1.0)
    refused(
        ConfigError, 2, lambda: run("resume"), "another state of the input 'cross_fields'", other
    )
    assert float(run("overwrite")["correlation"][0]) == pytest.approx(-1.0)


def test_train_names_the_box_that_changed(fields_store, tmp_path, serial_run):
    boxes = [fields_store(GRID, shard=8, chunk=4, seed=seed).url for seed in (1, 2)]
    out = tmp_path / "model"

    def run(existing):
        train(boxes, str(out), serial_run(existing=existing, train={"model": "wiener", "crop": 8}))

    def interrupted():
        (out / "model.json").unlink()

    steps = resumes(run, interrupted, "another state of the input 'fields 1'", boxes[1])
    next(steps)
    correct(boxes[1], "velocity")
    next(steps)


def test_simulate_names_the_white_noise_that_changed(tmp_path, serial_run, monkeypatch):
    noise, out = tmp_path / "noise.npy", str(tmp_path / "box.zarr")
    settings = {"particles": 8, "box_size": 32.0, "method": "2lpt", "white_noise": str(noise)}

    def write(seed):
        np.save(noise, np.random.default_rng(seed).normal(size=(8, 8, 8)).astype("f4"))

    def run(existing):
        simulate(out, serial_run(existing=existing, simulate=settings))

    # A real one takes longer than the box.
    k = np.geomspace(1e-3, 50.0, 200)
    power = LinearPower(k, 1e4 * k / (1.0 + (k / 0.02) ** 3))
    monkeypatch.setattr(LinearPower, "from_cosmology", lambda cosmology: power)
    write(1)
    steps = resumes(run, lambda: interrupt(out, "particles"), "input 'white_noise'", str(noise))
    next(steps)
    write(2)
    next(steps)


def test_what_an_older_version_began_is_made_again(fields_store, tmp_path, serial_run):
    """Digests of its inputs did not depend on data, and it did not say that they do."""
    made, out = fields_store(GRID, shard=8, chunk=4), str(tmp_path / "out.zarr")
    model, settings = tmp_path / "model", {"train": {"model": "wiener", "crop": 8}}

    def run(existing):
        derive(made.url, out, ["divergence"], serial_run(existing=existing))

    def learn(existing):
        train([made.url, made.url], str(model), serial_run(existing=existing, **settings))

    run("error")
    learn("error")
    attributes = zarr.open_group(out, mode="r+").attrs
    old = {**attributes["provenance"], "digest": "0" * 16, "inputs": {"fields": "1" * 16}}
    attributes["provenance"] = {k: v for k, v in old.items() if k != "identity_version"}
    (model / "run.json").write_text("0123456789abcdef\n")
    for again in (run, learn):
        refused(
            ConfigError, 2, lambda again=again: again("resume"), "older cosmoflow", "--overwrite"
        )
        again("overwrite")


# An input that changes while a run reads it


@each("stage", ["paint", "derive", "infer"])
def test_an_input_that_changes_meanwhile_is_not_mixed(fields_store, tmp_path, serial_run, stage):
    out, snapshot = str(tmp_path / "out.zarr"), tmp_path / "snap.npz"
    write_npz(snapshot, 1, 100.0)
    made = fields_store(GRID, shard=4, chunk=2)
    advanced = []

    def listen(event):
        if isinstance(event, StageAdvanced) and event.stage == stage:
            advanced.append(event)
            if len(advanced) == 2:
                write_npz(snapshot, 2, 200.0)
                correct(made.url)
                correct(made.url, "velocity")

    def run(**how):
        if stage == "paint":
            paint(str(snapshot), out, serial_run(**PAINT, **how))
        elif stage == "derive":
            derive(made.url, out, ["divergence"], serial_run(**how))
        else:
            infer(made.url, out, "linear:2", serial_run(infer={"tile": 4, "shard": 4}, **how))

    source = str(snapshot) if stage == "paint" else made.url
    refused(DataError, 3, lambda: run(listener=listen), source, "changed while", "--overwrite")
    assert (advanced[-1].done, advanced[-1].total) == (8, 8)
    assert zarr.open_group(out).attrs["status"] == "incomplete"
    refused(ConfigError, 2, lambda: run(existing="resume"), "another state of the input")
    run(existing="overwrite")
    assert zarr.open_group(out).attrs["status"] == "complete"
