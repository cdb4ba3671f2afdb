"""What a stage is given."""

import pytest

from cosmoflow.config import Settings, load_settings
from cosmoflow.config.loading import revise_settings
from cosmoflow.engine import Session
from cosmoflow.engine.serial import SerialEngine
from cosmoflow.errors import ConfigError
from cosmoflow.stages.run import Plan, Run, start_engine
from tests.cases import each
from tests.conftest import refused


def test_a_run_has_the_engine_of_its_settings_and_keeps_and_hears_its_session():
    run = Run(load_settings(overrides=("engine.choice=serial",)))
    # So much work would go to Ray otherwise.
    assert isinstance(run.session.engine(1e9, memory=1 << 60), SerialEngine)
    session = Session()
    assert Run(session=session).session is session
    heard = []
    Run(listener=heard.append).session.notify("a node joins")
    assert [message.text for message in heard] == ["a node joins"]


def test_a_run_that_stays_here_is_else_the_same():
    heard = []
    settings = load_settings(options={"seed": 5, "engine": {"memory": "3GiB"}})
    run = Run(settings, existing="resume", listener=heard.append)
    here = run.here()
    assert isinstance(here.session.engine(1e9, memory=1 << 60), SerialEngine)
    assert (here.settings.seed, here.settings.engine.memory) == (5, 3 << 30)
    assert (here.existing, here.settings.engine.choice) == ("resume", "serial")
    here.session.notify("a node joins")
    assert [message.text for message in heard] == ["a node joins"]
    assert (run.settings.engine.choice, run.session.config.choice) == ("auto", "auto")


@each("engine", [{"choice": "auto"}, {"choice": "ray"}, {"choice": "ray", "address": "auto"}])
def test_too_much_memory_is_refused_before_ray_is_started(engine, monkeypatch):
    def start(*_, **__):
        raise AssertionError("an engine was asked for")

    monkeypatch.setattr(Session, "engine", start)
    plan = Plan("paint", 1, "shard", 1 << 60, 0, 0, 1e9)
    for memory in ("1GiB", None):
        run = Run(revise_settings(Settings(), {"engine": {**engine, "memory": memory}}))
        if memory is None and "address" in engine:
            # Its workers are asked what they have.
            with pytest.raises(AssertionError, match="asked for"):
                start_engine(run, plan, remedy="a smaller shard")
            continue
        refused(
            ConfigError, 2, lambda run=run: start_engine(run, plan, remedy="a smaller shard"),
            "more memory", "1.0 GiB, --memory" if memory else "what a worker", "a smaller shard",
        )  # fmt: skip
