"""The commands as a person runs them, and what xarray makes of their outputs."""

import csv
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from cosmoflow.cli.app import COMMANDS, run_app
from cosmoflow.config import Settings, load_settings
from cosmoflow.stages.evaluate.trainings import describe_models
from cosmoflow.storage.fields import FieldStore
from tests.cases import each
from tests.e2e.conftest import SMALL

pytestmark = pytest.mark.e2e


@each(
    ("name", "variables"),
    [
        ("fields.zarr", {"density", "momentum", "velocity", "wiener_velocity"}),
        ("prediction.zarr", {"velocity"}),
    ],
)
def test_xarray_opens_outputs_without_a_warning(chain, name, variables):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xr.open_zarr(chain / name, consolidated=False)
    assert set(dataset.data_vars) == variables
    assert dataset["velocity"].dims == ("component", "x", "y", "z")
    assert dataset["velocity"].attrs["units"] == "km/s"
    assert [str(label) for label in dataset["component"].values] == ["x", "y", "z"]
    np.testing.assert_allclose(dataset["x"].values, (np.arange(48) + 0.5) * 2.0)
    assert dataset.attrs["box_size"] == 96.0
    assert dataset.attrs["status"] == "complete"
    assert len(dataset.attrs["provenance"]["digest"]) == 16


def test_density_mean_is_one_and_momentum_is_that_of_the_particles(chain):
    fields = xr.open_zarr(chain / "fields.zarr", consolidated=False)
    particles = xr.open_zarr(chain / "particles.zarr", consolidated=False)
    assert float(fields["density"].mean(dtype="f8")) == pytest.approx(1.0, abs=1e-6)
    mean_velocity = particles["velocity"].astype("f8").mean("particle").values
    mean_momentum = fields["momentum"].astype("f8").mean(("x", "y", "z")).values
    rms = float(np.sqrt((particles["velocity"].astype("f8") ** 2).mean()))
    np.testing.assert_allclose(mean_momentum, mean_velocity, atol=1e-5 * rms)


def test_evaluate_writes_a_report_with_every_method(chain, report):
    said = report.with_name("said").read_text().splitlines()
    assert json.loads(said[-1])["event"] == "result"
    written = json.loads((report / "metrics.json").read_text())
    metrics = written["metrics"]
    (trained,) = written["context"]["models"]["model"]
    assert trained["architecture"] == "residual-tiny"
    assert trained["boxes"] == 1
    assert f"{trained['steps']} steps" in (report / "report.html").read_text()
    # A model that was trained again since is another one.
    store = FieldStore(str(chain / "prediction.zarr"))
    store.metadata.provenance["inputs"]["models"] = "0" * 16
    assert describe_models(store) == [{"name": str(chain / "model")}]
    assert set(metrics["residual"]) == {
        "model", "residual-small (ships)",
        "linear theory", "linear theory 2 Mpc/h", "linear theory 4 Mpc/h",
    }  # fmt: skip
    assert json.loads(said[-1])["shipped"]["compared"]
    assert {path.name for path in report.glob("*.zarr")} == {"curves.zarr"}
    truth = xr.open_zarr(chain / "fields.zarr", consolidated=False)["velocity"].values
    found = xr.open_zarr(chain / "prediction.zarr", consolidated=False)["velocity"].values
    rms = np.sqrt(((found - truth).astype("f8") ** 2).sum(axis=0).mean())
    assert metrics["residual"]["model"]["rms"] == pytest.approx(rms, rel=1e-5)
    assert (report / "report.html").stat().st_size > 100_000


