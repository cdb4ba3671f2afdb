"""Inference whose workers and nodes are killed again and again, and on damaged or full disks."""

import hashlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import zarr

from tests.chaos.ray_nodes import kill_process, ray_nodes
from tests.e2e.conftest import SMALL

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

KILLS = 100
SLOW_ENOUGH = [
    f"--set=infer.{setting}"
    for setting in ("shard=12", "tile=12", "batch=1", "symmetries=16", "precision=float32")
]
"""64 shards of 12^3 cells, some seconds of work; passes of one size, so that checksums agree."""


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "cosmoflow", *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def checksum(store):
    return hashlib.sha256(np.ascontiguousarray(zarr.open_group(store)["velocity"][:])).hexdigest()


@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_a_hundred_kills_change_nothing(chain, tmp_path, record_property):
    """Workers (SIGKILL and SIGTERM) and nodes are killed at random moments of repeated runs."""
    options = [chain / "fields.zarr", "--model", chain / "model", *SMALL, *SLOW_ENOUGH]
    whole = tmp_path / "whole.zarr"
    assert start("infer", options[0], whole, *options[1:]).wait() == 0
    expected = checksum(whole)
    chance = random.Random(5)
    killed = {"worker": 0, "worker, politely": 0, "node": 0}
    runs = 0
    with ray_nodes(2) as nodes:
        while sum(killed.values()) < KILLS:
            runs += 1
            out = tmp_path / f"{runs}.zarr"
            process = start(
                "infer", options[0], out, *options[1:], "--engine=ray", "--address", nodes.address
            )
            while process.poll() is None:
                time.sleep(chance.uniform(0.5, 8.0))
                if not (workers := nodes.workers()):
                    continue
                how = chance.choices(list(killed), weights=(5, 3, 2))[0]
                if how == "node":
                    nodes.kill_node()
                else:
                    polite = how == "worker, politely"
                    kill_process(
                        chance.choice(workers), signal.SIGTERM if polite else signal.SIGKILL
                    )
                killed[how] += 1
            err = process.stderr.read().decode()
            assert process.returncode == 0, err
            assert checksum(out) == expected
            assert zarr.open_group(out).attrs["status"] == "complete"
    record_property("killed", f"{killed} in {runs} runs")
    assert min(killed.values()) > 5
