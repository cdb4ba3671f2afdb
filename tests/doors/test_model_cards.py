"""Descriptions of models are validated number by number; no output holds what is not finite."""

import hashlib
import io
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from safetensors.torch import load, save

import cosmoflow
from cosmoflow.cli.app import run_app
from cosmoflow.config import CosmologyConfig
from cosmoflow.errors import DataError
from cosmoflow.model.description import read_filter
from cosmoflow.model.fitting import Fitting
from cosmoflow.model.folder import from_files, to_files
from cosmoflow.model.names import DESCRIPTION, WEIGHTS
from cosmoflow.model.velocity import ModelSpec, Normalisation, VelocityModel
from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.restoration import PowerGain
from cosmoflow.storage.field_writing import create_fields, finished_shards, write_block, write_whole
from tests.cases import each
from tests.conftest import UNIT_FILTER, make_metadata, narrow_networks, refused

NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def files():
    with narrow_networks():
        spec = ModelSpec(
            "residual-tiny", "velocity", 2.0, 0.0, CosmologyConfig().model_dump(mode="json"),
            Normalisation(0.0, 0.5, 200.0, 150.0), {"stage": "train"}, UNIT_FILTER,
            PowerGain(0.1, (1.0, 1.5), (1.0, 2.0)),
        )  # fmt: skip
        yield to_files(VelocityModel(spec))


def changed(files, path, value):
    """The files with one value of the description replaced, or, given "gone", taken out."""
    description = json.loads(files[DESCRIPTION])
    *parents, last = path
    part = description
    for key in parents:
        part = part[key]
    if value == "gone":
        del part[last]
    else:
        part[last] = value
    return {**files, DESCRIPTION: json.dumps(description).encode()}


NUMBERS = [
    *(("normalisation", name) for name in ("density_mean", "density_std", "velocity_scale")),
    ("normalisation", "target_scale"), ("filter", "width"), ("filter", "weights", 1, 0),
    ("gain", "width"), ("gain", "potential", 1), ("gain", "rotational", 0),
    ("cell_size",), ("redshift",), ("cosmology", "sigma8"), ("cosmology", "n_s"),
]  # fmt: skip


@each("path", NUMBERS, ids=lambda path: ".".join(map(str, path)))
def test_every_number_is_one_that_can_be_computed_with(files, path):
    key = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in path).lstrip(".")
    for value in (NAN, INF, -INF, "1.0", [1.0], True, {}, 10**400):
        with pytest.raises(DataError) as caught:
            from_files(changed(files, path, value), "the/model")
        assert caught.value.exit_code == 3
        assert caught.value.where == f"the/model/model.json, {key}"
        assert caught.value.limit
        assert caught.value.remedy
        assert len(str(caught.value)) < 600


@each(
    ("path", "value"),
    [
        (("cell_size",), -2.0), (("cell_size",), 0.0), (("redshift",), -1.0),
        (("halo",), -1), (("halo",), 14), (("halo",), 15.5), (("stride",), 0), (("stride",), 2),
        (("smoothing",), [2.0]), (("smoothing",), [NAN]), (("smoothing",), "none"),
        (("normalisation", "density_std"), 0.0), (("normalisation", "velocity_scale"), -200.0),
        (("normalisation", "target_scale"), 1e-300), (("normalisation", "target_scale"), "gone"),
        (("normalisation", "extra"), 1.0), (("normalisation",), None), (("normalisation",), []),
        (("filter", "fields"), "gone"), (("filter", "width"), "gone"),
        (("filter", "weights"), "gone"),
        (("filter", "fields"), ["contrasts"]), (("filter", "fields"), []), (("filter",), None),
        (("filter", "fields"), ["contrast", "log_density"]), (("filter", "weights"), [[1.0]]),
        (("filter", "weights", 0), [1.0, 2.0]), (("filter", "weights", 0), []),
        (("filter", "weights", 2, 0), 1e39), (("filter", "fields"), ["contrast", "contrast"]),
        (("gain", "potential"), [1.0]), (("gain", "rotational"), [1.0, 1.0, 1.0]),
        (("gain", "symmetries"), 0), (("gain", "potential", 0), -1.0), (("gain",), 3),
        (("cosmology", "Omega_m"), -0.3), (("cosmology",), [0.3]), (("cosmology",), "gone"),
        (("architecture",), "residual-smal"), (("architecture",), 3),
        (("architecture",), "linear:x"),
        (("architecture",), "\ud800"), (("target",), "density"), (("target",), None),
        (("provenance",), "none"), (("weights_sha256",), "gone"), (("weights_sha256",), None),
        (("weights_sha256",), "abc"), (("format",), "gone"), (("format",), {"a": 1}),
        (("format_version",), 2.5), (("format_version",), True),
    ],
)  # fmt: skip
def test_what_no_model_can_have_is_refused_with_its_place(files, path, value):
    with pytest.raises(DataError) as caught:
        from_files(changed(files, path, value), "the/model")
    assert caught.value.exit_code == 3
    assert caught.value.where.startswith("the/model/model.json")
    assert path[0] in str(caught.value)
    assert caught.value.remedy
    str(caught.value).encode()


