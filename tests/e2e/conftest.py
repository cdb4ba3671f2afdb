"""A chain of small outputs, made once by the real commands, for tests to read and to copy."""

import json
import shutil
from contextlib import redirect_stdout
from itertools import count
from pathlib import Path

import pytest

from cosmoflow.cli.app import run_app
from cosmoflow.stages.evaluate import command as stage
from tests.shared import shared_folder, written

SMALL = [
    "--engine=serial",
    "--set=simulate.box_size=96.0",
    "--set=simulate.particles=48",
    "--set=simulate.steps=4",
    "--set=paint.grid=48",
    "--set=paint.shard=24",
    "--set=train.model=residual-tiny",
    "--set=train.steps=6",
    "--set=train.crop=8",
    "--set=train.validate_every=3",
    "--set=train.checkpoint_every=3",
    "--set=evaluate.subbox=48.0",
]


@pytest.fixture
def cosmoflow(capsys):
    """Return a function that runs one command and gives its exit code, results and messages."""

    def run(*arguments):
        capsys.readouterr()
        code = run_app([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        events = [json.loads(line) for line in out.splitlines() if line.startswith('{"event"')]
        return code, events, err

    return run


@pytest.fixture(scope="session")
def chain(tmp_path_factory):
    """Particles, fields, a model and a prediction of a box of 48^3 cells. Do not write to it.

    Train on a copy of the fields: another process fits a filter that differs in its last bits, and
    keeps its flow in the store, so that predictions of the chain's model would differ from then on.
    """
    folder = shared_folder(tmp_path_factory, "chain", make_chain)
    flow = folder / "fields.zarr" / "wiener_velocity"
    before = written(flow)
    yield folder
    assert written(flow) == before, (
        "a test made the flow of the chain's fields again: give it a copy"
    )


def make_chain(folder):
    """Fill a folder with the chain's outputs."""
    particles, fields, model, prediction = (
        str(folder / name) for name in ("particles.zarr", "fields.zarr", "model", "prediction.zarr")
    )
    for arguments in (
        ["simulate", particles, "--seed=3"],
        ["paint", particles, fields],
        ["train", fields, "--out", model],
        ["infer", fields, prediction, "--model", model],
    ):
        assert run_app([*arguments, "--quiet", *SMALL]) == 0, arguments


@pytest.fixture(scope="session")
def momentum_model(chain, tmp_path_factory):
    """A model of the chain's momentum, barely trained."""

    def train(folder):
        fields = shutil.copytree(chain / "fields.zarr", folder / "fields.zarr")
        arguments = ["train", str(fields), "--out", str(folder / "model")]
        options = ["--target=momentum", "--quiet", *SMALL, "--set=train.steps=2"]
        assert run_app([*arguments, *options]) == 0

    return shared_folder(tmp_path_factory, "momentum", train) / "model"


@pytest.fixture(scope="session")
def report(chain, tmp_path_factory):
    """The report on the chain's prediction, and in `said` what the command wrote to stdout."""

    def evaluate(folder):
        stores = [str(chain / f"{name}.zarr") for name in ("fields", "prediction")]
        with (folder / "said").open("w") as said, redirect_stdout(said):
            assert (
                run_app(["evaluate", *stores, f"--out={folder / 'report'}", "--json", *SMALL]) == 0
            )

    return shared_folder(tmp_path_factory, "report", evaluate) / "report"


@pytest.fixture
def no_figures(monkeypatch):
    """Let reports have no figures, which take most of their time."""
    monkeypatch.setattr(stage, "make_figures", lambda comparison, folder: [])
    monkeypatch.setattr(
        stage, "write_report", lambda *what: Path(what[-1], stage.REPORT).write_text("page")
    )


@pytest.fixture
def copy_of(chain, tmp_path):
    """Return a function that copies an output of the chain, to be damaged."""
    copies = count()

    def copy(name):
        return Path(shutil.copytree(chain / name, tmp_path / f"copy-{next(copies)}" / name))

    return copy
