"""Stores that were damaged, killed half way, resumed or added to (see also test_storage.py)."""

import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import zarr

from cosmoflow.config import CosmologyConfig
from cosmoflow.errors import ConfigError, DataError, OutputExistsError
from cosmoflow.numerics.blocks import Block, grid_blocks
from cosmoflow.storage.field_writing import create_fields, finished_shards, write_block
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.ledger import Ledger
from cosmoflow.storage.metadata import BoxMetadata, make_provenance
from cosmoflow.storage.outputs import begin_group, finish_group
from cosmoflow.storage.particles import ParticleStore, create_particles, write_particles
from cosmoflow.storage.urls import open_group_for_writing
from tests.cases import each
from tests.conftest import rows_of

GRID, SHARD, CHUNK, BOX = 8, 4, 2, 16.0
NAMES = ("density", "velocity")
SECOND = Block((4, 0, 0), (4, 4, 4))


def box(**config):
    return BoxMetadata(BOX, 0.0, CosmologyConfig(), None, make_provenance("test", config))


def values(name):
    shape = (3, GRID, GRID, GRID) if "velocity" in name else (GRID,) * 3
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)


def begin(url, existing="error", **config):
    return create_fields(
        url, box(**config), GRID, NAMES, shard=SHARD, chunk=CHUNK, existing=existing
    )


def fill(url, shards=range(8), **change):
    for index in shards:
        block = grid_blocks(GRID, SHARD)[index]
        cells = tuple(slice(o, o + n) for o, n in zip(block.origin, block.shape, strict=True))
        found = {name: change.get(name, values(name))[(..., *cells)] for name in NAMES}
        write_block(url, block, index, found)


def finish(url):
    finish_group(open_group_for_writing(url))


@pytest.fixture
def begun(tmp_path):
    url = str(tmp_path / "fields.zarr")
    begin(url)
    return url


@pytest.fixture
def whole(tmp_path):
    return make_whole(tmp_path)


def make_whole(folder):
    url = str(folder / "fields.zarr")
    begin(url)
    fill(url)
    finish(url)
    return url


def make_particles(url, existing="error", **config):
    return create_particles(url, 500, box(**config), existing)


# --- damage ---------------------------------------------------------------------------------------


def test_lost_chunk_of_fields_is_named(whole):
    Path(whole, "velocity/c/0/1/0/0").unlink()
    store = FieldStore(whole)
    np.testing.assert_array_equal(store.read("density"), values("density"))
    assert np.isfinite(store.read_block("velocity", Block((0, 0, 0), (4, 8, 8)))).all()
    for block in (SECOND, Block((3, 3, 3), (2, 1, 1)), Block((-1, 0, 0), (1, 1, 1))):
        with pytest.raises(DataError) as caught:
            store.read_block("velocity", block)
        for part in (whole, "velocity", str(block.origin), str(block.shape)):
            assert part in caught.value.where


@each("bad", [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite_is_found(tmp_path, bad):
    whole = make_whole(tmp_path)
    # Behind our back: writing it as a shard is refused.
    zarr.open_group(whole)["density"][5, 6, 7] = bad
    store = FieldStore(whole)
    store.read_block("density", Block((0, 0, 0), (5, 8, 8)))
    with pytest.raises(DataError, match="1 cells") as caught:
        store.read("density")
    assert "density" in caught.value.where


@each("keep", [0.0, 0.01, 0.5, 0.99])
def test_truncated_chunk_of_fields_is_named(tmp_path, keep):
    whole = make_whole(tmp_path)
    path = Path(whole, "density/c/1/0/0")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError) as caught:
        FieldStore(whole).read_block("density", SECOND)
    for part in (whole, "density", str(SECOND.origin)):
        assert part in caught.value.where


@pytest.fixture
def particles(tmp_path):
    return write_particle_store(tmp_path)


def write_particle_store(folder):
    url = str(folder / "particles.zarr")
    make_particles(url)
    write_particles(url, rows_of(*np.random.default_rng(3).random((2, 500, 3), np.float32)))
    finish(url)
    return url


@each("keep", [0.0, 0.01, 0.5, 0.99])
def test_truncated_chunk_of_particles_is_named(tmp_path, keep):
    particles = write_particle_store(tmp_path)
    path = Path(particles, "velocity/c/0/0")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match=r"particles\.zarr"):
        ParticleStore(particles).read(0, 500)


