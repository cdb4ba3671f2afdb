"""The chain on clusters of real `ray start` processes, from drivers of their own."""

import subprocess
import time

import pytest

from tests.chaos.commands import start
from tests.cluster import chain
from tests.cluster.namespaces import namespaces
from tests.cluster.ray_processes import ray_processes

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster():
    """A head and two workers with token authentication."""
    with ray_processes(2) as cluster:
        yield cluster


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_chain_is_the_serial_one(cluster, tmp_path, record_property):
    told = chain.run(cluster, str(tmp_path / "out"), tmp_path, seconds=600)
    record_property("seconds", told["seconds"])
    assert [pool for _, pool in told["nodes"]] == ["cpu", "cpu", "head"]
    chain.hold_against_serial_runs(str(tmp_path / "out"), tmp_path)


ENVIRONMENTS = {
    "no token": {"RAY_AUTH_MODE": "token"},
    "another token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "other"},
    "no token file": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "missing"},
    "no authentication": {"RAY_AUTH_MODE": "disabled"},
}


@pytest.mark.parametrize(
    "how",
    [
        "no token",
        "another token",
        pytest.param("no token file", marks=pytest.mark.slow),
        pytest.param("no authentication", marks=pytest.mark.slow),
    ],
)
def test_a_driver_without_the_token_is_refused(
    cluster, tmp_path, monkeypatch, how, record_property
):
    (tmp_path / "other").write_text("0" * 64)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRONMENTS[how].items():
        monkeypatch.setenv(name, str(tmp_path / value) if name.endswith("PATH") else value)
    # Where Ray looks for a token when it is told of none.
    monkeypatch.setenv("HOME", str(tmp_path))
    out = tmp_path / "box.zarr"
    began = time.monotonic()
    driver = start(["simulate", out, *chain.TINY, "--engine=ray", "--address", cluster.address])
    _, said = driver.communicate(timeout=300)
    seconds = time.monotonic() - began
    record_property("seconds", seconds)
    assert driver.returncode == 2, said.decode()
    assert b"Traceback" not in said
    assert b"token" in said
    assert b"RAY_AUTH_TOKEN_PATH" in said
    # Much of it is the start of the first such process, on a machine that is busy.
    assert seconds < 240.0
    assert not out.exists()


GRADIENTS = 1 << 20
"""Bytes: less than what the two workers of a training send one another."""


def received(inside):
    """Return the bytes that have come into a namespace over its bridge."""
    command = [*inside, "cat", "/sys/class/net/eth0/statistics/rx_bytes"]
    return int(subprocess.run(command, check=True, capture_output=True, timeout=20).stdout)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_chain_between_network_namespaces(tmp_path, record_property):
    """Nothing is shared but the network and the files outside of /tmp: objects travel."""
    private = tmp_path / "private"
    private.mkdir()
    with (
        namespaces(3, private) as (_, places),
        ray_processes(2, environment={"TMPDIR": str(private)}, places=iter(places)) as cluster,
    ):
        before = [received(inside) for _, inside in places]
        told = chain.run(cluster, str(tmp_path / "out"), tmp_path, seconds=900)
        travelled = [
            received(inside) - old for (_, inside), old in zip(places, before, strict=True)
        ]
    record_property("seconds", told["seconds"])
    record_property("received", travelled)
    pools = ("head", "cpu", "cpu")
    assert told["nodes"] == [[ip, pool] for (ip, _), pool in zip(places, pools, strict=True)]
    assert min(travelled[1:]) > GRADIENTS
    chain.hold_against_serial_runs(str(tmp_path / "out"), tmp_path)