def test_versions_say_what_to_do(files):
    for version, words in ((1, "train the model again"), (4, "upgrade cosmoflow")):
        call = lambda v=version: from_files(changed(files, ("format_version",), v), "m")  # noqa: E731
        refused(DataError, 3, call, "version", words)


@each(
    "content",
    [
        b"", b"{", b"nul", b"null", b"[]", b"3", b'"text"', b"\xff\xfe\x00", b"\x00",
        b"[" * 100_000, b'{"a":' * 100_000, b'{"format": ' + b"9" * 5000 + b"}",
        b'{"\xc3\x28": 1}', b"{}",
        b'{"format": "\\ud800"}', "{}".encode("utf-16"), b'{"format": NaN}',
    ],
    ids=range(17),
)  # fmt: skip
def test_any_bytes_in_place_of_json_are_refused(files, content):
    with pytest.raises(DataError) as caught:
        from_files({**files, DESCRIPTION: content}, "the/model")
    assert "the/model/model.json" in caught.value.where
    str(caught.value).encode()
    with pytest.raises(DataError) as caught:
        read_filter(content, "the/model", "filter.json")
    assert "the/model/filter.json" in caught.value.where


def with_weights(files, change):
    """The files with other weights, whose digest is right."""
    weights = load(files[WEIGHTS])
    change(weights)
    content = save({name: tensor.contiguous() for name, tensor in weights.items()})
    digest = hashlib.sha256(content).hexdigest()
    return {**changed(files, ("weights_sha256",), digest), WEIGHTS: content}


@each(
    ("change", "words"),
    [
        (lambda w: w.update({"output.bias": torch.full((3,), NAN)}), "not finite"),
        (lambda w: w["encode_fine.0.weight"].view(-1)[5:6].fill_(INF), "1 of"),
        (lambda w: w.pop("output.bias"), "missing"),
        (lambda w: w.update(more=torch.zeros(2)), "more"),
        (lambda w: w.update({"output.bias": torch.zeros(4)}), "(4,) of torch.float32"),
        (lambda w: w.update({"output.bias": torch.zeros(3).half()}), "torch.float16"),
        (lambda w: w.update({"output.bias": torch.zeros(3).long()}), "torch.int64"),
    ],
)
def test_weights_that_are_not_the_networks_are_refused(files, change, words):
    with narrow_networks():
        refused(DataError, 3, lambda: from_files(with_weights(files, change), "m"), WEIGHTS, words)


def test_no_model_is_written_that_would_be_refused(files):
    with narrow_networks():
        model = from_files(files, "m")
        torch.nn.init.constant_(model.network.output.bias, NAN)
        refused(DataError, 3, lambda: to_files(model, "m"), "not finite", "output.bias")


def test_the_command_refuses_a_model_with_a_nan_in_place_of_making_a_field_of_nan(
    files, fields_store, tmp_path, capsys
):
    store, folder, out = fields_store(8), tmp_path / "model", tmp_path / "out.zarr"
    folder.mkdir()
    for name, content in changed(files, ("normalisation", "target_scale"), NAN).items():
        (folder / name).write_bytes(content)
    arguments = ["infer", store.url, str(out), "--model", str(folder), "--engine=serial"]
    assert run_app(arguments) == 3
    said = capsys.readouterr().err
    assert "model.json, normalisation.target_scale" in said
    assert "Traceback" not in said
    assert not out.exists()


