"""What a training shows while it runs, from the notes of its workers."""

import pytest

from cosmoflow.config.networks import TrainConfig
from cosmoflow.events import Message, StageAdvanced, StageStarted
from cosmoflow.model.training_job import FINISHED
from cosmoflow.stages.train.progress import ERROR_SIZES, GAIN, TrainingProgress, WorkNotes

CONFIG = TrainConfig(steps=4, error_steps=3, measure_gain=1)
LAST = {"step": 4.0, "loss": 0.5, "validation_rms": 30.0}


@pytest.fixture
def events():
    return []


@pytest.fixture
def show(events, serial_run):
    return TrainingProgress("model", CONFIG, 2, serial_run(listener=events.append))


def advances(events):
    return [(one.stage, one.done) for one in events if isinstance(one, StageAdvanced)]


def test_work_is_shown_from_its_begin_and_late_reports_do_not_disturb(show, events, monkeypatch):
    monkeypatch.setattr("cosmoflow.stages.train.progress.NOTE_SECONDS", 0.0)
    show({"step": 2.0, "loss": 0.7})
    show({**LAST, FINISHED: 1.0})
    errors = WorkNotes(ERROR_SIZES, 3, show)
    errors(1)
    # On Ray the controller may send the last validation later than the worker its notes.
    show(LAST)
    errors(3)
    # Workers that died begin their work again.
    again = WorkNotes(ERROR_SIZES, 3, show)
    again(3)
    WorkNotes(GAIN, 2, show)(2)
    assert advances(events) == [
        *(("train", step) for step in (2, 4)),
        *((ERROR_SIZES, step) for step in (0, 1, 3, 0, 3)),
        *((GAIN, box) for box in (0, 2)),
    ]
    assert [one for one in events if isinstance(one, StageStarted)] == [
        StageStarted("train", 4, "steps"),
        StageStarted(ERROR_SIZES, 3, "steps"),
        StageStarted(GAIN, 2, "boxes"),
    ]
    (said,) = (one.text for one in events if isinstance(one, Message))
    assert said.endswith(
        "3 steps that teach the size of its errors, comparing it with other models, measuring its "
        "gain"
    )


def test_quick_work_is_noted_at_its_begin_and_end(show, events, monkeypatch):
    monkeypatch.setattr("cosmoflow.stages.train.progress.NOTE_SECONDS", 1e6)
    work = WorkNotes(ERROR_SIZES, 300, show)
    for done in range(1, 301):
        work(done)
    assert advances(events) == [(ERROR_SIZES, 0), (ERROR_SIZES, 300)]
