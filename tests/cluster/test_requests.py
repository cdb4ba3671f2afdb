"""The requests that plans count are those that a proxy sees."""

import json
from collections import Counter
from urllib.parse import unquote

import pytest

from cosmoflow.cli.app import run_app
from tests.cases import each
from tests.faulty_proxy import faulty_proxy
from tests.object_store import make_bucket, s3_server, settings_of, using

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]

PLACE = "s3://boxes/counted"
PARTICLES, FIELDS, PREDICTION = (f"{PLACE}/{name}.zarr" for name in ("particles", "fields", "flow"))
SETTINGS = [
    "--set=simulate.particles=128",
    "--set=simulate.box_size=256.0",
    "--set=paint.grid=128",
    "--set=paint.shard=64",
    "--set=paint.chunk=32",
    "--set=evaluate.subbox=64.0",
    "--set=evaluate.smoothing=[8.0]",
    "--engine=serial",
    "--quiet",
]
"""Shards of 1 MB that are read whole in some tasks, and in parts in others."""


@pytest.fixture(scope="module")
def proxy():
    with s3_server() as server, faulty_proxy(server) as proxy, using(settings_of(proxy.url)):
        make_bucket(server, "boxes")
        yield proxy


@pytest.fixture(scope="module")
def stores(proxy):
    """Particles, fields with the flow that the model needs, and a prediction."""
    for command in (
        ["simulate", PARTICLES, "--method=2lpt"],
        ["paint", PARTICLES, FIELDS],
        ["infer", FIELDS, PREDICTION, "--model=wiener"],
    ):
        assert run_app([*command, *SETTINGS]) == 0


def seen(proxy):
    """Count the requests that plans count, by their methods."""
    return Counter(
        method
        for method, path, _ in proxy.log
        if "list-type" not in path and "/.claims/" not in unquote(path)
    )


COMMANDS = [
    ["paint", PARTICLES, f"{PLACE}/again.zarr"],
    ["spectra", FIELDS, "--field=velocity", "--out", f"{PLACE}/power.zarr"],
    ["infer", FIELDS, f"{PLACE}/second.zarr", "--model=wiener"],
    ["derive", FIELDS, f"{PLACE}/derived.zarr", "--field=divergence", "--field=velocity"],
    ["evaluate", FIELDS, PREDICTION],
]


@each("command", COMMANDS)
def test_plans_count_what_a_proxy_sees(
    command, proxy, stores, tmp_path, capsys, subtests, record_property
):
    if command[0] == "evaluate":
        command = [*command, "--out", str(tmp_path / "report")]
    capsys.readouterr()
    assert run_app([*command, *SETTINGS, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out.splitlines()[-1])["requests"]
    proxy.log.clear()
    assert run_app([*command, *SETTINGS]) == 0
    found = seen(proxy)
    record_property(command[0], {"planned": planned, "seen": dict(found)})
    assert planned["get"] == pytest.approx(found["GET"], rel=0.1)
    assert planned["put"] == pytest.approx(found["PUT"], rel=0.1)
