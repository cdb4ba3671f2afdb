"""Warnings reach the caller: through a listener, or through Python's ``warnings``."""

import io
import warnings
from types import SimpleNamespace

import pytest
from rich.console import Console

from cosmoflow.cli.console import Reporter
from cosmoflow.events import (
    CosmoflowWarning,
    Message,
    StageAdvanced,
    StageStarted,
    caution,
    warn_only,
)
from cosmoflow.stages.run import Run
from tests.cases import each


def test_a_run_without_a_listener_warns():
    with pytest.warns(CosmoflowWarning, match="too few particles") as caught:
        caution(Run().listener, "too few particles")
    assert caught[0].filename == __file__


def test_only_warnings_are_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_only(Message("half done"))
        warn_only(StageStarted("paint", 3, "shards"))


def test_a_listener_takes_the_place_of_warnings():
    heard = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        caution(Run(listener=heard.append).listener, "too few particles")
    assert heard == [Message("too few particles", "warning")]


@each("verbosity", [-1, 0])
def test_a_command_prints_warnings_even_when_it_is_quiet(capsys, verbosity):
    Reporter(as_json=False, verbosity=verbosity).listen(Message("too few particles", "warning"))
    assert capsys.readouterr().err == "warning: too few particles\n"


@each(("verbosity", "shown"), [(0, ["4/4  slabs"]), (1, ["1/4  read", "3/4  slabs", "4/4  slabs"])])
def test_steps_of_a_stage_are_said_once(capsys, verbosity, shown):
    reporter = Reporter(as_json=False, verbosity=verbosity)
    reporter.listen(StageStarted("spectra", 4, "tasks"))
    for done, note in enumerate(("read", "read", "slabs", "slabs"), 1):
        reporter.listen(StageAdvanced("spectra", done, 4, note))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["spectra: 4 tasks", *(f"spectra: {line}" for line in shown)]


@each(
    ("seconds", "total", "left"),
    [
        (5, 2000, ", 85 s left"),
        (10, 2000, ", 3 min left"),
        (400, 2000, ", 1.9 h left"),
        (9, 300, ""),
    ],
)
def test_a_stage_tells_what_it_measures_and_the_time_left(
    capsys, monkeypatch, seconds, total, left
):
    """Steps before the first event are those of an earlier run: they took no time of this one."""
    clock = SimpleNamespace(now=100.0)
    time = SimpleNamespace(monotonic=lambda: clock.now)
    monkeypatch.setattr("cosmoflow.cli.console.time", time)
    monkeypatch.setattr("cosmoflow.cli.console.SPARSE_SECONDS", 1.0)
    lines, bars = (Reporter(as_json=False, verbosity=0) for _ in range(2))
    bars.stderr = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=80)
    said = "loss 0.412, residual 34.5 km/s at step 300"
    for reporter in (lines, bars):
        for event in (
            StageStarted("train", total, "steps"),
            StageAdvanced("train", 200, total),
            StageAdvanced("train", 300, total, said.partition(", ")[2], {"loss": 0.4123}),
        ):
            clock.now += seconds
            reporter.listen(event)
        reporter.close()
    shown = capsys.readouterr().err.splitlines()
    assert shown[1:] == [f"train: 200/{total}", f"train: 300/{total}  {said}{left}"]
    # On a terminal of 80 columns nothing is cut off.
    drawn = bars.stderr.file.getvalue()
    assert said in drawn
    assert (f" {left.removeprefix(', ')} " if left else " taken ") in drawn
