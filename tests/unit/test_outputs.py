"""Outputs: begun, resumed, replaced and added to; checkpoints."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from cosmoflow.errors import (
    ConfigError,
    IncompleteError,
    OutputExistsError,
    StorageError,
)
from cosmoflow.numerics.blocks import Block, grid_blocks
from cosmoflow.storage.checkpoints import CheckpointFolder
from cosmoflow.storage.field_writing import create_fields, finished_shards, write_block
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.outputs import check_output, mark_folder
from cosmoflow.storage.particles import ParticleStore, create_particles, write_particles
from tests.cases import each
from tests.conftest import cut, make_metadata, refused, rows_of

WHOLE = Block((0, 0, 0), (12, 12, 12))
NEW = {"shard": 8, "chunk": 4}


# Beginning, resuming, finishing


def test_an_existing_output_is_refused_with_remedies_that_help(fields_store, tmp_path):
    """What is whole is not to be resumed; what others made is not to be replaced."""
    made, begun, foreign = fields_store(12), fields_store(12, finish=False), tmp_path / "notes"
    trained, training, boxes, simulating, demo, curve = (
        tmp_path / name for name in ("a", "b", "c", "d", "e", "f.nc")
    )
    for model in (trained, training):
        model.mkdir()
        (model / "run.json").write_text('{"digest": "0"}')
    (trained / "model.json").write_text('{"weights_sha256": "0"}')
    mark_folder(str(boxes), "boxes", "complete")
    mark_folder(str(simulating), "boxes", "incomplete")
    # A demo may go on with other settings.
    mark_folder(str(demo), "demo")
    xr.Dataset(attrs={"format": "cosmoflow/spectra"}).to_netcdf(curve, engine="scipy")
    foreign.mkdir()
    check_output(str(foreign), "error")
    (foreign / "a.txt").write_text("mine")
    finish, replace = "--resume to finish it", "--overwrite to replace it"
    for remedies, outputs in {
        (replace,): (made.url, trained, boxes, curve),
        (finish, replace): (begun.url, training, simulating, demo),
        ("delete it yourself",): (foreign,),
    }.items():
        for out in outputs:
            with pytest.raises(OutputExistsError) as caught:
                check_output(str(out), "error")
            said = caught.value.remedy
            assert [words in said for words in (finish, replace, "delete it yourself")] == [
                words in remedies for words in (finish, replace, "delete it yourself")
            ], out
            # A demo is resumed with more steps.
            assert "settings" not in said
    # Creating a store asks the same.
    refused(
        OutputExistsError, 2,
        lambda: create_fields(made.url, made.metadata, 12, ("density",), **NEW),
        made.url, replace,
    )  # fmt: skip
    np.testing.assert_array_equal(FieldStore(made.url).read("density"), made.density)


def test_places_that_take_no_output(fields_store, tmp_path, monkeypatch):
    made = fields_store(12)
    for inside, how in (("x.zarr", "error"), ("density/x.zarr", "resume"), ("a/b", "overwrite")):
        refused(
            ConfigError, 2, lambda to=f"{made.url}/{inside}", how=how: check_output(to, how),
            "inside a store", made.url, "beside the store",
        )  # fmt: skip
    # A group of other stores is a place like a folder.
    zarr.create_group(tmp_path / "group.zarr")
    check_output(str(tmp_path / "group.zarr" / "x.zarr"), "error")
    (tmp_path / "file").touch()
    refused(
        StorageError, 4, lambda: check_output(str(tmp_path / "file" / "x.zarr"), "error"),
        "cannot be written", "file is a file", "another folder",
    )  # fmt: skip
    monkeypatch.setattr("os.access", lambda *_: False)
    refused(
        StorageError, 4, lambda: check_output(str(tmp_path / "new" / "x.zarr"), "error"),
        "cannot be written", f"{tmp_path} is read-only", "permissions",
    )  # fmt: skip


def test_overwriting_begins_anew(fields_store):
    made = fields_store(12)
    other = make_metadata(24.0, seed=99)
    finished = create_fields(made.url, other, 12, ("velocity",), existing="overwrite", **NEW)
    assert not finished.any()
    refused(IncompleteError, 5, lambda: FieldStore(made.url))
    assert not (Path(made.url) / "density").exists()


def test_resuming_goes_on_with_what_is_finished(tmp_path, fields_store):
    made = fields_store(12)
    url = str(tmp_path / "out.zarr")
    arguments = (url, made.metadata, 12, ("density",))
    assert create_fields(*arguments, **NEW).tolist() == [False] * 8
    blocks = grid_blocks(12, 8)
    for shard in (5, 2):
        write_block(url, blocks[shard], shard, {"density": cut(made.density, blocks[shard])})
    expected = [shard in (2, 5) for shard in range(8)]
    assert create_fields(*arguments, existing="resume", **NEW).tolist() == expected
    assert finished_shards(url).tolist() == expected
    raw = zarr.open_group(url)["density"]
    np.testing.assert_array_equal(raw[:8, 8:, :8], made.density[:8, 8:, :8])
    assert np.isnan(raw[:8, :8, :8]).all()


def test_resuming_with_other_settings_is_refused(fields_store):
    made = fields_store(12, finish=False)
    other = make_metadata(24.0, stage="paint", seed=1234)
    digests = [m.provenance["digest"] for m in (made.metadata, other)]
    refused(
        ConfigError, 2,
        lambda: create_fields(made.url, other, 12, ("density",), existing="resume", **NEW),
        made.url, *digests,
    )  # fmt: skip
    assert finished_shards(made.url).all()


def test_resuming_into_another_kind_of_store_is_refused(particle_store):
    made = particle_store(4)
    metadata = ParticleStore(made.url).metadata
    refused(
        ConfigError, 2,
        lambda: create_fields(made.url, metadata, 12, ("density",), existing="resume", **NEW),
    )  # fmt: skip


def test_a_folder_of_something_else_is_never_resumed_into(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    refused(
        OutputExistsError, 2,
        lambda: create_fields(
            str(tmp_path), make_metadata(), 12, ("density",), existing="resume", **NEW
        ),
        "delete it yourself",
    )  # fmt: skip
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_particles_are_resumed_shard_by_shard(tmp_path, particle_store):
    made = particle_store(4)
    url = str(tmp_path / "p.zarr")
    assert create_particles(url, 64, make_metadata()) is False
    write_particles(url, rows_of(made.position, made.velocity))
    assert create_particles(url, 64, make_metadata(), "resume") is True
    # What the ledger says is finished is not written again.
    write_particles(url, rows_of(np.zeros_like(made.position), made.velocity))
    np.testing.assert_array_equal(zarr.open_group(url)["position"][:], made.position)


# Checkpoints


@pytest.fixture
def checkpoints(tmp_path):
    return make_checkpoints(tmp_path)


def make_checkpoints(place):
    """Return a folder of checkpoints, its path and a list of those that it finds damaged."""
    damaged = []
    folder = CheckpointFolder(str(place / "checkpoints"), 2, damaged.append)
    return folder, place / "checkpoints", damaged


def test_there_is_no_checkpoint_at_first(checkpoints):
    folder, _, _ = checkpoints
    assert folder.newest() is None
    folder.clear()


def test_the_newest_checkpoints_are_kept(checkpoints):
    folder, path, damaged = checkpoints
    for step in (9, 10, 200, 1000):
        folder.save(step, f"state {step}".encode())
        assert folder.newest() == f"state {step}".encode()
    kept = sorted(entry.name for entry in path.iterdir())
    assert [int(name.removeprefix("step-").removesuffix(".ckpt")) for name in kept] == [200, 1000]
    folder.clear()
    assert folder.newest() is None
    assert not list(path.iterdir())
    assert damaged == []


@each("length", [0, 10, 32, -1])
def test_a_truncated_checkpoint_is_passed_over(tmp_path, length):
    folder, path, damaged = make_checkpoints(tmp_path)
    folder.save(1, b"old state")
    folder.save(2, b"new state")
    newest = max(path.iterdir())
    newest.write_bytes(newest.read_bytes()[:length])
    assert folder.newest() == b"old state"
    assert [Path(name) for name in damaged] == [newest]


def test_a_checkpoint_that_was_being_written_does_not_count(checkpoints):
    folder, path, _ = checkpoints
    folder.save(1, b"state")
    (path / ".step-0000000002.ckpt.partial").write_bytes(b"half")
    (path / "notes.txt").write_bytes(b"mine")
    assert folder.newest() == b"state"
    folder.clear()
    assert (path / "notes.txt").read_bytes() == b"mine"
