"""Predictions of other boxes, and densities painted unlike those that models were trained on."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
import zarr

import cosmoflow
from cosmoflow.config import CosmologyConfig, load_settings
from cosmoflow.engine import Session
from cosmoflow.errors import DataError
from cosmoflow.events import Message, ignore, noting
from cosmoflow.stages.evaluate import plan_evaluate
from cosmoflow.stages.evaluate.report import page
from cosmoflow.stages.inputs.lineage import relate
from cosmoflow.stages.inputs.paintings import check_painting
from cosmoflow.stages.run import Run
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.metadata import plain_attributes
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.particles import create_particles, write_particles
from cosmoflow.storage.urls import open_group_for_writing
from tests.cases import each
from tests.conftest import displaced_lattice, make_metadata, refused, rows_of

GRID, BOX = 16, 64.0


def make_run(listener=ignore, **overrides):
    settings = load_settings(options={**overrides, "engine": {"choice": "serial"}})
    return Run(settings, Session(settings.engine), "error", listener)


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """Return a function that paints a box of a seed, once a seed and set of options."""
    folder = tmp_path_factory.mktemp("painted")

    def paint(seed=0, **options):
        particles = str(folder / f"particles-{seed}.zarr")
        if not Path(particles).exists():
            position, velocity = displaced_lattice(32, seed=seed)
            metadata = make_metadata(BOX, stage="simulate", seed=seed)
            create_particles(particles, len(position), metadata)
            write_particles(particles, rows_of(position, velocity))
            finish_group(open_group_for_writing(particles))
        out = str(folder / f"fields-{seed}-{'-'.join(map(str, options.values()))}.zarr")
        if not Path(out).exists():
            cosmoflow.paint(
                particles, out, make_run(paint={"grid": GRID, "shard": GRID, **options})
            )
        return out

    return paint


@pytest.fixture(scope="module")
def predicted():
    """Return a function that predicts a velocity by linear theory, once for each store."""

    def predict(fields):
        out = fields.replace("fields", "predicted")
        if not Path(out).exists():
            cosmoflow.infer(fields, out, "linear:8", make_run())
        return out

    return predict


def warnings_of(heard):
    """Return the warnings that are about boxes and paintings."""
    words = ("another box", "different boxes", "redshift space", "was painted by", "mixed")
    texts = [e.text for e in heard if isinstance(e, Message) and e.level == "warning"]
    return [text for text in texts if any(word in text for word in words)]


def infos_of(heard):
    return [e.text for e in heard if isinstance(e, Message) and e.level != "warning"]


def test_a_prediction_of_another_box_is_refused(painted, predicted, tmp_path):
    mine, other = painted(0), painted(1)
    prediction = predicted(other)
    report = tmp_path / "report"
    run = make_run(evaluate={"subbox": 32.0})
    refused(
        DataError, 3, lambda: cosmoflow.evaluate(mine, prediction, str(report), run),
        "another box", other, FieldStore(other).digest, mine, FieldStore(mine).digest,
        "evaluate.force=true",
    )  # fmt: skip
    assert not report.exists()
    # Every prediction is checked, and so are plans.
    good = predicted(mine)
    refused(DataError, 3, lambda: plan_evaluate(mine, [good, f"b={prediction}"], run), "another")


def test_other_paintings_and_derived_fields_are_of_the_same_box(painted, predicted, tmp_path):
    prediction = predicted(painted(0))
    derived = str(tmp_path / "derived.zarr")
    cosmoflow.derive(painted(0), derived, ["divergence"], make_run())
    for truth in (painted(0), painted(0, scheme="tsc"), derived):
        assert relate(FieldStore(truth), FieldStore(prediction)) == "same"
    derived = str(tmp_path / "smoothed.zarr")
    run = make_run(derive={"smoothing": 8.0})
    cosmoflow.derive(prediction, derived, ["smoothed_velocity"], run)
    assert relate(FieldStore(painted(0)), FieldStore(derived)) == "same"
    assert relate(FieldStore(painted(1)), FieldStore(derived)) == "other"
    heard = []
    plan_evaluate(painted(0), prediction, make_run(listener=heard.append))
    assert not warnings_of(heard)
    assert not infos_of(heard)


def test_predictions_of_before_lead_to_their_particles_by_their_input(painted, predicted, tmp_path):
    prediction = str(tmp_path / "prediction.zarr")
    shutil.copytree(predicted(painted(1)), prediction)
    group = zarr.open_group(prediction, mode="r+")
    provenance = dict(group.attrs["provenance"])
    del provenance["lineage"]
    group.attrs["provenance"] = provenance
    truths = (painted(1), painted(1, scheme="ngp"), painted(0))
    found = [relate(FieldStore(truth), FieldStore(prediction)) for truth in truths]
    assert found == ["same", "same", "other"]
    group.attrs["provenance"] = provenance | {"sources": {}}
    assert relate(FieldStore(truths[0]), FieldStore(prediction)) == "same"
    assert relate(FieldStore(truths[2]), FieldStore(prediction)) == "unknown"


def foreign(url, velocity):
    """Write a prediction as docs/stores.md lets other networks do it, with no provenance."""
    centres = (np.arange(GRID) + 0.5) * BOX / GRID
    xr.Dataset(
        {"velocity": (("component", "x", "y", "z"), velocity.astype(np.float32))},
        {axis: (axis, centres) for axis in "xyz"},
        {"format": "cosmoflow/fields", "format_version": 1, "box_size": BOX, "redshift": 0.0,
         "cosmology": CosmologyConfig().model_dump()},
    ).to_zarr(url, zarr_format=3, consolidated=False)  # fmt: skip
    return url


def test_what_is_forced_or_cannot_be_checked_is_said_and_kept(
    painted, predicted, tmp_path, monkeypatch
):
    # Drawing takes most of the time of a report, and has nothing to do with it.
    monkeypatch.setattr("cosmoflow.stages.evaluate.command.make_figures", lambda *_: [])
    heads = []

    def write_head(comparison, figures, context, folder):
        # All that comes before the first figure.
        heads.append(page.render(comparison, figures, context).partition("<section")[0])

    monkeypatch.setattr("cosmoflow.stages.evaluate.command.write_report", write_head)
    mine, other = (FieldStore(painted(seed)).read("velocity") for seed in (0, 1))
    rng = np.random.default_rng(5)
    good = foreign(str(tmp_path / "good.zarr"), mine + rng.normal(0.0, 30.0, mine.shape))
    bad = foreign(str(tmp_path / "bad.zarr"), other)
    heard = []
    run = make_run(heard.append, evaluate={"subbox": 32.0, "force": True, "smoothing": [8.0]})
    forced = f"forced={predicted(painted(1))}"
    cosmoflow.evaluate(painted(0), [good, bad, forced], str(tmp_path / "report"), run)
    assert sum("could not be checked" in text for text in infos_of(heard)) == 2
    texts = warnings_of(heard)
    assert len(texts) == 2
    assert texts[0].startswith("forced")
    assert "made from another box" in texts[0]
    assert texts[1].startswith("bad")
    assert "different boxes" in texts[1]
    (head,) = heads
    assert head.partition('<ul class="notes"')[2].count("<li>") >= 4
    assert "different boxes" in head
    report = json.loads((tmp_path / "report" / "metrics.json").read_text())
    provenance = report["context"]["provenance"]
    assert set(texts) <= set(provenance["notes"])
    assert sum("could not be checked" in note for note in provenance["notes"]) == 2
    assert "force" not in provenance["config"]["evaluate"]


@each(
    ("options", "words"),
    [
        ({"redshift_space": "z"}, ["redshift space along z", "real space"]),
        ({"scheme": "ngp"}, ["NGP", "CIC"]),
        ({"scheme": "pcs"}, ["PCS", "CIC"]),
    ],
)
def test_densities_unlike_the_models_are_warned_of(painted, tmp_path, options, words, monkeypatch):
    heard = []
    run = make_run(listener=heard.append, infer={"tile": 8})
    # The shipped filter is for cells of 2 Mpc/h, these are of 4.
    monkeypatch.setattr("cosmoflow.stages.models.fits.CELL_SIZE_TOLERANCE", 2.0)
    out = str(tmp_path / "predicted.zarr")
    result = cosmoflow.infer(painted(0, **options), out, "wiener", run)
    (text,) = warnings_of(heard)
    assert all(word in text for word in ["wiener", *words])
    provenance = plain_attributes(result.attrs)["provenance"]
    assert text in provenance["notes"]
    painting = {"scheme": "cic", "redshift_space": None} | options
    assert provenance["painting"] == painting
    assert result.attrs.get("redshift_space") == painting["redshift_space"]


def test_a_density_like_the_models_is_not_warned_of(painted, monkeypatch, tmp_path):
    heard = []
    monkeypatch.setattr("cosmoflow.stages.models.fits.CELL_SIZE_TOLERANCE", 2.0)
    run = make_run(listener=heard.append)
    result = cosmoflow.infer(painted(0), str(tmp_path / "out.zarr"), "wiener", run)
    assert not warnings_of(heard)
    assert "redshift_space" not in result.attrs


def test_redshift_space_is_known_of_all_that_follows(painted, predicted, tmp_path):
    fields = painted(0, redshift_space="x")
    heard = []
    prediction = str(tmp_path / "predicted.zarr")
    cosmoflow.infer(fields, prediction, "linear:8", make_run(listener=heard.append))
    assert any("linear theory is of real space" in text for text in warnings_of(heard))
    derived = str(tmp_path / "derived.zarr")
    result = cosmoflow.derive(prediction, derived, ["divergence"], make_run())
    assert result.attrs["redshift_space"] == "x"
    spectrum = cosmoflow.spectra(fields, str(tmp_path / "p.nc"), "density", make_run())
    assert spectrum.attrs["redshift_space"] == "x"
    heard.clear()
    cosmoflow.spectra(
        painted(0), str(tmp_path / "cross.nc"), "density", make_run(heard.append),
        cross_fields=painted(1),
    )  # fmt: skip
    assert "different particles" in heard[0].text
    real = cosmoflow.spectra(painted(0), str(tmp_path / "q.nc"), "density", make_run())
    assert "redshift_space" not in real.attrs
    heard.clear()
    plan_evaluate(fields, prediction, make_run(listener=heard.append))
    (text,) = warnings_of(heard)
    assert "the truth" in text
    assert "redshift space along x" in text
    heard.clear()
    plan_evaluate(painted(0), prediction, make_run(listener=heard.append))
    (text,) = warnings_of(heard)
    assert "redshift space along x" in text
    assert "the truth in real space" in text


def test_training_on_mixed_paintings_is_warned_of(painted, tmp_path):
    heard = []
    run = make_run(train={"model": "linear:8", "crop": 8}, listener=heard.append)
    urls = [painted(0), painted(1, scheme="ngp"), painted(1, redshift_space="y")]
    model = cosmoflow.train(urls, str(tmp_path / "model"), run)
    texts = warnings_of(heard)
    assert len(texts) == 2
    assert "NGP" in texts[0]
    assert "CIC" in texts[0]
    assert "redshift space along y" in texts[1]
    assert model.spec.provenance["painting"] == {"scheme": "cic", "redshift_space": None}
    assert set(texts) <= set(model.spec.provenance["notes"])


def test_models_know_how_their_own_training_fields_were_painted(painted):
    """A model trained on NGP in redshift space is at home there, and not on CIC in real space."""
    own = {"painting": {"scheme": "ngp", "redshift_space": "z"}}
    model = SimpleNamespace(spec=SimpleNamespace(provenance=own))
    heard = []
    for options in ({"scheme": "ngp", "redshift_space": "z"}, {}):
        store = FieldStore(painted(0, **options))
        check_painting(store, ["mine"], [model], heard.append)
    texts = warnings_of(heard)
    assert len(texts) == 2
    assert "painted in real space" in texts[0]
    assert "was trained in redshift space along z" in texts[0]
    assert "painted by CIC, and mine was trained on NGP" in texts[1]


def test_a_listener_notes_warnings_and_passes_all_on():
    heard, notes = [], []
    listener = noting(heard.append, notes)
    listener(Message("half done"))
    listener(Message("too few", "warning"))
    assert notes == ["too few"]
    assert len(heard) == 2


def test_the_boxes_of_these_tests_do_differ():
    velocities = [displaced_lattice(16, seed=seed)[1] for seed in (0, 1)]
    assert abs(np.corrcoef(*(v.ravel() for v in velocities))[0, 1]) < 0.3
