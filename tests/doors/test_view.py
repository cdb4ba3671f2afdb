"""`cosmoflow view`: the slice is that of the store, and only its chunks are read."""

import json

import numpy as np
from matplotlib import image

import cosmoflow
from cosmoflow.cli.app import run_app
from cosmoflow.errors import ConfigError, DataError, OutputExistsError
from cosmoflow.numerics.blocks import Block
from cosmoflow.storage.field_writing import create_fields, write_block
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.urls import open_group_for_writing
from tests.cases import each
from tests.conftest import make_metadata, refused


@each(
    ("how", "expected"),
    [
        ({}, lambda store: store.density[:, :, 8]),
        ({"axis": "x", "position": 0.0}, lambda store: store.density[0]),
        ({"axis": "y", "position": 32.0}, lambda store: store.density[:, 15]),
        (
            {"field": "velocity", "component": "y", "axis": "x", "position": 5.0},
            lambda store: store.velocity[1, 2],
        ),
        (
            {"field": "velocity", "axis": "y", "position": 13.9},
            lambda store: np.linalg.norm(store.velocity[:, :, 6].astype("f8"), axis=0),
        ),
    ],
)
def test_a_slice_is_that_of_the_store(fields_store, tmp_path, capsys, how, expected):
    store = fields_store(16, shard=16, chunk=4)
    found = cosmoflow.view(store.url, **how)
    np.testing.assert_allclose(found, expected(store), rtol=1e-6)
    axis = how.get("axis", "z")
    assert found.dims == tuple(name for name in "xyz" if name != axis)
    for name in found.dims:
        np.testing.assert_allclose(found[name], (np.arange(16) + 0.5) * 2.0)
    # The command gives the same facts, a picture of the slice, and a PNG file.
    options = [f"--{name}={value}" for name, value in how.items()]
    assert run_app(["view", store.url, *options, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["max"] == float(found.max())
    assert facts["position"] == float(found[axis])
    assert run_app(["view", store.url, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 25
    assert f"at {axis} = {float(found[axis]):g} Mpc/h" in lines[0]
    out = tmp_path / "slice.png"
    assert run_app(["view", store.url, *options, f"--out={out}"]) == 0
    assert image.imread(out).std() > 0.05


def test_a_slice_reads_only_its_chunks_and_stays_in_the_region(tmp_path, capsys):
    """Half of the box is held: shards of 8^3 cells, one of which is damaged."""
    url = str(tmp_path / "fields.zarr")
    region = Block((0, 0, 0), (16, 8, 16))
    metadata = make_metadata(32.0, stage="infer")
    create_fields(url, metadata, 16, ("density",), shard=8, chunk=4, region=region)
    for index, origin in ((0, (0, 0, 0)), (1, (0, 0, 8)), (4, (8, 0, 0)), (5, (8, 0, 8))):
        ones = np.full((8, 8, 8), 1.0 + index, np.float32)
        write_block(url, Block(origin, (8, 8, 8)), index, {"density": ones})
    finish_group(open_group_for_writing(url))
    (tmp_path / "fields.zarr" / "density" / "c" / "0" / "0" / "1").write_bytes(b"damaged")
    found = cosmoflow.view(url, position=3.0)
    assert found.shape == (16, 8)
    np.testing.assert_array_equal(found[:8], 1.0)
    np.testing.assert_array_equal(found[8:], 5.0)
    refused(DataError, 3, lambda: cosmoflow.view(url, position=20.0), "density")
    outside = lambda: cosmoflow.view(url, axis="y", position=20.0)  # noqa: E731
    refused(ConfigError, 2, outside, "0 to 16 Mpc/h along y")
    assert cosmoflow.info(url)["shards"] == {"fields": "4 of 4"}
    assert run_app(["info", url]) == 0
    said = capsys.readouterr().out
    assert "  grid: 16^3 cells of 2 Mpc/h\n" in said
    assert "  region: 16 x 8 x 16 cells, x 0 to 32, y 0 to 16, z 0 to 32 Mpc/h\n" in said


@each(
    ("how", "kind", "words"),
    [
        ({"field": "densty"}, ConfigError, ["did you mean 'density'?"]),
        ({"component": "x"}, ConfigError, ["the field is a scalar"]),
        ({"field": "velocity", "component": "1"}, ConfigError, ["x, y, z, norm"]),
        ({"out": "slice.pdf"}, ConfigError, ["slice.pdf.png"]),
        ({"out": "{store}/slice.png"}, ConfigError, ["over an input"]),
        ({"out": "{folder}/old.png"}, OutputExistsError, ["--overwrite"]),
    ],
)
def test_a_slice_that_cannot_be_shown(fields_store, tmp_path, how, kind, words):
    url = fields_store(8).url
    (tmp_path / "old.png").write_text("old")
    how = {name: text.format(store=url, folder=tmp_path) for name, text in how.items()}
    refused(kind, 2, lambda: cosmoflow.view(url, **how), *words)
    assert (tmp_path / "old.png").read_text() == "old"
