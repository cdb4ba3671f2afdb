"""The chain on clusters of real `ray start` processes, from drivers of their own."""

import subprocess
import time
from contextlib import ExitStack, contextmanager

import pytest

from cosmoflow.storage.objects import Objects
from tests.chaos.commands import start
from tests.cluster import chain
from tests.cluster.namespaces import namespaces
from tests.cluster.ray_processes import ray_processes
from tests.faulty_proxy import faulty_proxy
from tests.object_store import make_bucket, s3_server, settings_of, using

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


FAULTS = ("error", "slow down", "reset", "answer lost", "cut")


@contextmanager
def faulty_bucket(host):
    """Serve an empty bucket `boxes` at an address; a tenth of the requests meet a fault."""
    with s3_server(host) as server, faulty_proxy(server, host=host) as proxy:
        make_bucket(server, "boxes")
        proxy.inject_at_random(3, 0.1, most=100, faults=FAULTS)
        yield proxy


GRADIENTS = 1 << 20
"""Bytes: less than what the two workers of a training send one another."""


def received(inside):
    """Return the bytes that have come into a namespace over its bridge."""
    command = [*inside, "cat", "/sys/class/net/eth0/statistics/rx_bytes"]
    return int(subprocess.run(command, check=True, capture_output=True, timeout=20).stdout)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scratch", ["on disks", "in a bucket"])
def test_the_chain_between_network_namespaces(tmp_path, record_property, scratch):
    """Nothing is shared but the network and the files outside of /tmp: objects travel."""
    private = tmp_path / "private"
    private.mkdir()
    environment = {"TMPDIR": str(private)}
    with namespaces(3, private) as (host, places), ExitStack() as stack:
        if scratch == "in a bucket":
            proxy = stack.enter_context(faulty_bucket(host))
            environment |= settings_of(proxy.url) | {"COSMOFLOW_SCRATCH": "s3://boxes/scratch"}
        nodes = ray_processes(2, environment=environment, places=iter(places))
        cluster = stack.enter_context(nodes)
        before = [received(inside) for _, inside in places]
        told = chain.run(cluster, str(tmp_path / "out"), tmp_path, seconds=900)
        travelled = [
            received(inside) - old for (_, inside), old in zip(places, before, strict=True)
        ]
        if scratch == "in a bucket":
            record_property("requests", dict(proxy.requests))
            assert set(proxy.injected) == set(FAULTS)
            # More than the sign of life of each graph.
            assert proxy.requests["PUT"] > 10
            with using(settings_of(proxy.url)):
                assert list(Objects("s3://boxes").list()) == []
    record_property("seconds", told["seconds"])
    record_property("received", travelled)
    pools = ("head", "cpu", "cpu")
    assert told["nodes"] == [[ip, pool] for (ip, _), pool in zip(places, pools, strict=True)]
    assert min(travelled[1:]) > GRADIENTS
    chain.hold_against_serial_runs(str(tmp_path / "out"), tmp_path)
