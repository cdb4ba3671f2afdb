"""What is taken to be the same input: content of stores, files and rows of snapshots."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
import zarr

from cosmoflow.config.snapshot import SnapshotHints
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
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.identity import checksum_array
from cosmoflow.storage.particles import ParticleStore
from cosmoflow.storage.snapshots import describe_snapshot, open_particles
from tests import snapshot_files as files
from tests.cases import each
from tests.conftest import refused

GRID, BOX, SIDE = 8, 16.0, 8
PAINT = {"paint": {"grid": GRID, "shard": 4, "chunk": 4}}


def write_npz(path, seed, speed, save=np.savez):
    """Write a realisation: those of all seeds have files of one size."""
    rng = np.random.default_rng(seed)
    position, velocity = rng.random((SIDE**3, 3)) * BOX, speed * rng.normal(size=(SIDE**3, 3))
    save(
        path, position=position, velocity=velocity,
        box_size=BOX, redshift=0.0, h=0.7, Omega_m=0.3,
    )  # fmt: skip


def rms(url):
    with xr.open_zarr(url, consolidated=False) as data:
        return float(np.sqrt((data["velocity"].values.astype(float) ** 2).sum(axis=0).mean()))


def interrupt(url, ledger="fields"):
    """Make an output what a run leaves that dies after half of its shards."""
    group = zarr.open_group(str(url), mode="r+")
    flags = group[f"ledger/{ledger}"]
    flags[flags.shape[0] // 2 :] = 0
    group.attrs["status"] = "incomplete"


def correct(url, name="density"):
    """Change one cell, and nothing else."""
    values = zarr.open_group(str(url), mode="r+")[name]
    values[..., 0, 0, 0] = values[..., 0, 0, 0] * 1.1


# Snapshots


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


def write_set(path, box):
    return files.write_gadget_set(path, box, 2)


def write_bigfile(path, box):
    """Write a bigfile as its text says, without its library."""
    header = files.gadget_bigfile_header(
        box, 1e-3, files.KPC, UsePeculiarVelocity=np.array([1], "i4"), RSDFactor=np.array([1.0])
    )
    (path / "Header").mkdir(parents=True, exist_ok=True)
    lines = [f"{key} {v.dtype.str} {v.size} {v.tobytes().hex()} #" for key, v in header.items()]
    (path / "Header" / "attr-v2").write_text("\n".join(lines) + "\n")
    (path / "Header" / "header").write_text("DTYPE: <i8\nNMEMB: 0\nNFILE: 0\n")
    for name, values in (("Position", box.position / 1e-3), ("Velocity", box.velocity)):
        block = path / "1" / name
        block.mkdir(parents=True, exist_ok=True)
        cuts = {"000000": values[:1000], "000001": values[1000:], "000002": values[:0]}
        for file, rows in cuts.items():
            if len(rows):
                (block / file).write_bytes(rows.astype("<f4").tobytes())
        rows = "".join(f"{file}: {len(rows)} : 0\n" for file, rows in cuts.items())
        (block / "header").write_text(f"DTYPE: <f4\nNMEMB: 3\nNFILE: {len(cuts)}\n{rows}")
    return str(path)


FORMATS = {
    "snap.hdf5": files.write_gadget_hdf5,
    "set": write_set,
    "swift.hdf5": files.write_swift,
    "binary": files.write_gadget_binary,
    "abacus": files.write_abacus,
    "PART_003": write_bigfile,
}


@pytest.fixture(scope="module")
def zeldovich():
    return files.zeldovich_box(16)


def keep_times(path, times=None):
    """Return the times of change of a file or of all in a folder, or set them back."""
    found = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    if times is None:
        return {one: (one.stat().st_size, one.stat().st_mtime_ns) for one in found}
    for one in found:
        os.utime(one, ns=(times[one][1], times[one][1]))
    return None


@each("name", FORMATS)
def test_rows_of_every_format_count(tmp_path, zeldovich, name):
    """Files of the same places, sizes and times of change, with other rows, are another input."""
    path, write = tmp_path / name, FORMATS[name]
    url = write(path, zeldovich) or str(path)
    times = keep_times(path)
    before = open_particles(str(url)).digest
    assert describe_snapshot(str(url))["digest"] == before
    found = {before}
    for column in ("position", "velocity"):
        values = np.roll(getattr(zeldovich, column), 1, axis=0)
        write(path, replace(zeldovich, **{column: values}))
        keep_times(path, times)
        assert keep_times(path) == times
        found.add(open_particles(str(url)).digest)
    assert len(found) == 3
    write(path, zeldovich)
    keep_times(path, times)
    assert open_particles(str(url)).digest == before


@each("save", [np.savez, np.savez_compressed])
def test_rows_of_npz_count(tmp_path, save):
    snapshot, digests = tmp_path / "snap.npz", set()
    for seed in (1, 2):
        write_npz(snapshot, seed, 100.0, save)
        os.utime(snapshot, ns=(10**18, 10**18))
        digests.add(open_particles(str(snapshot)).digest)
        assert open_particles(str(snapshot)).digest in digests
    assert len(digests) == 2


def test_place_and_time_of_change_count_unless_all_bytes_are_hashed(tmp_path):
    """A byte that no sample reads, changed with the time set back, is found by ``full_hash``."""
    box = files.zeldovich_box(18)
    path = Path(files.write_gadget_binary(tmp_path / "snap", box) or tmp_path / "snap")
    whole = SnapshotHints(full_hash=True)
    (tmp_path / "moved").mkdir()
    moved = Path(shutil.copy2(path, tmp_path / "moved" / "snap"))

    def identities(hints=None):
        return [open_particles(str(one), hints).digest for one in (path, moved)]

    first, second = identities()
    assert first != second
    same, also = identities(whole)
    assert same == also
    stat = path.stat()
    os.utime(path, ns=(1, 1))
    assert identities()[0] != first
    assert identities(whole)[0] == same
    content = bytearray(path.read_bytes())
    # The positions come first: row 300 of 5832, of which 16 times 256 are sampled.
    content[256 + 8 + 4 + 300 * 12] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    assert identities()[0] == first
    assert identities(whole)[0] != same


# Stores


def test_a_store_is_what_it_holds(fields_store, tmp_path):
    made = fields_store(GRID, shard=4, chunk=2)
    before = FieldStore(made.url).digest
    copy = shutil.copytree(made.url, tmp_path / "copy.zarr")
    assert FieldStore(str(copy)).digest == before
    zarr.open_group(copy, mode="r+").attrs["provenance"] = {}
    assert FieldStore(str(copy)).digest == before
    seen = {before}
    for change in (
        lambda group: group.attrs.update(redshift=0.5),
        lambda group: group.attrs.update(box_size=25.0),
        lambda group: group.attrs.update(cosmology={"h": 0.7, "Omega_m": 0.3}),
        lambda group: group["density"].attrs.update(long_name="mass"),
        lambda group: group["x"].__setitem__(0, 0.5),
        lambda group: correct(copy),
        lambda group: correct(copy, "velocity"),
    ):
        change(zarr.open_group(copy, mode="r+"))
        digest = FieldStore(str(copy)).digest
        assert digest not in seen
        seen.add(digest)


def test_a_particle_store_is_what_it_holds(particle_store, tmp_path):
    made = particle_store(6, mass=True)
    before = ParticleStore(made.url).digest
    copy = str(shutil.copytree(made.url, tmp_path / "copy.zarr"))
    assert ParticleStore(copy).digest == before
    for name in ("position", "velocity", "mass"):
        shutil.rmtree(copy)
        shutil.copytree(made.url, copy)
        values = zarr.open_group(copy, mode="r+")[name]
        values[3] = values[3] * 0.5
        assert ParticleStore(copy).digest != before


@each(
    "layout",
    [
        {"chunks": (4, 4, 4), "zarr_format": 2},
        {"chunks": (4, 4, 4), "compressors": None},
        {"chunks": (4, 4, 4)},
        {"chunks": (4, 4, 4), "compressors": zarr.codecs.Crc32cCodec()},
        {"chunks": (4, 4, 4), "shards": (8, 8, 8)},
        {"chunks": (4, 4, 4), "shards": (8, 8, 8), "compressors": zarr.codecs.Crc32cCodec()},
    ],
    ids=["v2", "plain", "zstd", "crc", "shards", "shards-crc"],
)
def test_arrays_of_every_layout(tmp_path, layout):
    values = np.random.default_rng(0).random((8, 8, 8)).astype("f4")

    def checksum(name):
        group = zarr.open_group(tmp_path / name, mode="r")
        return checksum_array(str(tmp_path / name), "density", group["density"])

    for name in ("one", "two"):
        group = zarr.create_group(tmp_path / name, zarr_format=layout.get("zarr_format", 3))
        own = {key: value for key, value in layout.items() if key != "zarr_format"}
        group.create_array("density", data=values, **own)
    assert checksum("one") == checksum("two")
    zarr.open_group(tmp_path / "two", mode="r+")["density"][7, 7, 7] = 2.0
    assert checksum("one") != checksum("two")
    zarr.open_group(tmp_path / "two", mode="r+")["density"][7, 7, 7] = values[7, 7, 7]
    assert checksum("one") == checksum("two")


def test_the_same_particles_elsewhere_give_the_same_output(particle_store, tmp_path, serial_run):
    made = particle_store(6)
    copy = str(shutil.copytree(made.url, tmp_path / "copy.zarr"))
    found = []
    for index, url in enumerate((made.url, copy)):
        out = str(tmp_path / f"{index}.zarr")
        paint(url, out, serial_run(**PAINT))
        found.append(FieldStore(out))
    one, other = (store.metadata.provenance for store in found)
    assert one["digest"] == other["digest"]
    assert found[0].digest == found[1].digest


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
