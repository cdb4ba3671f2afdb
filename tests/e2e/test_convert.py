"""Snapshots of other codes through the real commands."""

import numpy as np
import pytest
import xarray as xr

from cosmoflow.storage.snapshots import open_particles
from tests import snapshot_files as files
from tests.cases import each
from tests.e2e.conftest import SMALL

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """A Gadget snapshot in three files."""
    folder = tmp_path_factory.mktemp("snapshot") / "snapdir_004"
    files.write_gadget_set(folder, files.zeldovich_box(16))
    return folder


def opened(path):
    return xr.open_zarr(path, consolidated=False)


@pytest.mark.parametrize("engine", ["serial", pytest.param("ray", marks=pytest.mark.cluster)])
def test_convert_keeps_every_particle(snapshot, tmp_path, cosmoflow, engine):
    out = tmp_path / "particles.zarr"
    code, events, err = cosmoflow("convert", snapshot, out, f"--engine={engine}", "--json")
    assert code == 0, err
    source = open_particles(str(snapshot))
    expected = source.read(0, source.count)
    store = opened(out)
    np.testing.assert_array_equal(store["position"], expected.position)
    np.testing.assert_array_equal(store["velocity"], expected.velocity)
    assert store.attrs["box_size"] == pytest.approx(source.metadata.box_size)
    assert store.attrs["redshift"] == pytest.approx(source.metadata.redshift)
    assert store.attrs["provenance"]["inputs"] == {"snapshot": source.digest}
    assert events[-1]["particles"] == source.count


def test_a_snapshot_and_its_conversion_paint_the_same(snapshot, tmp_path, cosmoflow):
    particles = tmp_path / "particles.zarr"
    assert cosmoflow("convert", snapshot, particles, "--engine=serial")[0] == 0
    painted = []
    for index, source in enumerate((snapshot, particles)):
        out = tmp_path / f"fields-{index}.zarr"
        code, _, err = cosmoflow("paint", source, out, *SMALL, "--set=paint.grid=16")
        assert code == 0, err
        painted.append(opened(out))
    for name in ("density", "momentum", "velocity"):
        np.testing.assert_array_equal(painted[0][name], painted[1][name])


def test_masses_come_along(tmp_path, cosmoflow):
    box = files.zeldovich_box(16)
    mass = np.random.default_rng(2).lognormal(size=box.count)
    path, out = tmp_path / "snapshot.npz", tmp_path / "particles.zarr"
    np.savez(path, **files.npz_arrays(box, mass=mass))
    code, _, err = cosmoflow("convert", path, out, "--engine=serial")
    assert code == 0, err
    stored = opened(out)["mass"]
    # An npz file does not say the unit of its masses.
    assert stored.attrs["units"] == "unknown"
    np.testing.assert_allclose(stored / stored.mean(), mass / mass.mean(), rtol=1e-6)


def test_info_tells_what_a_snapshot_is(snapshot, capsys):
    from cosmoflow.cli.app import run_app

    assert run_app(["info", str(snapshot)]) == 0
    out = capsys.readouterr().out
    assert "Gadget" in out
    assert "particles: 4,096" in out
    assert run_app(["info", str(snapshot), "--set=snapshot.h=0.5", "--json"]) == 0
    assert '"h": 0.5' in capsys.readouterr().out


def test_convert_goes_on_where_it_stopped(snapshot, tmp_path, cosmoflow, monkeypatch):
    """With shards of a quarter of the particles, those that are whole are not written again."""
    from cosmoflow.storage import particles as storage

    monkeypatch.setattr(storage, "ROWS_PER_SHARD", 1024)
    monkeypatch.setattr(storage, "ROWS_PER_CHUNK", 512)
    out = tmp_path / "particles.zarr"
    assert cosmoflow("convert", snapshot, out, "--engine=serial")[0] == 0
    whole = opened(out).load()
    flags = out / "ledger" / "particles" / "c"
    assert len(list(flags.iterdir())) == 4
    (flags / "2").unlink()
    (out / "position" / "c" / "2" / "0").unlink()
    before = (out / "position" / "c" / "1" / "0").stat().st_mtime_ns
    assert cosmoflow("convert", snapshot, out, "--engine=serial", "--resume")[0] == 0
    assert opened(out).identical(whole)
    assert (out / "position" / "c" / "1" / "0").stat().st_mtime_ns == before


@each("command", ["convert", "paint"])
def test_a_missing_part_is_refused_before_anything_is_written(
    snapshot, tmp_path, cosmoflow, command
):
    import shutil

    broken, out = tmp_path / "snapdir", tmp_path / "out.zarr"
    shutil.copytree(snapshot, broken)
    next(path for path in broken.iterdir() if ".1." in path.name).unlink()
    code, _, err = cosmoflow(command, broken, out, "--engine=serial")
    assert code == 3
    assert ".1." in err
    assert not out.exists()
