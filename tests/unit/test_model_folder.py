"""A model's files: the same model again, or a refusal; never code."""

import hashlib
import json
import pickle

import pytest
import torch
from safetensors.torch import load, save

from cosmoflow.errors import DataError, IncompleteError, StorageError
from cosmoflow.model.folder import from_files, to_files
from cosmoflow.model.names import DESCRIPTION, RUN, WEIGHTS
from cosmoflow.model.velocity import ModelSpec, Normalisation, VelocityModel
from cosmoflow.numerics.restoration import PowerGain
from cosmoflow.numerics.wiener import WienerFilter
from cosmoflow.stages.models import load_model, save_model
from tests.cases import each


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    spec = ModelSpec(
        "residual-tiny", "momentum", 1.95, 0.5, {"h": 0.7, "Omega_m": 0.3},
        Normalisation(-0.123456789, 0.6, 210.0, 80.0),
        {"digest": "abc", "config": {"train": {"steps": 3}}},
        WienerFilter(("contrast", "log_density"), 0.1, ((0.0, 0.0), (1 / 3, 0.25), (1e-17, -2.0))),
        PowerGain(0.1, (1.0, 1.5, 1 / 3), (1.0, 2.0, 2.5)),
    )  # fmt: skip
    made = VelocityModel(spec)
    torch.nn.init.normal_(made.network.output.weight)
    # As it is after training.
    made.network.to(memory_format=torch.channels_last_3d)
    return made.eval()


@pytest.fixture
def files(model):
    return to_files(model)


def described(files, **changes):
    """The same files with another description; a change to None takes the key out."""
    description = {**json.loads(files[DESCRIPTION]), **changes}
    kept = {key: value for key, value in description.items() if value is not None}
    return {**files, DESCRIPTION: json.dumps(kept).encode()}


def refused(files, *words):
    with pytest.raises(DataError) as caught:
        from_files(files, "the/model")
    assert caught.value.exit_code == 3
    assert "the/model" in caught.value.where
    for word in words:
        assert word in str(caught.value)


def predict(model):
    generator = torch.Generator().manual_seed(3)
    density = torch.rand((1, 34, 34, 34), generator=generator)
    flows = 100.0 * torch.randn((1, 1, 3, 34, 34, 34), generator=generator)
    with torch.inference_mode():
        return model(density, flows)


def test_a_model_comes_back_the_same(model, files):
    again = from_files(files, "here")
    assert again.spec == model.spec
    assert not again.training
    assert torch.equal(predict(again.eval()), predict(VelocityModel.eval(model)))
    for (name, one), (other_name, other) in zip(
        model.network.state_dict().items(), again.network.state_dict().items(), strict=True
    ):
        assert name == other_name
        assert torch.equal(one, other)


def test_the_same_model_makes_the_same_bytes(model, files):
    assert to_files(model) == files
    assert to_files(from_files(files, "here")) == files


def test_the_description_says_what_a_reader_needs(files):
    description = json.loads(files[DESCRIPTION])
    assert description["format"] == "cosmoflow/model"
    assert description["architecture"] == "residual-tiny"
    assert (description["target"], description["halo"]) == ("momentum", 15)
    assert (description["cell_size"], description["redshift"]) == (1.95, 0.5)
    assert description["cosmology"] == {"h": 0.7, "Omega_m": 0.3}
    assert description["normalisation"]["density_mean"] == -0.123456789
    assert description["provenance"]["digest"] == "abc"


@each("cut", [0, 1, 8, 500, -1])
def test_truncated_weights_are_refused(files, cut):
    refused({**files, WEIGHTS: files[WEIGHTS][:cut]}, "truncated", WEIGHTS)


def test_one_flipped_bit_is_refused(files):
    damaged = bytearray(files[WEIGHTS])
    damaged[-100] ^= 1
    refused({**files, WEIGHTS: bytes(damaged)}, "damaged")


@each("content", [b"", b"{", b"\xff\xfe{}", b"null", b"[1, 2]", b"{}"])
def test_damaged_description_is_refused(files, content):
    refused({**files, DESCRIPTION: content})


def test_truncated_description_is_refused(files):
    refused({**files, DESCRIPTION: files[DESCRIPTION][:-20]}, "model.json")


def test_wrong_format_is_refused(files):
    refused(described(files, format="cosmoflow/fields"), "cosmoflow/fields", "cosmoflow/model")


@each("version", [1, 4, "2", None])
def test_another_format_version_is_refused(files, version):
    refused(described(files, format_version=version), "version")


@each(
    "changes",
    [
        {"architecture": "residual-small"},
        {"architecture": "no-such-network"},
        {"architecture": None},
        {"normalisation": None},
        {"normalisation": {"density_mean": 0.0}},
        {"cell_size": "wide"},
        {"cosmology": None},
        {"target": None},
        {"target": "vorticity"},
    ],
)
def test_a_description_that_does_not_fit_is_refused(files, changes):
    refused(described(files, **changes))


def test_weights_that_are_no_safetensors_are_refused(files):
    weights = pickle.dumps({"a": 1})
    digest = hashlib.sha256(weights).hexdigest()
    refused({**described(files, weights_sha256=digest), WEIGHTS: weights})


def test_weights_with_a_layer_missing_are_refused(files):
    tensors = load(files[WEIGHTS])
    del tensors["output.bias"]
    weights = save(tensors)
    digest = hashlib.sha256(weights).hexdigest()
    refused({**described(files, weights_sha256=digest), WEIGHTS: weights})


def test_nothing_is_unpickled(model, files, tmp_path, monkeypatch):
    save_model(str(tmp_path / "model"), model)

    def refuse(*arguments, **options):
        raise AssertionError("a model was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert from_files(files, "here").spec == model.spec
    assert load_model(str(tmp_path / "model")).spec == model.spec


def test_a_folder_holds_small_files_and_gives_the_model_back(model, tmp_path):
    url = f"file://{tmp_path}/some/model"
    save_model(url, model)
    folder = tmp_path / "some" / "model"
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, DESCRIPTION}
    assert torch.equal(predict(load_model(url)), predict(model))


def test_a_folder_without_weights_is_refused_as_missing(model, tmp_path):
    save_model(str(tmp_path), model)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(StorageError) as caught:
        load_model(str(tmp_path))
    assert caught.value.exit_code == 4
    assert WEIGHTS in caught.value.where


def test_a_training_that_did_not_finish_is_refused_as_incomplete(tmp_path):
    (tmp_path / RUN).write_text("abc\n")
    with pytest.raises(IncompleteError, match="--resume"):
        load_model(str(tmp_path))


def test_no_folder_at_all_is_refused_as_missing(tmp_path):
    with pytest.raises(StorageError):
        load_model(str(tmp_path / "none"))
