"""A cluster whose stores are all on S3, before which stands a proxy that injects faults."""

import subprocess
import time

import pytest
import zarr

from cosmoflow.storage.urls import list_names, zarr_store
from tests.cluster import chain
from tests.cluster.ray_processes import ray_processes
from tests.faulty_proxy import TRANSIENT, faulty_proxy
from tests.object_store import make_bucket, s3_server, settings_of, using

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]

FAULTS, RATE, SEED = 120, 0.08, 7
STALL = 3.0
"""Seconds."""


@pytest.fixture(scope="module")
def proxy():
    with s3_server() as server, faulty_proxy(server, stall=STALL) as proxy:
        make_bucket(server, "boxes")
        yield proxy


@pytest.fixture(scope="module")
def cluster(proxy):
    """Two workers whose access key is another than that of drivers."""
    nodes = settings_of(proxy.url, key="nodes")
    with ray_processes(2, environment=nodes) as cluster, using(settings_of(proxy.url, "driver")):
        cluster.environment |= settings_of(proxy.url, key="driver")
        yield cluster


def test_the_chain_rides_out_faults(cluster, proxy, tmp_path, record_property):
    proxy.inject_at_random(SEED, RATE, most=FAULTS)
    try:
        told = chain.run(cluster, "s3://boxes/faulty", tmp_path, seconds=1200)
    finally:
        proxy.clear()
    record_property("seconds", told["seconds"])
    record_property("injected", dict(proxy.injected))
    record_property("requests", dict(proxy.requests))
    assert set(proxy.injected) == set(TRANSIENT)
    assert sum(proxy.injected.values()) > FAULTS // 4
    chain.hold_against_serial_runs("s3://boxes/faulty", tmp_path)


@pytest.fixture
def particles(proxy):
    """The URL of some particles on S3."""
    from cosmoflow.cli.app import run_app

    url = "s3://boxes/some/particles.zarr"
    with using(settings_of(proxy.url)):
        options = ["--method=2lpt", "--engine=serial", "--overwrite", *chain.TINY]
        assert run_app(["simulate", url, *options]) == 0
    return url


@pytest.mark.parametrize("who", ["driver", "nodes"])
def test_wrong_credentials_end_the_run_within_seconds(
    cluster, proxy, particles, tmp_path, record_property, who
):
    out, log = f"s3://boxes/refused/{who}.zarr", tmp_path / "log"
    proxy.strangers.add(who)
    began = time.monotonic()
    with log.open("wb") as written:
        driver = cluster.python(
            "-m", "cosmoflow", "paint", particles, out, *chain.TINY, "--engine=ray", "--address",
            cluster.address, stdout=written, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            driver.wait(240)
        finally:
            driver.kill()
            driver.wait()
            proxy.strangers.clear()
    record_property("seconds", time.monotonic() - began)
    said = log.read_text()
    assert driver.returncode == 4, said
    assert "refuses access: InvalidAccessKeyId" in said
    assert "s3://boxes" in said
    assert "AWS_ACCESS_KEY_ID" in said
    assert "Traceback" not in said
    if list_names("s3://boxes/refused"):
        group = zarr.open_group(zarr_store(out, read_only=True), mode="r")
        assert group.attrs["status"] == "incomplete"