def test_lost_chunk_of_particles_is_found(particles):
    Path(particles, "position/c/0/0").unlink()
    with pytest.raises(DataError, match=r"particles\.zarr"):
        ParticleStore(particles).read(0, 500)


@each("name", ["zarr.json", "velocity/zarr.json"])
def test_damaged_metadata_is_a_data_error(tmp_path, name):
    whole = make_whole(tmp_path)
    Path(whole, name).write_text('{"zarr_format": 3, "node_ty')
    with pytest.raises(DataError, match=r"fields\.zarr"):
        FieldStore(whole)


# --- outputs --------------------------------------------------------------------------------------


@each("create", [begin, make_particles])
def test_existing_output_is_refused_kept_and_overwritten(tmp_path, create):
    url = str(tmp_path / "out.zarr")
    create(url)
    (tmp_path / "out.zarr/marker").write_text("mine")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        create(url)
    assert Path(url, "marker").is_file()
    with pytest.raises(ConfigError, match="--overwrite") as caught:
        create(url, "resume", steps=2)
    assert not isinstance(caught.value, OutputExistsError)
    assert box().provenance["digest"] in caught.value.value
    assert box(steps=2).provenance["digest"] in caught.value.limit
    assert Path(url, "marker").is_file()
    create(url, "overwrite", steps=2)
    assert not Path(url, "marker").exists()


def test_output_of_another_kind_is_not_resumed(begun):
    with pytest.raises(ConfigError):
        make_particles(begun, "resume")


def test_a_folder_of_something_else_is_never_resumed_into(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for existing in ("error", "resume"):
        with pytest.raises(OutputExistsError):
            begin(str(tmp_path), existing)
    assert (tmp_path / "thesis.tex").is_file()


def test_resume_knows_finished_shards(begun):
    fill(begun, [1, 6])
    assert begin(begun, "resume").nonzero()[0].tolist() == [1, 6]
    fill(begun, [0, 2, 3, 4, 5, 7])
    assert begin(begun, "resume").all()
    finish(begun)
    np.testing.assert_array_equal(FieldStore(begun).read("density"), values("density"))


@each("left", ["nothing", "empty folder", "partial", "group", "no ledger"])
def test_run_killed_before_any_data_is_resumed(tmp_path, left):
    url = str(tmp_path / "out.zarr")
    if left in ("empty folder", "partial"):
        Path(url).mkdir()
    if left == "partial":  # what zarr leaves when it is killed while it writes the group's metadata
        Path(url, f"zarr.{32 * 'a'}.partial").write_text('{"zarr_fo')
    if left == "group":
        begin_group(url, box().to_attributes("fields"), "error")
    if left == "no ledger":
        begin(url)
        shutil.rmtree(Path(url, "ledger"))
    assert not begin(url, "resume").any()
    fill(url)
    finish(url)
    np.testing.assert_array_equal(FieldStore(url).read("velocity"), values("velocity"))


def test_killed_particles_resume_at_the_shard(tmp_path):
    url = str(tmp_path / "p.zarr")
    begin_group(url, box().to_attributes("particles"), "error")
    assert make_particles(url, "resume") is False
    assert make_particles(url, "resume") is True


def test_ledger_marks_survive_reopening(tmp_path):
    url = str(tmp_path / "group.zarr")
    ledger = Ledger.create(zarr.create_group(url), "things", 5)
    assert ledger.finished().tolist() == [False] * 5
    ledger.mark(3)
    ledger.mark(0)
    ledger.mark(3)
    # A mark that was being written when its process died is none.
    Path(url, "ledger", "things", "c", "1.partial").touch()
    again = Ledger(zarr.open_group(url, mode="r"), "things").finished()
    assert again.dtype == np.bool_
    assert again.tolist() == [True, False, False, True, False]


def test_shard_is_marked_only_after_its_data(begun):
    block = grid_blocks(GRID, SHARD)[0]
    with pytest.raises(KeyError):
        write_block(begun, block, 0, {"density": np.ones((4, 4, 4), np.float32), "no": np.ones(1)})
    assert not finished_shards(begun).any()
