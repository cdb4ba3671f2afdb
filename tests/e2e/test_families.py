"""One model for boxes of different cells: training, prediction, fine-tuning, what is refused."""

from pathlib import PurePosixPath

import numpy as np
import pytest

from cosmoflow.cli.cards import make_card
from cosmoflow.cli.training import suggest_next
from cosmoflow.cli.verdicts import judge_training
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.events import DETAIL, Message, StageAdvanced, StageStarted
from cosmoflow.model.family import ModelFamily
from cosmoflow.stages.infer import infer
from cosmoflow.stages.inspect import inspect, read_comparison
from cosmoflow.stages.models import describe_model, load_model
from cosmoflow.stages.train import train
from tests.conftest import narrow_networks

OPTIONS = {
    "model": "residual-tiny", "steps": 3, "batch": 2, "crop": 8, "precision": "float32",
    "validate_every": 2, "error_steps": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def narrow():
    with narrow_networks():
        yield


@pytest.fixture
def boxes(fields_store):
    """Three boxes whose cells have two sizes."""
    return [
        fields_store(16, shard=16, cell=cell, seed=seed).url
        for seed, cell in enumerate((2.0, 1.5, 2.0))
    ]


@pytest.fixture
def events():
    """Events of the training of the family."""
    return []


@pytest.fixture
def family(boxes, serial_run, tmp_path, events):
    """A family of models trained on the boxes, and its folder."""
    url = str(tmp_path / "family")
    return train(boxes, url, serial_run(train=OPTIONS, listener=events.append)), url


def test_the_work_before_and_after_the_steps_is_shown(monkeypatch, events, boxes, request):
    monkeypatch.setattr("cosmoflow.stages.train.progress.NOTE_SECONDS", 0.0)
    request.getfixturevalue("family")
    flows = [one for one in events if isinstance(one, StageAdvanced) and one.stage == "flows"]
    assert [(one.done, one.note) for one in flows] == [*enumerate(boxes, 1)]
    said = [one for one in events if isinstance(one, Message) and "velocity of" in one.text]
    assert [one.level for one in said] == [DETAIL] * len(boxes)
    work = ("error sizes", "comparison", "gain")
    begun = [event for event in events if isinstance(event, StageStarted) and event.stage in work]
    # The new model, its filter and the one that ships are compared.
    assert begun == [
        StageStarted("error sizes", 2, "steps"),
        StageStarted("comparison", 3, "models"),
        StageStarted("gain", 1, "boxes"),
    ]
    done = [event for event in events if isinstance(event, StageAdvanced) and event.stage in work]
    assert [(one.stage, one.done) for one in done] == [
        *(("error sizes", step) for step in (0, 1, 2)),
        *(("comparison", model) for model in (0, 1, 2, 3)),
        *(("gain", box) for box in (0, 1)),
    ]


def test_boxes_that_differ_make_one_model_that_fits_all_of_them(
    boxes, family, serial_run, tmp_path
):
    trained, url = family
    assert isinstance(trained, ModelFamily)
    card = describe_model(url)
    assert (card["cell_size"], card["redshift"]) == ([1.5, 2.0], [0.0, 0.0])
    for number, box in enumerate(boxes):
        out = str(tmp_path / f"out-{number}")
        found = infer(box, out, url, serial_run(infer={"errors": True}))
        assert np.isfinite(found.velocity.values).all()
        assert (found.velocity_std.values > 0.0).all()
        assert found.velocity_std.attrs["interval_95"] > 1.0
    # It is resumed with the filter that it began with.
    again = train(boxes, url, serial_run(existing="resume", train=OPTIONS))
    assert again.spec == trained.spec


def test_a_box_outside_of_the_range_is_announced_or_refused_until_it_is_learned(
    family, fields_store, serial_run, tmp_path
):
    start, url = family
    far = fields_store(16, shard=16, cell=4.0, seed=9).url
    seen = []
    infer(far, str(tmp_path / "far"), url, serial_run(listener=seen.append))
    said = [str(getattr(event, "text", "")) for event in seen]
    assert any("cell_size of the box is 4" in text and "1.5 to 2" in text for text in said)
    with pytest.raises(DataError, match="outside of the range") as caught:
        infer(far, str(tmp_path / "strict"), url, serial_run(infer={"strict": True}))
    assert "--from" in caught.value.remedy
    # That remedy works.
    tuned = str(tmp_path / "tuned")
    train([far], tuned, serial_run(train={**OPTIONS, "start": url}))
    assert describe_model(tuned)["cell_size"] == [1.5, 4.0]
    infer(far, str(tmp_path / "known"), tuned, serial_run(infer={"strict": True}))
    # A training without a step that is better than the start has learned nothing of it.
    still = {**OPTIONS, "start": url, "learning_rate": 1e-12, "muon_rate": 1e-12}
    model = train([far], str(tmp_path / "still"), serial_run(train=still))
    assert model.spec.family.limits == start.spec.family.limits


def test_a_model_is_tuned_from_another_one(boxes, family, serial_run, tmp_path):
    start, url = family
    options = {**OPTIONS, "start": url, "learning_rate": 1e-9, "muon_rate": 1e-9}
    tuned = train(boxes[:1], str(tmp_path / "tuned"), serial_run(train=options))
    # Its filter, constants and, at a vanishing rate, its weights are those of the start.
    assert tuned.spec.family.weights == start.spec.family.weights
    # Its gain is not, and one box leaves none to measure another one in.
    assert start.spec.family.gain is not None
    assert tuned.spec.family.gain is None
    for name, value in start.network.state_dict().items():
        if "errors." not in name:
            np.testing.assert_allclose(tuned.network.state_dict()[name], value, atol=1e-5)
    compared = read_comparison(str(tmp_path / "tuned"))
    assert compared["start"] == f"its start ({PurePosixPath(url).name})"
    assert compared["rms"][compared["start"]] == pytest.approx(compared["rms"]["this model"])
    assert make_card(inspect(str(tmp_path / "tuned")))["started from"] == url
    # A filter cannot be tuned: it is copied, or a family fits a new one.
    made, settings = str(tmp_path / "filter"), {"model": "wiener", "crop": 8}
    train(boxes[:1], made, serial_run(train=settings))
    for few, same in ((boxes[:1], True), (boxes, False)):
        out = f"{made}-{len(few)}"
        train(few, out, serial_run(train={**settings, "start": made}))
        compared = read_comparison(out)
        assert (compared["start"], compared["learns"]) == ("its start (filter)", False)
        assert ("nothing was tuned" in (judge_training(compared, None, None) or "")) is same
        further = suggest_next(boxes, out, "velocity", compared, made)
        assert any(command.endswith(f" --model {made}") for command in further) is not same
        rms = compared["rms"]
        assert (rms.get("its start (filter)") == rms["this model"]) is same
        assert ("new filter" in compared["skipped"].get("its start (filter)", "")) is not same
    unset = {key: OPTIONS[key] for key in ("steps", "batch", "crop", "precision")}
    train(boxes[:1], str(tmp_path / "default"), serial_run(train={**unset, "start": url}))
    said = load_model(str(tmp_path / "default")).spec.provenance["config"]["train"]
    assert (said["model"], said["learning_rate"], said["error_steps"]) == (
        "residual-tiny", 5e-4, 100,
    )  # fmt: skip
    # The model is an input of the training, which may not write over it.
    assert set(load_model(str(tmp_path / "default")).spec.provenance["inputs"]) == {
        "fields 0", "start",
    }  # fmt: skip
    over = serial_run(existing="overwrite", train=options)
    with pytest.raises(ConfigError, match="written over an input"):
        train(boxes[:1], url, over)
    assert isinstance(load_model(url), ModelFamily)
    wrong = serial_run(train={**options, "model": "residual-small"})
    with pytest.raises(ConfigError, match="another model"):
        train(boxes[:1], str(tmp_path / "wrong"), wrong)


def test_models_refuse_what_they_cannot_do(boxes, serial_run, tmp_path):
    with pytest.raises(DataError, match="differ in cell size") as caught:
        train(boxes, str(tmp_path / "paper"), serial_run(train={"model": "paper-narrow"}))
    assert "residual" in caught.value.remedy
    # A network without a head for errors is refused before it is trained.
    headless = serial_run(train={"model": "paper-narrow", "error_steps": 1})
    with pytest.raises(ConfigError, match="only residual networks expect errors"):
        train(boxes[:1], str(tmp_path / "paper"), headless)
    assert not (tmp_path / "paper").exists()
    # So does a model that does not know its errors, if it is asked for them.
    with pytest.raises(ConfigError, match="does not know") as caught:
        infer(boxes[0], str(tmp_path / "out"), "linear", serial_run(infer={"errors": True}))
    assert caught.value.where == "infer.errors"
