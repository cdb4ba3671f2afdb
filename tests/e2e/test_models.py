"""Models without a folder: linear theory, and those that ship."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from cosmoflow.model.names import PRETRAINED, model_folder, pretrained_models
from cosmoflow.numerics.comparison import SAMPLED_AT
from cosmoflow.stages.models import find_model, load_model
from tests.cases import each
from tests.e2e.conftest import SMALL

pytestmark = pytest.mark.e2e


def opened(path):
    return xr.open_zarr(path, consolidated=False)


def test_linear_theory_is_a_model(chain, copy_of, cosmoflow, tmp_path):
    fields, out = copy_of("fields.zarr"), tmp_path / "out.zarr"
    code, _, err = cosmoflow("infer", fields, out, "--model", "linear:4", *SMALL)
    assert code == 0, err
    stored = opened(fields)["linear_velocity"].sel(smoothing=4.0)
    np.testing.assert_array_equal(opened(out)["velocity"], stored)


@each(
    ("name", "words"),
    [("linear:much", "Mpc/h"), ("linear:-1", "Mpc/h"), ("residual-smal", "no such")],
)
def test_a_model_that_there_is_not_is_refused(chain, cosmoflow, tmp_path, name, words):
    out = tmp_path / "out.zarr"
    code, _, err = cosmoflow("infer", chain / "fields.zarr", out, "--model", name, *SMALL)
    assert code in (2, 3, 4)
    assert words in err
    assert "Traceback" not in err
    assert not out.exists()


def test_what_ships_is_used_without_a_model_and_says_what_it_is(
    chain, copy_of, cosmoflow, tmp_path
):
    fields, out = copy_of("fields.zarr"), tmp_path / "out.zarr"
    restore = ["--set=infer.restore_power=true"]
    code, _, err = cosmoflow("infer", fields, out, *SMALL, *restore)
    assert code == 2
    assert "--set infer.symmetries=8" in err
    assert not out.exists()
    restore.append("--set=infer.symmetries=8")
    code, _, err = cosmoflow("infer", fields, out, *SMALL, *restore)
    assert code == 0, err
    found = opened(out)
    config = zarr.open_group(out).attrs["provenance"]["config"]
    assert config["models"] == ["residual-small"]
    true, predicted = opened(fields)["velocity"], found["velocity"]
    wiener = opened(fields)["wiener_velocity"]

    def power(field):
        return float((field.astype(float) ** 2).sum("component").mean())

    # One particle a cell is not what it was made for; closer than the filter it starts from is it.
    assert power(predicted - true) < power(wiener - true) < power(true)
    restored = found["restored_velocity"]
    assert power(restored) > power(predicted)
    assert restored.attrs["units"] == "km/s"


@each("name", pretrained_models())
def test_what_ships_is_small_and_whole(name):
    # Nodes of a cluster may have it elsewhere: what travels is the name.
    assert find_model(name) == name
    assert find_model(f"./{name}") != name
    folder = Path(model_folder(name))
    assert folder.parent == PRETRAINED
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6
    assert {path.name for path in folder.iterdir()} == {"model.json", "model.safetensors"}
    spec = load_model(str(folder)).spec
    assert (spec.architecture, spec.target) == (name, "velocity")
    limits = spec.family.limits
    assert (limits["cell_size"], limits["redshift"]) == ((1.0, 4.0), (0.0, 2.0))
    text = (folder / "model.json").read_text()
    # Nothing of the machine that made it.
    assert not any(f"/{word}/" in text for word in ("work", "tmp", "home", "root"))
    assert json.loads(text)["provenance"]["stage"] == "train"


def test_a_model_of_one_condition_is_refused_for_other_cells(
    chain, fields_store, cosmoflow, tmp_path
):
    store = fields_store(12, cell=1.0)
    code, _, err = cosmoflow(
        "infer", store.url, tmp_path / "out.zarr", "--model", chain / "model", "--engine=serial"
    )
    assert code == 3
    assert "cells of 2 Mpc/h" in err
    assert "--model residual-small" in err
    assert not (tmp_path / "out.zarr").exists()


def test_power_cannot_be_restored_without_gains(chain, cosmoflow, tmp_path):
    code, _, err = cosmoflow(
        "infer", chain / "fields.zarr", tmp_path / "out.zarr", "--model", chain / "model", *SMALL,
        "--set=infer.restore_power=true",
    )  # fmt: skip
    assert code == 2
    assert "no gains" in err
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.slow
def test_a_filter_is_fitted_in_place_of_a_network(chain, copy_of, cosmoflow, tmp_path):
    """Two boxes, one to fit on and one that validates; then both are compared in one report."""
    one, two, model = copy_of("fields.zarr"), tmp_path / "two.zarr", tmp_path / "wiener"
    particles = tmp_path / "particles.zarr"
    assert cosmoflow("simulate", particles, "--seed=9", *SMALL)[0] == 0
    assert cosmoflow("paint", particles, two, *SMALL)[0] == 0
    code, _, err = cosmoflow("train", one, two, "--out", model, "--model=wiener", *SMALL)
    assert code == 0, err
    assert load_model(str(model)).spec.filter is not None
    predictions = []
    for name in (model, "linear:4"):
        predictions.append(tmp_path / f"prediction-{len(predictions)}.zarr")
        assert cosmoflow("infer", two, predictions[-1], "--model", name, *SMALL)[0] == 0
    report = tmp_path / "report"
    code, events, err = cosmoflow(
        "evaluate", two, predictions[0], f"mine={predictions[1]}", "--out", report, *SMALL, "--json"
    )
    assert code == 0, err
    residual = events[-1]["residual"]
    assert residual["wiener"]["rms"] < residual["mine"]["rms"]
    assert residual["mine"]["rms"] == pytest.approx(residual["linear theory 4 Mpc/h"]["rms"])
    metrics = json.loads((report / "metrics.json").read_text())["metrics"]
    found = metrics["spectra"]["full"]["quantities"]["divergence"]["methods"]["wiener"]["sampled"]
    assert found["k"] == list(SAMPLED_AT)


def test_two_predictions_of_one_name_are_refused(chain, cosmoflow, tmp_path):
    prediction = chain / "prediction.zarr"
    code, _, err = cosmoflow(
        "evaluate", chain / "fields.zarr", prediction, prediction, "--out", tmp_path / "r", *SMALL
    )
    assert code == 2
    assert "name them" in err
    assert not (tmp_path / "r").exists()
