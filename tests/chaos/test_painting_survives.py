"""Painting while workers die, and on a disk that is full."""

import time

import psutil
import pytest
import xarray as xr

from cosmoflow.cli.app import run_app
from tests.chaos.commands import start

pytestmark = [pytest.mark.chaos, pytest.mark.e2e, pytest.mark.cluster]

OPTIONS = ["--grid=96", "--set=paint.shard=24", "--set=paint.particles_per_task=8000", "--quiet"]
"""64 shards and 33 pieces of 64^3 particles: enough tasks for some to be running at any time."""


@pytest.fixture(scope="module")
def undisturbed(particles, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "fields.zarr"
    assert run_app(["paint", str(particles), str(out), *OPTIONS, "--engine=serial"]) == 0
    return xr.open_zarr(out, consolidated=False).load()


def finish(process):
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err.decode()


def kill_workers(process, task, times):
    """SIGKILL workers of Ray while they run a kind of task; return how many were."""
    killed, deadline = 0, time.monotonic() + 240.0
    while killed < times and process.poll() is None and time.monotonic() < deadline:
        for worker in workers_at(process.pid, task)[:1]:
            worker.kill()
            killed += 1
            time.sleep(0.3)
        time.sleep(0.002)
    return killed


def workers_at(driver, task):
    """Return the processes below a driver that bear a task's name, as Ray's workers do."""
    found = []
    for child in psutil.Process(driver).children(recursive=True):
        try:
            if child.name().startswith("ray::") and task in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def test_ray_workers_killed_in_their_tasks_change_nothing(particles, undisturbed, tmp_path):
    out = tmp_path / "fields.zarr"
    process = start(["paint", particles, out, *OPTIONS, "--engine=ray"])
    for task in ("bucket", "paint"):
        assert kill_workers(process, task, times=3) == 3
    finish(process)
    xr.testing.assert_identical(
        xr.open_zarr(out, consolidated=False).load().drop_attrs(), undisturbed.drop_attrs()
    )


def test_full_disk_is_told_and_resumed(particles, undisturbed, tmp_path):
    """No file may grow beyond some size: what a full disk or a quota does to a writer."""
    out = tmp_path / "fields.zarr"
    arguments = ["paint", particles, out, *OPTIONS, "--engine=serial"]
    process = start(arguments, largest_file=65536)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 4, err.decode()
    assert b"fields.zarr" in err
    assert b"Traceback" not in err
    finish(start([*arguments, "--resume"] if out.exists() else arguments))
    xr.testing.assert_identical(
        xr.open_zarr(out, consolidated=False).load().drop_attrs(), undisturbed.drop_attrs()
    )
