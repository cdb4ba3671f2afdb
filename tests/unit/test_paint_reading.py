"""What of the particles painting reads."""

import shutil

import numpy as np
import pytest
import xarray as xr
import zarr

from cosmoflow.config import CosmologyConfig, load_settings
from cosmoflow.engine import Session
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.stages.paint import paint
from cosmoflow.stages.run import Run
from cosmoflow.storage import particles as storage
from cosmoflow.storage.metadata import BoxMetadata
from tests.cases import each

ROWS = 512
"""Particles of a shard of the store: a sixteenth of the box, two planes of the lattice."""
BOX = 64.0


@pytest.fixture
def ordered(tmp_path, monkeypatch):
    return make_ordered(tmp_path, monkeypatch)


def make_ordered(folder, monkeypatch):
    """Make a store in Lagrangian order: every piece of it is a slab across x."""
    monkeypatch.setattr(storage, "ROWS_PER_SHARD", ROWS)
    monkeypatch.setattr(storage, "ROWS_PER_CHUNK", ROWS)
    rng = np.random.default_rng(8)
    lattice = np.indices((16,) * 3).reshape(3, -1).T + rng.uniform(0.3, 0.7, (16**3, 3))
    position = (lattice * (BOX / 16)).astype(np.float32)
    velocity = rng.normal(50.0, 300.0, position.shape).astype(np.float32)
    metadata = BoxMetadata(BOX, 0.0, CosmologyConfig(), 1e10, {"digest": "ordered"})
    return storage.store_particles(str(folder / "particles.zarr"), position, velocity, metadata)


@pytest.fixture
def pieces_read(monkeypatch):
    """The first particles of the pieces that are read, as they are."""
    read, found = storage.ParticleStore.read, []

    def noting(self, start, stop):
        found.append(start)
        return read(self, start, stop)

    monkeypatch.setattr(storage.ParticleStore, "read", noting)
    return found


def test_the_store_knows_where_its_particles_are(ordered):
    for start in range(0, ordered.count, ROWS):
        covered = ordered.coverage(start, start + ROWS)
        position = ordered.read(start, start + ROWS).position
        for axis in range(3):
            bins = np.unique((position[:, axis] * (storage.COVERAGE_BINS / BOX)).astype(int))
            np.testing.assert_array_equal(np.flatnonzero(covered[axis]), bins)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"redshift_space": "x"},
        pytest.param({"redshift_space": "z"}, marks=pytest.mark.slow),
        {"interlaced": True},
    ],
)
def test_a_resumed_run_reads_what_the_missing_shards_need(
    ordered, serial_run, pieces_read, tmp_path, options
):
    out = tmp_path / "fields.zarr"
    cut = {"grid": 32, "shard": 8, "particles_per_task": ROWS, **options}
    paint(ordered.url, str(out), serial_run(paint=cut))
    assert len(pieces_read) == ordered.count // ROWS
    whole = xr.open_zarr(out, consolidated=False).load()

    # The same without a coverage: every shard is offered every piece.
    shutil.rmtree(f"{ordered.url}/{storage.COVERAGE}")
    blind = paint(ordered.url, str(tmp_path / "blind.zarr"), serial_run(paint=cut))
    xr.testing.assert_equal(blind.load(), whole)

    every = ordered.read(0, ordered.count)
    storage.store_particles(
        ordered.url, every.position, every.velocity, ordered.metadata, "overwrite"
    )
    group = zarr.open_group(out)
    group.attrs["status"] = "incomplete"
    group["ledger/fields"][:16] = 0  # the slab from 0 to 16 Mpc/h
    pieces_read.clear()
    resumed = serial_run(existing="resume", paint=cut)
    again = paint(ordered.url, str(out), resumed)
    xr.testing.assert_equal(again.load(), whole)
    if options.get("redshift_space") == "x":
        assert len(pieces_read) == ordered.count // ROWS
    else:
        # Of the eight slabs the two that are missing, and one on either side.
        assert sorted(set(pieces_read)) == [0, ROWS, 2 * ROWS, 7 * ROWS]


@each("wrong", ["short", "elsewhere"])
def test_a_coverage_of_other_particles_is_refused(serial_run, tmp_path, monkeypatch, wrong):
    ordered = make_ordered(tmp_path, monkeypatch)
    group = zarr.open_group(ordered.url)
    if wrong == "short":
        group[storage.COVERAGE].resize((4, 3, storage.COVERAGE_BINS))
    else:
        group[storage.COVERAGE][3, 0] = np.roll(group[storage.COVERAGE][3, 0], 100)
    cut = {"grid": 32, "shard": 8, "particles_per_task": ROWS}
    with pytest.raises(DataError) as caught:
        paint(ordered.url, str(tmp_path / "out.zarr"), serial_run(paint=cut))
    assert storage.COVERAGE in caught.value.remedy
    assert not (tmp_path / "out.zarr").exists()


def test_a_refused_run_leaves_what_it_was_to_overwrite(ordered, serial_run, tmp_path):
    out = tmp_path / "out.zarr"
    paint(ordered.url, str(out), serial_run(paint={"grid": 8}))
    settings = load_settings(
        options={"paint": {"grid": 16}, "engine": {"choice": "serial", "memory": 1 << 20}}
    )
    with pytest.raises(ConfigError, match="more memory"):
        paint(ordered.url, str(out), Run(settings, Session(settings.engine), "overwrite"))
    assert xr.open_zarr(out, consolidated=False)["density"].shape == (8, 8, 8)
