"""Stores that a run holds: what readers see of it, and how outputs begin and end under a claim."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from cosmoflow.errors import BusyError, DataError, SupersededError
from cosmoflow.numerics.blocks import grid_blocks
from cosmoflow.stages.convert import convert
from cosmoflow.stages.derive import derive
from cosmoflow.stages.paint import paint
from cosmoflow.stages.run import Run, claiming
from cosmoflow.stages.simulate import simulate
from cosmoflow.stages.train import train
from cosmoflow.storage import ledger, urls
from cosmoflow.storage.claims import claim
from cosmoflow.storage.field_writing import create_fields, finished_shards, write_block
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.outputs import check_output, is_ours
from cosmoflow.storage.particles import (
    ParticleStore,
    create_particles,
    unfinished_rows,
    write_particles,
)
from cosmoflow.storage.urls import CLAIMS, exists, holds_only_partial_files, remove
from tests.cases import each
from tests.conftest import cut, make_metadata, narrow_networks, rows_of

pytestmark = pytest.mark.usefixtures("quick_claims")


@pytest.fixture
def claimed(fields_store):
    made = fields_store(12)
    with claim(made.url):
        yield made


def test_readers_see_no_claims(claimed):
    assert sorted(zarr.open_group(claimed.url, mode="r").array_keys()) == [
        "component", "density", "velocity", "x", "y", "z",
    ]  # fmt: skip
    zarr.open_group(claimed.url, mode="r")[CLAIMS]
    opened = xr.open_zarr(claimed.url, consolidated=False)
    assert set(opened.data_vars) == {"density", "velocity"}
    assert FieldStore(claimed.url).variables == ["density", "velocity"]


def test_a_claim_alone_is_no_output(place):
    with claim(place):
        assert not exists(place)
        check_output(place, "error")
        check_output(place, "overwrite")
        if "://" not in place:
            assert holds_only_partial_files(place)
            assert is_ours(place)


def test_a_claim_outlives_what_is_overwritten(claimed):
    remove(claimed.url)
    assert not exists(claimed.url)
    with pytest.raises(BusyError), claim(claimed.url):
        pass


@each("existing", ["error", "resume", "overwrite"])
def test_an_output_is_created_under_a_claim(tmp_path, existing):
    place = str(tmp_path / "out.zarr")
    arguments = (place, make_metadata(), 8, ("density",))
    with claim(place):
        create_fields(*arguments, shard=8, chunk=4, existing=existing)
        assert exists(place)
    assert not any(CLAIMS in name for name in urls.list_names(place))


@each("repetition", range(3))
def test_one_of_many_fresh_runs_creates_the_output(tmp_path, repetition):
    url, start = str(tmp_path / "out.zarr"), threading.Barrier(6)
    over = threading.Event()

    def attempt(seed):
        start.wait()
        check_output(url, "error")
        with claiming(url, Run()):
            create_fields(url, make_metadata(seed=seed), 8, ("density",), shard=8, chunk=4)
            over.wait(120.0)
        return seed

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(attempt, seed) for seed in range(6)]
        deadline = time.monotonic() + 120.0
        while sum(future.done() for future in futures) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        over.set()
        won = [future.result() for future in futures if future.exception() is None]
        codes = [future.exception().exit_code for future in futures if future.exception()]
    assert len(won) == 1
    assert codes == [2] * 5
    found = zarr.open_group(url, mode="r").attrs["provenance"]["digest"]
    assert found == make_metadata(seed=won[0]).provenance["digest"]


def begin(made, url, existing="error"):
    """Begin an output as a stage does, finish one shard if there is a second, then fail."""
    create_fields(url, made.metadata, 12, ("density",), shard=8, chunk=4, existing=existing)


def fail(url, existing, *, made, shards=(), lost=False):
    with claiming(url, Run(existing=existing)) as held:
        begin(made, url, existing)
        for shard, block in shards:
            write_block(url, block, shard, {"density": cut(made.density, block)})
        if lost:
            held._lost = True
        raise DataError("bad input")


def test_a_run_that_is_refused_deletes_what_it_began(tmp_path, fields_store):
    made, url = fields_store(12), str(tmp_path / "out.zarr")
    for existing in ("error", "resume", "overwrite"):
        with pytest.raises(DataError):
            fail(url, existing, made=made)
        assert not Path(url).exists()


def test_what_is_finished_begun_before_or_lost_stays(tmp_path, fields_store):
    made = fields_store(12)
    block = grid_blocks(12, 8)[3]
    one, two, three = (str(tmp_path / name) for name in ("one.zarr", "two.zarr", "three.zarr"))
    with pytest.raises(DataError):
        fail(one, "error", made=made, shards=[(3, block)])
    assert finished_shards(one).sum() == 1
    begin(made, two)
    with pytest.raises(DataError):
        fail(two, "resume", made=made)
    assert exists(two)
    with pytest.raises(DataError):
        fail(three, "error", made=made, lost=True)
    assert exists(three)


def test_a_refused_run_leaves_a_whole_output_alone(fields_store):
    made = fields_store(12)
    for existing in ("error", "overwrite"):
        with pytest.raises(DataError), claiming(made.url, Run(existing=existing)):
            raise DataError("refused before anything was begun")
        assert FieldStore(made.url).variables == ["density", "velocity"]


# Tasks that outlive their run's claim


class Late(dict):
    """Fields that take so long that another run has begun the output anew before they are there."""

    def __init__(self, fields, begin_anew):
        super().__init__(fields)
        self.begin_anew = begin_anew

    def items(self):
        self.begin_anew()
        return super().items()


@each("late", [False, True])
def test_a_shard_of_a_superseded_run_is_not_marked(tmp_path, fields_store, late):
    made, url = fields_store(12), str(tmp_path / "out.zarr")
    mine, other = made.metadata.provenance["digest"], make_metadata(seed=9)
    block = grid_blocks(12, 8)[3]
    fields = {"density": cut(made.density, block)}
    begin(made, url)
    write_block(url, block, 3, fields, digest=mine)
    assert finished_shards(url).sum() == 1

    def begin_anew():
        create_fields(url, other, 12, ("density",), shard=8, chunk=4, existing="overwrite")

    if late:
        fields = Late(fields, begin_anew)
    else:
        begin_anew()
    with pytest.raises(SupersededError, match="another run") as caught:
        write_block(url, block, 3, fields, digest=mine)
    assert caught.value.exit_code == 5
    assert not finished_shards(url).any()
    if not late:
        density = FieldStore(url, unfinished=True)._array("density")[:]
        assert np.isnan(density).all()
    write_block(url, block, 3, {"density": fields["density"]}, digest=other.provenance["digest"])
    assert finished_shards(url).sum() == 1


def test_particles_of_a_superseded_run_are_not_written(particle_store):
    made = particle_store(8)
    mine = ParticleStore(made.url).metadata.provenance["digest"]
    create_particles(made.url, 512, make_metadata(seed=9), "overwrite")
    with pytest.raises(SupersededError):
        write_particles(made.url, rows_of(made.position, made.velocity), digest=mine)
    assert len(unfinished_rows(made.url)) == 1


def test_every_stage_says_whose_its_shards_are(tmp_path, particle_store, serial_run, monkeypatch):
    seen = []

    def listen(group, digest, where):
        seen.append((where, digest))

    particles = particle_store(8).url
    monkeypatch.setattr(ledger, "check_run", listen)
    fields, out = str(tmp_path / "fields.zarr"), str(tmp_path / "derived.zarr")
    paint(particles, fields, serial_run(paint={"grid": 16, "shard": 8, "chunk": 8}))
    derive(fields, out, ["divergence"], serial_run(derive={"shard": 8}))
    spectral = str(tmp_path / "spectral.zarr")
    derive(fields, spectral, ["divergence"], serial_run(derive={"method": "spectral"}))
    converted = str(tmp_path / "converted.zarr")
    convert(particles, converted, serial_run())
    boxes = str(tmp_path / "boxes")
    few = {"particles": 16, "box_size": 64.0, "method": "2lpt", "initial_fields": True}
    simulate(boxes, serial_run(simulate=few))
    places = [fields, out, spectral, converted, f"{boxes}/particles.zarr", f"{boxes}/initial.zarr"]
    assert {where for where, _ in seen} == set(places)
    for where, digest in seen:
        assert digest == urls.open_group(where).attrs["provenance"]["digest"]


def test_a_store_that_is_half_deleted_is_still_ours(fields_store, monkeypatch):
    """Another run may look at it just then, or find it after a kill."""
    made, seen = fields_store(12), []
    rmtree = shutil.rmtree

    def watch(path):
        rmtree(path)
        seen.append(is_ours(made.url))

    monkeypatch.setattr(shutil, "rmtree", watch)
    remove(made.url)
    assert seen == [True] * len(seen) != []
    assert not Path(made.url).exists()


def test_a_folder_that_goes_while_it_is_looked_at_is_not_there(tmp_path, monkeypatch):
    def vanish(self):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "iterdir", vanish)
    assert not exists(str(tmp_path))


def test_digests_do_not_tell_two_runs_of_the_same_settings_apart(tmp_path, fields_store):
    """Claims must: otherwise one run marks a shard as finished whose data the other has deleted."""
    made, url = fields_store(12), str(tmp_path / "out.zarr")
    begin(made, url)
    with ledger.writing_shard(url, "fields", 3, made.metadata.provenance["digest"]) as group:
        group["density"][:] = 1.0
        begin(made, url, "overwrite")
    assert finished_shards(url)[3]
    assert np.isnan(FieldStore(url, unfinished=True)._array("density")[:]).all()


def test_a_training_holds_its_folder(tmp_path, fields_store, serial_run):
    """Of two trainings into one folder, one would go on from the checkpoints of the other."""
    url, out = fields_store(16, shard=16).url, str(tmp_path / "model")
    options = {"model": "residual-tiny", "steps": 1, "batch": 1, "crop": 8, "compare": False}
    run = serial_run(train=options, existing="overwrite")
    with narrow_networks():
        with claim(out), pytest.raises(BusyError):
            train(url, out, run)
        assert not exists(out)
        train(url, out, run)
    assert not any(CLAIMS in name for name in urls.list_names(out))