def test_spectra_are_stored_for_xarray(chain, tmp_path, cosmoflow):
    out = tmp_path / "power.zarr"
    spectra = ("spectra", chain / "fields.zarr", "--field=density", "--out", out, "--json")
    code, events, _ = cosmoflow(*spectra)
    assert code == 0
    # A cross spectrum would name its second field.
    assert "cross" not in events[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spectrum = xr.open_zarr(out, consolidated=False)
    # The modes of a whole shell of radius k number about 4 pi k^2 in units of the fundamental.
    assert int(spectrum["modes"][0]) == 18
    assert spectrum["k"].attrs["units"] == "h/Mpc"
    fields = xr.open_zarr(chain / "fields.zarr", consolidated=False)
    raw = tmp_path / "raw.nc"
    assert run_app(
        ["spectra", str(chain / "fields.zarr"), "--field=density", "--out", str(raw),
         "--compensate=none"]
    ) == 0  # fmt: skip
    uncompensated = xr.open_dataset(raw, engine="scipy")
    ratio = (spectrum["power"] / uncompensated["power"]).values
    assert ratio[0] == pytest.approx(1.0, abs=0.01)
    assert ratio[-1] > 2.0
    assert fields.sizes["x"] // 2 == spectrum.sizes["k"]


def test_models_lists_the_architectures(capsys):
    assert run_app(["models", "--json"]) == 0
    models = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
    assert models["paper"]["parameters"] == 48_690_307
    assert models["paper"]["trainable"] == 48_680_067
    assert (models["paper"]["input_cells"], models["paper"]["output_cells"]) == (32, 20)
    for model in models.values():
        # A baseline is its flow alone: there is no network to see or to reckon.
        learns = model["parameters"] > 0
        assert (model["halo"] > 0) == learns
        assert (model["flops_per_output_cell"] > 1000) == learns
    assert {name for name, model in models.items() if model["ships"]} == {
        "residual-medium",
        "residual-small",
        "wiener",
    }
    assert [name for name, model in models.items() if model["default"]] == ["residual-small"]
    assert run_app(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    marks = {words[0]: words[1] for words in map(str.split, lines[1 : len(models) + 1])}
    assert (marks["residual-small"], marks["wiener"]) == ("default", "yes")
    assert max(map(len, lines)) <= 80


@each(
    ("name", "kind", "lines"),
    [
        ("particles.zarr", "particles", ["particles: 110,592", "made by: simulate"]),
        ("fields.zarr", "fields", ["kind: fields, complete", "grid: 48^3 cells of 2 Mpc/h"]),
        ("model", "model", ["trained on: 1 box but for a slab, 6 steps: {chain}/fields.zarr"]),
    ],
)
def test_info_names_what_it_is_shown(chain, capsys, name, kind, lines):
    place = chain / name
    assert run_app(["info", str(place), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["kind"] == kind
    assert content["redshift"] == 0.0
    assert content["provenance"]["stage"]
    files = (path for path in place.rglob("*") if path.is_file())
    assert content["bytes"] == sum(path.stat().st_size for path in files)
    if kind == "model":
        with (place / "history.csv").open() as file:
            rms = float(list(csv.DictReader(file))[-1]["validation_rms"])
        assert content["validation"] == {"step": 6, "rms": rms}
        lines = [*lines, f"validation residual: {rms:.1f} km/s rms at step 6"]
    assert run_app(["info", str(place)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) < 24
    for line in lines:
        assert f"  {line.format(chain=chain)}" in said


@each(
    "command",
    [
        ["simulate", "OUT"],
        ["paint", "particles.zarr", "OUT"],
        ["train", "fields.zarr", "--out", "OUT"],
        ["infer", "fields.zarr", "OUT", "--model", "model"],
        ["evaluate", "fields.zarr", "prediction.zarr", "--out", "OUT"],
        ["spectra", "fields.zarr", "--field=density", "--out", "OUT"],
        ["demo", "--out", "OUT"],
    ],
)
def test_dry_run_plans_and_writes_nothing(chain, tmp_path, cosmoflow, command):
    out = tmp_path / "out"
    arguments = [str(out) if word == "OUT" else word for word in command]
    arguments = [str(chain / w) if (chain / w).exists() else w for w in arguments]
    code, events, _ = cosmoflow(*arguments, "--dry-run", "--json", *SMALL)
    assert code == 0
    assert events[-1]["tasks"] > 0
    assert events[-1]["worker_memory"] > 0
    assert not out.exists()


def complete(*words):
    """Return what the shell offers for the last word."""
    given = {
        "_COSMOFLOW_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    command = Path(sys.executable).with_name("cosmoflow")
    return subprocess.check_output(command, env=os.environ | given, text=True).split()


def test_every_command_has_help_with_examples(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    sections = {"convert": "snapshot", "info": "snapshot", "import": "cosmology"}
    sections |= {"demo": "train", "plan": "simulate"}
    for function in COMMANDS:
        command = function.__name__.rstrip("_")
        assert run_app([command, "--help"]) == 0
        said = capsys.readouterr().out
        assert f"Example: cosmoflow {command}" in said
        assert not set("{}") & set(said)
        assert max(map(len, said.splitlines())) <= 80
        said = " ".join(said.split())
        if "--set KEY=VALUE" in said:
            example, shown = re.search(
                r"--set KEY=VALUE Any setting, e.g. (\S+); see `cosmoflow settings (\w+)`", said
            ).groups()
            assert load_settings(overrides=[example]) != Settings()
            assert shown == example.partition(".")[0] == sections.get(command, command)
    assert complete("cosmoflow", "tr") == ["train"]
    assert complete("cosmoflow", "train", "--ta") == ["--target"]
    assert complete("cosmoflow", "train", "--target", "m") == ["momentum"]


def test_the_same_seed_gives_the_same_bytes(chain, tmp_path, cosmoflow):
    again = tmp_path / "again.zarr"
    code, _, _ = cosmoflow("simulate", again, "--seed=3", *SMALL)
    assert code == 0
    first = xr.open_zarr(chain / "particles.zarr", consolidated=False)
    second = xr.open_zarr(again, consolidated=False)
    assert first.identical(second)


def test_several_boxes_go_to_a_folder_with_seeds_of_their_own(tmp_path, cosmoflow):
    out = tmp_path / "boxes"
    code, events, _ = cosmoflow("simulate", out, "--count=2", "--method=2lpt", "--json", *SMALL)
    assert code == 0
    stores = [xr.open_zarr(path, consolidated=False) for path in sorted(out.glob("box-*.zarr"))]
    assert len(stores) == events[-1]["boxes"] == 2
    assert not np.array_equal(stores[0]["position"], stores[1]["position"])


@pytest.mark.usefixtures("no_figures")
def test_a_momentum_model_predicts_momentum(
    copy_of, momentum_model, tmp_path, cosmoflow, capsys, monkeypatch
):
    copy, out = copy_of("fields.zarr"), tmp_path / "momentum.zarr"
    assert cosmoflow("infer", copy, out, "--model", momentum_model, *SMALL)[0] == 0
    fields = xr.open_zarr(copy, consolidated=False)
    momentum = xr.open_zarr(out, consolidated=False)["momentum"].values
    truth = fields["momentum"].values
    # Barely trained, it is at least as good as its linear baseline to within a factor.
    assert np.corrcoef(momentum.ravel(), truth.ravel())[0, 1] > 0.5
    # Tables fit 80 columns, and no name takes more than two lines.
    monkeypatch.setenv("COLUMNS", "80")
    long = "a-name-of-44-characters-is-longer-than-usual"
    evaluate = ["evaluate", str(copy), f"{long}={out}", "--overwrite", *SMALL]
    report = tmp_path / "report"
    assert run_app([*evaluate, f"--out={report}"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"report: {report}/report.html"
    assert long in "".join(line.split("  ")[0] for line in said.splitlines())
    assert "T(0.2)" not in said
    assert run_app([*evaluate, f"--out={report}", "-v"]) == 0
    tables, _, rest = capsys.readouterr().out.partition("report: ")
    assert f"metrics: {report}/metrics.json" in rest
    for quantity in ("speed", "momentum", "divergence", "theta_p"):
        lines = tables.partition(f"\n{quantity} (")[2].splitlines()
        assert lines[1].split() == [
            "method",
            *(f"{key}({k})" for key in "Tr" for k in (0.2, 0.6, 1)),
        ]
        assert max(map(len, lines)) <= 80


@pytest.mark.usefixtures("no_figures")
def test_the_demo_says_what_it_made_and_goes_on_with_more_steps(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    demo = ["demo", "--out=tour", "--quiet", *SMALL, "--set=train.start=null"]
    assert run_app([*demo, "--train-steps=2"]) == 0
    said = capsys.readouterr().out
    rows = said.splitlines()[2:5]
    assert rows[0].startswith("network that ships")
    assert any(row.startswith("trained here, 2 steps") for row in rows)
    made = re.findall(r"^  (tour/\S+): ", said, re.MULTILINE)
    assert made == [
        f"tour/{name}"
        for name in (
            "test-fields.zarr", "prediction-residual-small.zarr", "model-2-steps",
            "report/report.html",
        )
    ]  # fmt: skip
    assert all((tmp_path / place).exists() for place in made)
    proposed = [line.split() for line in said.splitlines() if line.startswith("  cosmoflow ")]
    assert [words[1] for words in proposed] == ["info", "view", "infer", "demo"]
    for words in proposed[:2]:
        assert run_app(words[1:]) == 0
    assert "prediction-residual-small" in capsys.readouterr().out
    # A longer training keeps the rest, and the report is of its network.
    chunks = [path for path in tmp_path.glob("tour/*.zarr/density/c/**/*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in chunks}
    assert before
    assert run_app([*demo, "--resume", "--train-steps=3", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "trained here, 3 steps" in summary["residual"]
    assert summary["training_steps"] == 3
