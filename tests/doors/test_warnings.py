"""Warnings reach the caller: through a listener, or through Python's ``warnings``."""

import warnings

import pytest

from cosmoflow.cli.console import Reporter
from cosmoflow.events import CosmoflowWarning, Message, StageStarted, caution, warn_only
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
