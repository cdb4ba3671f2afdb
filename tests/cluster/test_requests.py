"""Shards are read in few requests, and plans count what a proxy sees."""

import json
from collections import Counter
from urllib.parse import unquote

import numpy as np
import pytest
import zarr

from cosmoflow.cli.app import run_app
from cosmoflow.numerics.blocks import Block, grid_blocks, place
from cosmoflow.storage import shards
from cosmoflow.storage.field_writing import write_whole
from cosmoflow.storage.piecewise import read_in_pieces
from cosmoflow.storage.urls import open_group, open_group_for_writing, zarr_store
from cosmoflow.storage.variables import create_variable, write_cells
from tests.cases import each
from tests.faulty_proxy import faulty_proxy
from tests.object_store import make_bucket, s3_server, settings_of, using

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]

PLACE = "s3://boxes/counted"
PARTICLES, FIELDS, PREDICTION, WITH_ERRORS = (
    f"{PLACE}/{name}.zarr" for name in ("particles", "fields", "flow", "errors")
)
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
"""Shards of 1 MB that some tasks read whole and others in parts; two shards of particles."""


@pytest.fixture(scope="module")
def proxy():
    with s3_server() as server, faulty_proxy(server) as proxy, using(settings_of(proxy.url)):
        make_bucket(server, "boxes")
        yield proxy


@pytest.fixture(scope="module")
def stores(proxy):
    """Particles, fields with the flow that the model needs, and predictions."""
    for command in (
        ["simulate", PARTICLES, "--method=2lpt"],
        ["paint", PARTICLES, FIELDS],
        ["infer", FIELDS, PREDICTION, "--model=wiener"],
        ["infer", FIELDS, WITH_ERRORS, "--model=wiener"],
    ):
        assert run_app([*command, *SETTINGS]) == 0
    create_variable(open_group_for_writing(WITH_ERRORS), "velocity_std", 128, 64, 64)
    errors = np.random.default_rng(1).uniform(1.0, 9.0, (3, 128, 128, 128))
    write_whole(WITH_ERRORS, "velocity_std", errors.astype(np.float32))


def seen(proxy):
    """Count the requests that plans count, by their methods."""
    return Counter(
        method
        for method, path, _ in proxy.log
        if "list-type" not in path and "/.claims/" not in unquote(path)
    )


@pytest.fixture
def array(proxy):
    """A function that makes an array in the bucket and returns its store's URL and its values."""

    def make(name, grid, shard, chunk):
        url = f"{PLACE}/{name}-{grid}.zarr"
        group = zarr.create_group(zarr_store(url, read_only=False), overwrite=True)
        made = create_variable(group, name, grid, shard, chunk)
        values = np.random.default_rng(grid).normal(size=made.shape).astype(np.float32)
        for block in grid_blocks(grid, shard):
            part = values[(..., *place(block, Block((0, 0, 0), (grid,) * 3)))]
            write_cells(made, part, block)
        proxy.log.clear()
        return url, values

    return make


CUTS = [
    np.s_[..., :, :, :],
    np.s_[..., 0:16, :, :],
    np.s_[..., 5:70, 3:20, 60:96],
    np.s_[..., 17, 3:5, 70],
]


@each(
    ("name", "grid", "piece"),
    [("density", 96, 1 << 24), ("velocity", 96, 1 << 24), ("density", 100, 300_000)],
)
def test_shards_are_what_zarr_reads_in_fewer_requests(name, grid, piece, array, proxy, monkeypatch):
    monkeypatch.setattr(shards, "GAP", 20 << 10)
    # Whole shards of 1 MB are then read in several requests.
    monkeypatch.setattr(shards, "PIECE", piece)
    monkeypatch.setattr(shards, "WHOLE", 2 * piece)
    url, values = array(name, grid, 64, 16)
    plain, ours = (open_group(url)[name] for _ in range(2))
    ours = read_in_pieces(ours)
    for cut in CUTS:
        counts = []
        for one in (plain, ours):
            proxy.log.clear()
            np.testing.assert_array_equal(one[cut], values[cut])
            counts.append(len(proxy.log))
        assert counts[1] <= counts[0]
    # A slab of one chunk of planes: the chunks of a shard lie together.
    again = read_in_pieces(open_group(url)[name])
    proxy.log.clear()
    again[..., 0:16, 0:64, 0:64]
    assert len(proxy.log) == 1 + (3 if name == "velocity" else 1)


def test_a_shard_that_is_replaced_is_read_again(array, proxy, monkeypatch):
    monkeypatch.setattr(shards, "GAP", 20 << 10)
    url, values = array("density", 64, 64, 16)
    ours = read_in_pieces(open_group(url)["density"])
    np.testing.assert_array_equal(ours[:16, :16, :16], values[:16, :16, :16])
    whole, changed = Block((0, 0, 0), (64, 64, 64)), values[::-1].copy()
    proxy.log.clear()
    write_cells(open_group_for_writing(url)["density"], changed, whole)
    # The shard that is there is not asked for.
    assert [method for method, path, _ in proxy.log if "/c/" in path] == ["PUT"]
    np.testing.assert_array_equal(ours[:16, :32, :16], changed[:16, :32, :16])


COMMANDS = [
    ["paint", PARTICLES, f"{PLACE}/again.zarr"],
    ["spectra", FIELDS, "--field=velocity", "--out", f"{PLACE}/power.zarr"],
    ["infer", FIELDS, f"{PLACE}/second.zarr", "--model=wiener"],
    ["derive", FIELDS, f"{PLACE}/derived.zarr", "--field=divergence", "--field=velocity"],
    ["evaluate", FIELDS, PREDICTION],
    ["evaluate", FIELDS, WITH_ERRORS],
]


@each("command", COMMANDS)
def test_plans_count_what_a_proxy_sees(command, proxy, stores, tmp_path, capsys, record_property):
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
