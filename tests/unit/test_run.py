"""What a stage is given."""

from cosmoflow.config import load_settings
from cosmoflow.engine import Session
from cosmoflow.engine.serial import SerialEngine
from cosmoflow.stages.run import Run


def test_a_run_has_the_engine_of_its_settings_and_keeps_and_hears_its_session():
    run = Run(load_settings(overrides=("engine.choice=serial",)))
    # So much work would go to Ray otherwise.
    assert isinstance(run.session.engine(1e9, memory=1 << 60), SerialEngine)
    session = Session()
    assert Run(session=session).session is session
    heard = []
    Run(listener=heard.append).session.notify("a node joins")
    assert [message.text for message in heard] == ["a node joins"]