@each("precision", ["float32", "bfloat16"])
def test_predictions_that_overflow_are_not_written(
    files, fields_store, serial_run, tmp_path, precision
):
    """Finite weights whose products float32 cannot hold."""
    store, folder, out = fields_store(8), tmp_path / "model", tmp_path / "out.zarr"
    folder.mkdir()
    with narrow_networks():

        def grow(weights):
            for tensor in weights.values():
                tensor.fill_(1e30)

        for name, content in with_weights(files, grow).items():
            (folder / name).write_bytes(content)
        run = serial_run(infer={"precision": precision})
        call = lambda: cosmoflow.infer(store.url, str(out), str(folder), run)  # noqa: E731
        refused(DataError, 3, call, "not finite", str(folder), store.url, "overflow")
        # Nothing was finished, so nothing is in the way of the next run.
        assert not out.exists()
        call = lambda: cosmoflow.infer_array(store.density, 16.0, folder, redshift=0.0, run=run)  # noqa: E731
        refused(DataError, 3, call, "not finite", str(folder))


def begun(url, region=None):
    create_fields(url, make_metadata(16.0), 8, ("density",), shard=4, chunk=4, region=region)


@each("value", [NAN, INF, -INF])
def test_a_shard_that_is_not_finite_is_not_written_and_not_finished(tmp_path, value):
    url = str(tmp_path / "a.zarr")
    begun(url)
    values = np.ones((4, 4, 4), np.float32)
    write_block(url, Block((0, 0, 0), (4, 4, 4)), 0, {"density": values})
    values[1, 2, 3] = value
    block = Block((4, 0, 0), (4, 4, 4))
    words = ("density", "(4, 0, 0)", "1 of 64")
    refused(DataError, 3, lambda: write_block(url, block, 4, {"density": values}), *words)
    assert finished_shards(url).tolist() == [True] + 7 * [False]
    stored = zarr.open_group(url)["density"][:]
    assert np.isfinite(stored).sum() == 64
    whole = np.full((8, 8, 8), value, np.float32)
    refused(DataError, 3, lambda: write_whole(url, "density", whole), "512 of 512")


def test_a_store_of_a_region_holds_nothing_outside_and_only_there(tmp_path):
    url = str(tmp_path / "a.zarr")
    begun(url, Block((2, 0, 0), (6, 8, 8)))
    block, values = Block((0, 0, 0), (4, 4, 4)), np.ones((4, 4, 4), np.float32)
    values[:2] = NAN
    write_block(url, block, 0, {"density": values})
    values[2, 0, 0] = NAN
    refused(DataError, 3, lambda: write_block(url, block, 0, {"density": values}), "1 of 64")
    assert np.isfinite(xr.open_zarr(url, consolidated=False)["density"].values).sum() == 32


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@each(
    ("content", "words"),
    [
        (b"junk", "does not belong to this training"),
        (saved([1, 2]), "does not belong to this training"),
        (saved({"network": {}}), "does not belong to this training"),
        (saved({"network": {"weight": torch.full((2,), NAN)}}), "not finite"),
    ],
)
def test_checkpoints_of_something_else_are_refused(content, words):
    network = torch.nn.Linear(2, 2)
    loop = SimpleNamespace(device="cpu", network=network, optimiser=None)
    refused(DataError, 3, lambda: Fitting.restore(loop, content), words)


def test_a_filter_of_a_run_is_read_back_or_refused(files):
    content = json.dumps(json.loads(files[DESCRIPTION])["filter"]).encode()
    assert read_filter(content, "m", "filter.json") == UNIT_FILTER
    bad = content.replace(b"1.0", b"NaN", 1)
    call = lambda: read_filter(bad, "m", "filter.json")  # noqa: E731
    refused(DataError, 3, call, "m/filter.json, weights[0][0]", "--overwrite")
