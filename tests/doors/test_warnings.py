"""Warnings reach the caller: through a listener, or through Python's ``warnings``."""

import warnings

import pytest

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
