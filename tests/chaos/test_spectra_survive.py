"""Spectra whose workers and nodes die while slabs travel: the same numbers, or none at all."""

import random
import signal
import time

import numpy as np
import pytest
import xarray as xr
import zarr

from cosmoflow.storage.field_writing import create_fields, write_block
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.urls import open_group_for_writing
from tests.chaos.ray_nodes import kill_process, ray_nodes
from tests.chaos.test_inference_survives import start
from tests.chaos.test_painting_survives import finish, kill_workers, workers_at
from tests.conftest import make_metadata

pytestmark = [pytest.mark.chaos, pytest.mark.cluster]

GRID = 128
"""Cells per axis: at least four bars, and sixteen slabs of four or five planes, of two vectors."""
KILLS, KILLS_A_RUN = 12, 3
"""In all, and in each run: one that loses its nodes faster than they come back never ends."""
ASKED = ["--field=velocity", "--cross=momentum", "--multipoles=z", "--quiet"]


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    url = str(tmp_path_factory.mktemp("survive") / "fields.zarr")
    random_fields = np.random.default_rng(4)
    names = ("velocity", "momentum")
    create_fields(url, make_metadata(320.0), GRID, names, shard=GRID, chunk=16)
    whole = [random_fields.normal(0.0, 300.0, (3, *(GRID,) * 3)).astype(np.float32) for _ in names]
    from cosmoflow.numerics.blocks import Block

    write_block(url, Block((0, 0, 0), (GRID,) * 3), 0, dict(zip(names, whole, strict=True)))
    finish_group(open_group_for_writing(url))
    return url


@pytest.fixture(scope="module")
def undisturbed(fields, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "p.zarr"
    finish(start("spectra", fields, "--out", out, *ASKED, "--engine=serial"))
    return opened(out)


def opened(out):
    with xr.open_zarr(str(out), consolidated=False) as stored:
        assert stored.attrs["status"] == "complete"
        return stored.load().drop_attrs()


@pytest.mark.parametrize("task", ["bars", pytest.param("slabs", marks=pytest.mark.slow)])
def test_ray_workers_that_die_change_nothing(fields, undisturbed, tmp_path, task):
    out = tmp_path / "p.zarr"
    process = start("spectra", fields, "--out", out, *ASKED, "--engine=ray")
    assert kill_workers(process, task, 2) == 2
    finish(process)
    xr.testing.assert_equal(opened(out), undisturbed)


def test_a_lost_ray_driver_leaves_nothing_that_passes_for_a_spectrum(fields, tmp_path):
    out = tmp_path / "p.zarr"
    process = start("spectra", fields, "--out", out, *ASKED, "--engine=ray")
    while not workers_at(process.pid, "bars") and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=240) == 130, process.stderr.read().decode()
    assert not out.exists() or zarr.open_group(str(out)).attrs["status"] != "complete"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nodes_lost_mid_transpose_change_nothing(fields, undisturbed, tmp_path, record_property):
    """What a lost node had of the slabs is made again, by whoever is there."""
    chance = random.Random(7)
    killed = {"worker": 0, "node": 0}
    runs = 0
    with ray_nodes(2) as nodes:
        while sum(killed.values()) < KILLS:
            runs += 1
            left = KILLS_A_RUN
            out = tmp_path / f"{runs}.zarr"
            process = start(
                "spectra", fields, "--out", out, *ASKED, "--engine=ray", "--address", nodes.address
            )
            while process.poll() is None:
                time.sleep(chance.uniform(0.1, 3.0))
                if not left or not (workers := nodes.workers(b"ray::('")):
                    continue
                left -= 1
                how = chance.choice(list(killed))
                if how == "node":
                    nodes.kill_node()
                    time.sleep(5.0)
                else:
                    kill_process(chance.choice(workers))
                killed[how] += 1
            err = process.stderr.read().decode()
            assert process.returncode in (0, 5), err
            if process.returncode == 5:
                # More was lost than may be tried again: said so, and nothing is left behind.
                assert "--resume" in err
                assert not out.exists()
                continue
            xr.testing.assert_equal(opened(out), undisturbed)
    record_property("killed", f"{killed} in {runs} runs")
    assert min(killed.values()) >= 2
