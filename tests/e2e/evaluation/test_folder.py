"""The folder of a report: what is refused, resumed and left, and what it leaves."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from cosmoflow.config import CosmologyConfig
from cosmoflow.errors import BusyError, ConfigError, DataError, IncompleteError, OutputExistsError
from cosmoflow.stages.evaluate import command as stage
from cosmoflow.stages.evaluate import evaluate
from cosmoflow.stages.evaluate import measure as evaluate_measure
from cosmoflow.stages.evaluate.inputs import open_inputs
from cosmoflow.stages.inspect import inspect
from cosmoflow.storage.claims import claim
from cosmoflow.storage.outputs import mark_folder
from cosmoflow.storage.urls import open_group_for_writing
from tests.cases import each
from tests.conftest import make_metadata, refused
from tests.e2e.evaluation.conftest import (
    CELL,
    GRID,
    RADII,
    SETTINGS,
    SUBBOX,
    contents,
    make_store,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
]


def test_the_report_folder(stores, serial_run, tmp_path):
    truth, predictions = stores(20)
    out = tmp_path / "report"
    found = evaluate(truth, predictions, str(out), serial_run(**SETTINGS))
    names = {path.name for path in out.iterdir()}
    assert names == {"cosmoflow.json", "curves.zarr", "figures", "metrics.json", "report.html"}
    assert json.loads((out / "cosmoflow.json").read_text())["status"] == "complete"
    told = [inspect(str(place)) for place in (out, out / "curves.zarr")]
    assert [one["kind"] for one in told] == ["report", "curves"]
    assert [one["status"] for one in told] == ["complete"] * 2
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["metrics"] == found.metrics
    assert metrics["context"]["predictions"]["noisy"].endswith("noisy.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curves = xr.open_zarr(out / "curves.zarr", consolidated=False).load()
    assert curves.attrs["status"] == "complete"
    assert list(curves["prediction"].values) == list(found.methods)
    chosen = {"prediction": "noisy", "quantity": "vorticity"}
    expected = found.metrics["spectra"]["full"]["quantities"]["vorticity"]
    np.testing.assert_array_equal(curves["transfer"].sel(chosen), expected["methods"]["noisy"]["T"])
    np.testing.assert_array_equal(curves["k"], expected["k"])
    box = found.metrics["spectra"]["subbox"]
    assert box["boxes"] == 8
    errors = curves["subbox_correlation_error"].sel(
        {"prediction": "noisy", "subbox_quantity": "speed"}
    )
    expected = box["quantities"]["speed"]["methods"]["noisy"]["r_error"]
    np.testing.assert_array_equal(errors, np.array(expected, float))
    counts = found.metrics["distributions"]
    np.testing.assert_array_equal(
        curves["density_curl_count"].sel({"prediction": "noisy"}),
        counts["methods"]["noisy"]["density_curl"],
    )
    for name, part, key in (
        ("coverage_95", "by_density", "coverage_95"),
        ("error_rms", "reliability", "rms"),
    ):
        expected = np.array(found.metrics["errors"]["noisy"][part][key], float)
        np.testing.assert_array_equal(curves[name].sel({"prediction": "noisy"}), expected)
        assert np.isnan(curves[name].sel({"prediction": "of momentum"})).all()
    expected = np.array(found.metrics["by_particles"]["methods"]["noisy"]["residual"], float)
    own = curves["residual_rms_by_particles"].sel({"prediction": "noisy"})
    np.testing.assert_array_equal(own, expected)
    np.testing.assert_array_equal(curves["speed_count_truth"], counts["truth"]["speed"])
    np.testing.assert_array_equal(
        curves["residual_map"].sel({"prediction": "noisy"}), found.residual_map["noisy"]
    )
    for name, variable in curves.variables.items():
        if variable.dtype.kind in "if":
            assert {"units", "long_name"} <= set(variable.attrs), name


@each(
    ("attributes", "value", "words"),
    [
        ({"predictions": 4}, None, ("spread of an ensemble", "run infer again")),
        ({"interval_68": 2.0, "interval_95": 1.0}, None, ("velocity_std", "interval_68: 2.0")),
        ({"interval_95": "wide"}, None, ("velocity_std", "interval_95: wide")),
        ({}, -1.0, ("velocity_std", "negative", "-1 km/s")),
    ],
)
def test_what_is_no_expected_error(stores, box, serial_run, tmp_path, attributes, value, words):
    """The spread of an ensemble is left out with a warning, and nonsense is refused."""
    truth, _ = stores(20)
    fields = {"velocity": box["noisy"], "velocity_std": box["error"].copy()}
    if value is not None:
        fields["velocity_std"][1, 2, 3, 4] = value
    said = {"velocity_std": attributes}
    other = make_store(tmp_path / "other.zarr", fields, 20, attributes=said)
    out, heard = tmp_path / "report", []
    run = serial_run(**SETTINGS, listener=heard.append)
    if "predictions" not in attributes:
        refused(DataError, 3, lambda: evaluate(truth, other, str(out), run), *words)
        assert not out.exists()
        return
    group = open_group_for_writing(truth)
    group.attrs["sampling"] = {"empty_share": 0.0}
    found = evaluate(truth, other, str(out), run)
    assert found.metrics["errors"] == {}
    assert found.metrics["by_particles"] is None
    notes = json.loads((out / "metrics.json").read_text())["context"]["provenance"]["notes"]
    for text in (*words, "not split by the number of particles"):
        assert any(text in note for note in notes)
    assert any(words[0] in e.text for e in heard if getattr(e, "level", "") == "warning")


@each(
    ("change", "words"),
    [
        ({"redshift": 1.0}, ("redshift", "1.0")),
        ({"box_size": 90.0}, ("box_size", "90.0")),
        ({"cosmology": CosmologyConfig(Omega_m=0.3)}, ("Omega_m", "0.3")),
    ],
)
def test_another_box_is_refused(stores, box, serial_run, tmp_path, change, words):
    truth, _ = stores(20)
    metadata = replace(make_metadata(GRID * CELL), **change)
    other = make_store(tmp_path / "other.zarr", {"velocity": box["noisy"]}, 20, metadata=metadata)
    out = tmp_path / "report"
    refused(DataError, 3, lambda: evaluate(truth, other, str(out), serial_run(**SETTINGS)), *words)
    assert not out.exists()


def test_another_grid_and_missing_fields_are_refused(stores, box, serial_run, tmp_path):
    truth, predictions = stores(20)
    coarse = {"velocity": box["noisy"][:, ::2, ::2, ::2]}
    small = make_store(tmp_path / "small.zarr", coarse, 10, metadata=make_metadata(GRID * CELL))
    scalar = make_store(tmp_path / "scalar.zarr", {"density": box["density"]}, 20)
    out, run = str(tmp_path / "report"), serial_run(**SETTINGS)
    refused(DataError, 3, lambda: evaluate(truth, small, out, run), "grid", "small.zarr")
    refused(DataError, 3, lambda: evaluate(truth, scalar, out, run), "neither", "scalar.zarr")
    refused(DataError, 3, lambda: evaluate(scalar, truth, out, run), "no 'velocity'")
    group = open_group_for_writing(predictions[0].partition("=")[2])
    group.attrs["status"] = "incomplete"
    refused(IncompleteError, 5, lambda: evaluate(truth, predictions, out, run), "--resume")
    assert not Path(out).exists()


def test_names_that_are_taken_are_refused(stores, serial_run, tmp_path):
    truth, predictions = stores(20)
    url = predictions[0].partition("=")[2]
    for name in ("truth", "linear theory"):
        with pytest.raises(ConfigError, match="one name"):
            evaluate(truth, f"{name}={url}", str(tmp_path / "report"), serial_run(**SETTINGS))
    assert not (tmp_path / "report").exists()


def test_default_names_are_those_of_the_models(stores, box, tmp_path):
    """Predictions of equal names also get the names of their stores."""
    truth, _ = stores(20)

    def predict(place, model):
        metadata = make_metadata(GRID * CELL)
        metadata.provenance["sources"] = {"models": model}
        metadata.provenance["inputs"] = {"models": "1 2" if "b/c" in model else "1"}
        return make_store(tmp_path / place, {"velocity": box["noisy"]}, 20, metadata=metadata)

    small, again = (predict(place, "residual-small") for place in ("v.zarr", "w.zarr"))
    folder, deep = predict("u.zarr", "/my models/deep"), predict("x/v.zarr", "s3://b/deep")
    both = predict("y.zarr", "/a/one /b/c")
    for given, names in (
        (small, ["residual-small"]),
        ([small, folder], ["residual-small", "deep"]),
        ([small, again, both], ["residual-small (v)", "residual-small (w)", "one + c"]),
        ([folder, f"mine={deep}", deep], ["deep (u)", "mine", "deep (v)"]),
        ({"mine": small, "residual-small": again}, ["mine", "residual-small"]),
        ([small, predict("x/z.zarr", ""), f"z={again}"], ["residual-small", "z (z)", "z"]),
    ):
        assert list(open_inputs(truth, given, [0.0]).found) == names
    twin = predict("z/v.zarr", "residual-small")
    found = open_inputs(truth, [small, twin], []).found
    assert list(found) == [f"residual-small ({tmp_path.name}/v)", "residual-small (z/v)"]
    with pytest.raises(ConfigError, match="one name"):
        open_inputs(truth, [small, small], [])


@each("existing", ["error", "overwrite"])
def test_a_damaged_field_leaves_no_report_and_an_older_one_alone(
    stores, serial_run, tmp_path, existing
):
    truth, predictions = stores(10)
    out, run = tmp_path / "report", serial_run(**SETTINGS, existing=existing)
    before = None
    if existing == "overwrite":
        evaluate(truth, predictions, str(out), run)
        before = contents(out)
    url = predictions[0].partition("=")[2]
    zarr.open_group(url, mode="r+")["velocity"][1, 17, 2, 3] = np.nan
    refused(
        DataError, 3, lambda: evaluate(truth, predictions, str(out), run),
        url, "velocity", "not finite", "block",
    )  # fmt: skip
    assert contents(out) == before if before else not out.exists()


def test_a_run_that_is_interrupted_leaves_nothing(stores, serial_run, tmp_path, monkeypatch):
    truth, predictions = stores(20)

    def stop(*given, **how):
        assert Path(out, "linear.zarr").exists()
        raise KeyboardInterrupt

    out = str(tmp_path / "report")
    monkeypatch.setattr(evaluate_measure, "measure_power", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(truth, predictions, out, serial_run(**SETTINGS))
    assert not Path(out).exists()


def test_what_a_killed_run_left_is_replaced(stores, serial_run, tmp_path):
    truth, predictions = stores(20)
    out = tmp_path / "report"
    begun = open_inputs(truth, predictions, RADII)
    provenance = stage._provenance(begun, serial_run(**SETTINGS))
    # What is left if the run is killed while it writes the mark is refused like other outputs.
    out.mkdir()
    (out / ".cosmoflow.json.partial").write_text("{")
    with pytest.raises(OutputExistsError) as caught:
        evaluate(truth, predictions, str(out), serial_run(**SETTINGS))
    assert "--resume to finish it, --overwrite" in caught.value.remedy
    for existing in ("resume", "overwrite"):
        run = serial_run(**SETTINGS, existing=existing)
        stage._check_folder(str(out), begun, run, provenance)
    stage._mark(str(out), "incomplete", provenance)
    (out / "linear.zarr").mkdir()
    (out / "linear.zarr" / "zarr.json").write_text("{")
    with pytest.raises(OutputExistsError):
        evaluate(truth, predictions, str(out), serial_run(**SETTINGS))
    evaluate(truth, predictions, str(out), serial_run(**SETTINGS, existing="resume"))
    assert not (out / "linear.zarr").exists()
    assert json.loads((out / "cosmoflow.json").read_text())["status"] == "complete"


def test_another_report_is_not_resumed(stores, box, serial_run, tmp_path):
    """A whole report may be made again of the same stores; of others it is refused."""
    truth, predictions = stores(20)
    out, resuming = tmp_path / "report", serial_run(**SETTINGS, existing="resume")
    first = evaluate(truth, predictions, str(out), serial_run(**SETTINGS))
    mark = json.loads((out / "cosmoflow.json").read_text())
    again = evaluate(truth, predictions, str(out), resuming)
    assert again.metrics == first.metrics
    assert json.loads((out / "cosmoflow.json").read_text()) == mark
    before = contents(out)
    metadata = make_metadata(GRID * CELL, seed=2)
    other = make_store(tmp_path / "other.zarr", {"velocity": box["noisy"]}, 20, metadata=metadata)
    digest = mark["provenance"]["digest"]
    changed = serial_run(evaluate={"subbox": SUBBOX, "smoothing": (0.0,)}, existing="resume")
    for given, run, word in (
        ("noisy=" + other, resuming, "another input 'noisy'"),
        (predictions, changed, "other settings"),
    ):
        refused(
            ConfigError, 2, lambda given=given, run=run: evaluate(truth, given, str(out), run),
            word, digest, "--overwrite",
        )  # fmt: skip
    assert contents(out) == before


@each("existing", ["error", "resume", "overwrite"])
def test_other_outputs_are_no_reports(stores, box, serial_run, tmp_path, existing):
    """A report would be written into them."""
    truth, predictions = stores(20)
    model, demo, curve = tmp_path / "model", tmp_path / "demo", tmp_path / "spectrum.nc"
    fields = make_store(tmp_path / "fields.zarr", {"velocity": box["noisy"]}, 20)
    model.mkdir()
    (model / "model.json").write_text('{"weights_sha256": "0"}')
    mark_folder(str(demo), "demo")
    xr.Dataset(attrs={"format": "cosmoflow/spectra"}).to_netcdf(curve, engine="scipy")
    before = contents(tmp_path)
    run = serial_run(**SETTINGS, existing=existing)
    kinds = {fields: "cosmoflow/fields", model: "model.json", demo: "cosmoflow/demo", curve: "said"}
    for out, kind in kinds.items():
        refused(
            OutputExistsError, 2, lambda out=out: evaluate(truth, predictions, str(out), run),
            "no report", kind, str(out), "another name",
        )  # fmt: skip
    assert contents(tmp_path) == before


def test_a_store_that_was_painted_with_nonsense_is_refused(stores, box, serial_run, tmp_path):
    metadata = make_metadata(GRID * CELL, paint={"scheme": "spline"})
    truth = {"density": box["density"], "velocity": box["truth"]}
    odd = make_store(tmp_path / "odd.zarr", truth, 20, metadata=metadata)
    out = str(tmp_path / "report")
    _, predictions = stores(20)
    refused(
        DataError, 3, lambda: evaluate(odd, predictions, out, serial_run(**SETTINGS)),
        "odd.zarr", "spline", "cic",
    )  # fmt: skip
    assert not Path(out).exists()


def test_readers_count_what_they_hold(stores):
    """Density 1, velocity 3, 2.25 times what is being read; more where a momentum is divided."""
    truth, predictions = stores(20)
    inputs = open_inputs(truth, predictions, RADII)
    readers = inputs.readers(inputs.methods)
    assert readers["truth"].held(("velocity",)) == 7
    assert readers["noisy"].held(("density", "velocity")) == 8
    assert readers["of momentum"].held(("velocity",)) == 9
    assert readers["of momentum"].held(("density", "velocity")) == 10


def test_nothing_of_others_is_touched(stores, serial_run, tmp_path):
    truth, predictions = stores(20)
    thesis = tmp_path / "thesis"
    (thesis / "figures").mkdir(parents=True)
    (thesis / "figures" / "chapter.pdf").write_text("years of work")
    for existing in ("error", "resume", "overwrite"):
        with pytest.raises(OutputExistsError):
            evaluate(truth, predictions, str(thesis), serial_run(**SETTINGS, existing=existing))
    assert (thesis / "figures" / "chapter.pdf").read_text() == "years of work"


def test_two_runs_do_not_write_one_report(stores, serial_run, tmp_path):
    truth, predictions = stores(20)
    out = str(tmp_path / "report")
    with claim(out), pytest.raises(BusyError):
        evaluate(truth, predictions, out, serial_run(**SETTINGS))
    assert not Path(out).exists()
