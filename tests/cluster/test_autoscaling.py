"""A cluster that rents nodes when they are wanted: Ray's autoscaler, on this machine."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from cosmoflow.cli.app import run_app
from tests.cluster.chain import TINY
from tests.cluster.ray_processes import ray_processes

COMMAND = str(Path(sys.executable).with_name("cosmoflow"))
LAUNCHER = {
    "cluster_name": "rented",
    "max_workers": 1,
    "upscaling_speed": 100.0,
    "idle_timeout_minutes": 5,
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu": {
            "resources": {"CPU": 1},
            "labels": {"cosmoflow/pool": "cpu"},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 1,
        },
    },
    "head_node_type": "ray.head.default",
    **{
        key: []
        for key in (
            "cluster_synced_files", "head_setup_commands", "head_start_ray_commands",
            "initialization_commands", "rsync_exclude", "rsync_filter", "setup_commands",
            "worker_setup_commands", "worker_start_ray_commands",
        )
    },
    "auth": {}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False,
}  # fmt: skip


@pytest.fixture
def rented(tmp_path):
    """A cluster of a head alone."""

    def head(address):
        config = tmp_path / "launcher.json"
        provider = {"type": "fake_multinode", "gcs_address": address}
        config.write_text(json.dumps({**LAUNCHER, "provider": provider}))
        return [f"--autoscaling-config={config}"]

    with ray_processes(
        0,
        environment={"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
        head=head,
    ) as cluster:
        yield cluster


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_node_is_rented_for_a_run(rented, tmp_path):
    """Ray's provider of nodes on one machine confuses several, which have one address."""
    box, fields, here, there = (str(tmp_path / name) for name in ("box", "fields", "one", "two"))
    for arguments in (["simulate", box], ["paint", box, fields]):
        assert run_app([*arguments, *TINY, "--engine=serial"]) == 0
    spectra = ["spectra", fields, "--field=density", "--subbox=16.0"]
    assert run_app([*spectra, "--out", here, "--engine=serial"]) == 0
    ended = subprocess.run(
        [COMMAND, *spectra, "--out", there, f"--address={rented.address}"],
        env=rented.environment, cwd="/", capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "waiting up to 600 s for nodes with 1 x 1 CPU to join" in ended.stderr
    found, expected = (zarr.open_group(path, mode="r")["power"][:] for path in (there, here))
    np.testing.assert_array_equal(found, expected)
