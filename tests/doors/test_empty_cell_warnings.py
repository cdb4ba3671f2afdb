"""Warnings about cells without mass, from painting to evaluation, and defaults that need none."""

import json
import math
import re

import numpy as np
import pytest

from cosmoflow.cli.app import COMMANDS
from cosmoflow.config import load_settings
from cosmoflow.config.settings import Settings
from cosmoflow.events import Message
from cosmoflow.stages.derive import derive
from cosmoflow.stages.evaluate import evaluate
from cosmoflow.stages.evaluate.report.figures import Figure
from cosmoflow.stages.infer import infer
from cosmoflow.stages.paint import paint, plan_paint
from cosmoflow.stages.spectra import spectra
from cosmoflow.stages.train import train
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.sampling import Sampling
from cosmoflow.storage.urls import open_group_for_writing
from tests.cases import each
from tests.conftest import BOX
from tests.doors.conftest import store_particles


def warnings_of(heard):
    return [e.text for e in heard if isinstance(e, Message) and e.level == "warning"]


# The warnings


@pytest.fixture(scope="module")
def painted(sparse, tmp_path_factory):
    """The sparse particles on 16^3 cells, and what the run warned of."""
    out, heard = str(tmp_path_factory.mktemp("painted") / "fields.zarr"), []
    from cosmoflow.engine import Session
    from cosmoflow.stages.run import Run

    settings = load_settings(options={"paint": {"grid": 16}, "engine": {"choice": "serial"}})
    paint(sparse, out, Run(settings, Session(settings.engine), "error", heard.append))
    return out, warnings_of(heard)


def test_paint_warns_before_and_after_and_its_remedies_help(painted, sparse, serial_run, tmp_path):
    out, (before, after) = painted
    share = FieldStore(out).metadata.sampling.empty_share
    assert before.startswith("0.12 particles a cell: cells may stay empty")
    assert after.startswith(f"{100 * share:.2g} % of the cells hold no mass")
    assert f"about {math.sqrt(share):.0%} of its rms" in after
    assert FieldStore(out).metadata.provenance["notes"] == [before, after]
    grid = int(re.search(r"--grid (\d+)", after)[1])
    assert grid == 4
    heard = []
    run = serial_run(paint={"grid": grid}, listener=heard.append)
    paint(sparse, str(tmp_path / "coarser.zarr"), run)
    assert warnings_of(heard) == []
    # So few particles do not resolve a cell, whatever the fill.
    run = serial_run(paint={"grid": 16, "fill": "nearest"}, listener=heard.append)
    paint(sparse, str(tmp_path / "nearest.zarr"), run)
    (text,) = warnings_of(heard)
    assert "below the mean separation of the particles, 2.0 cells, are not resolved" in text


def test_one_particle_a_cell_and_the_nearest_fill_need_no_warning(sparse, serial_run, tmp_path):
    heard = []
    run = serial_run(paint={"grid": 8, "fill": "nearest"}, listener=heard.append)
    paint(sparse, str(tmp_path / "nearest.zarr"), run)
    assert warnings_of(heard) == []
    run = serial_run(paint={"grid": 8}, listener=heard.append)
    paint(sparse, str(tmp_path / "background.zarr"), run)
    assert "or with --set paint.fill=nearest" in warnings_of(heard)[-1]


def test_a_dry_run_warns_too(sparse, serial_run):
    heard = []
    plan = plan_paint(sparse, serial_run(paint={"grid": 16}, listener=heard.append))
    assert plan.details["particles_per_cell"] == 0.125
    assert len(warnings_of(heard)) == 1
    heard.clear()
    plan_paint(sparse, serial_run(paint={"grid": 5}, listener=heard.append))
    assert warnings_of(heard) == []


def test_paint_without_velocities_does_not_warn(sparse, serial_run, tmp_path):
    heard = []
    options = {"grid": 16, "fields": ("density", "momentum")}
    paint(sparse, str(tmp_path / "f.zarr"), serial_run(paint=options, listener=heard.append))
    assert warnings_of(heard) == []


@each(
    ("field", "warned"),
    [("velocity", True), ("speed", True), ("divergence", True), ("momentum_speed", True),
     ("density", False), ("momentum", False), ("momentum_curl", False)],
)  # fmt: skip
def test_spectra_of_what_rests_on_empty_cells_warn(field, warned, painted, serial_run, tmp_path):
    heard, out = [], str(tmp_path / "power.zarr")
    spectra(painted[0], out, field, serial_run(listener=heard.append))
    texts = warnings_of(heard)
    assert len(texts) == warned
    notes = open_group_for_writing(out).attrs["provenance"]["notes"]
    assert [note for note in notes if not note.startswith("fields: ")] == texts
    assert f"fields: {painted[1][1]}" in notes
    if warned:
        assert texts[0] == f"{painted[0]}: {painted[1][1]}"


def test_train_warns_once_for_all_its_stores(painted, serial_run, tmp_path):
    heard = []
    run = serial_run(train={"model": "wiener", "crop": 4}, listener=heard.append)
    model = train([painted[0], painted[0]], str(tmp_path / "model"), run)
    same, empty = warnings_of(heard)
    assert "is of the same box" in same
    assert empty == f"{painted[0]} and 1 more: {painted[1][1]}"
    assert sorted(model.spec.provenance["notes"]) == sorted([same, empty])


def test_a_store_that_does_not_tell_is_counted(fields_store, serial_run, tmp_path):
    made, heard = fields_store(8, shard=8, chunk=8), []
    group = open_group_for_writing(made.url)
    density = made.density.copy()
    density[:2, :2, :2] = 0.0
    group["density"][:] = density
    spectra(made.url, str(tmp_path / "a.zarr"), "speed", serial_run(listener=heard.append))
    assert warnings_of(heard)[0].startswith(f"{made.url}: 1.6 % of the cells hold no mass, and")
    # Made by somebody else, it does not say what the velocity is there.
    group.attrs["provenance"] = {}
    heard.clear()
    spectra(made.url, str(tmp_path / "b.zarr"), "speed", serial_run(listener=heard.append))
    assert "does not say how their velocity was made" in warnings_of(heard)[0]


def test_predictions_and_derived_fields_carry_the_sampling_on(painted, serial_run, tmp_path):
    heard, said = [], FieldStore(painted[0]).metadata.sampling
    prediction, flow, again = (str(tmp_path / f"{name}.zarr") for name in "pfa")
    infer(painted[0], prediction, "linear:8", serial_run(listener=heard.append))
    assert FieldStore(prediction).metadata.sampling == Sampling(
        0.125, said.empty_share, "model", equal_masses=True
    )
    spectra(prediction, str(tmp_path / "s.zarr"), "velocity", serial_run(listener=heard.append))
    assert warnings_of(heard) == []
    derive(painted[0], flow, ["divergence"], serial_run(listener=heard.append))
    assert FieldStore(flow).metadata.sampling == said
    assert len(warnings_of(heard)) == 1
    # A velocity made of the momentum has the mean flow, whatever the stored one has.
    open_group_for_writing(painted[0]).attrs["sampling"] = {
        **said.to_attribute(), "fill": "nearest"
    }  # fmt: skip
    heard.clear()
    derive(painted[0], again, ["velocity"], serial_run(listener=heard.append))
    open_group_for_writing(painted[0]).attrs["sampling"] = said.to_attribute()
    assert FieldStore(again).metadata.sampling.fill == "background"
    (text,) = warnings_of(heard)
    assert text.endswith(f"use the velocity that {painted[0]} holds")


def draw_nothing(comparison, folder):
    """Stand in for the figures of a report, which take longer than all else."""
    path = folder / "nothing.png"
    path.write_bytes(bytes(24))
    topics = ("residual", "slice", "momentum", "joint", "spectra", "where", "full")
    return [Figure(topic, topic, "", "", path) for topic in topics]


def test_evaluate_warns_and_measures_where_there_is_mass(
    painted, serial_run, tmp_path, monkeypatch
):
    heard = []
    monkeypatch.setattr("cosmoflow.stages.evaluate.command.make_figures", draw_nothing)
    prediction, out = str(tmp_path / "prediction.zarr"), tmp_path / "report"
    infer(painted[0], prediction, "linear:8", serial_run())
    run = serial_run(evaluate={"subbox": 32.0}, listener=heard.append)
    comparison = evaluate(painted[0], f"guess={prediction}", str(out), run)
    density, truth = FieldStore(painted[0]).read("density"), FieldStore(painted[0]).read("velocity")
    squares = ((FieldStore(prediction).read("velocity") - truth).astype(float) ** 2).sum(axis=0)
    found = comparison.metrics["residual"]["guess"]
    assert comparison.metrics["truth"]["empty_share"] == (density == 0.0).mean()
    assert found["rms_with_mass"] == pytest.approx(math.sqrt(squares[density > 0.0].mean()), 1e-6)
    assert found["rms"] == pytest.approx(math.sqrt(squares.mean()), 1e-6)
    assert warnings_of(heard) == [f"{painted[0]}: {painted[1][1]}"]
    assert json.loads((out / "cosmoflow.json").read_text())["provenance"]["notes"]
    page = (out / "report.html").read_text()
    assert '<p class="caution"><b>Empty cells</b>' in page
    assert painted[1][1][1:] in page
    assert "where there is mass" in page


def test_cells_that_the_nearest_fill_does_not_reach_are_counted(serial_run, tmp_path):
    """All particles lie in one corner: most cells are more than four mean separations away."""
    rng = np.random.default_rng(2)
    position = rng.uniform(0.0, BOX / 16, (512, 3)).astype(np.float32)
    velocity = np.full((512, 3), 100.0, np.float32)
    velocity[::2] = 300.0
    url, out, heard = str(tmp_path / "p.zarr"), str(tmp_path / "f.zarr"), []
    store_particles(url, position, velocity)
    run = serial_run(paint={"grid": 16, "fill": "nearest"}, listener=heard.append)
    paint(url, out, run)
    found = FieldStore(out).metadata.sampling
    cells = FieldStore(out).read("velocity")
    # Nearest particles move at 100 or 300 km/s, the mean flow at 200.
    kept = (cells[0] == 200.0) & (FieldStore(out).read("density") == 0.0)
    assert found.unfilled_share == kept.mean() > 0.3
    assert "keep the mean flow" in warnings_of(heard)[-1]


# The defaults


def test_the_defaults_and_the_examples_have_eight_particles_a_cell():
    default = Settings()
    assert default.simulate.particles**3 == 8 * default.paint.grid**3
    # The models that ship were made for cells of 2 Mpc/h.
    assert default.simulate.box_size / default.paint.grid == 2.0
    examples = " ".join(COMMANDS.values())
    particles, box, grid = (
        int(re.search(rf"--{name} (\d+)", examples)[1]) for name in ("particles", "box", "grid")
    )
    assert particles**3 == 8 * grid**3
    assert box / grid == 2.0
