"""A chain of small outputs, made once by the real commands, for tests to read and to copy."""

import json
import shutil
from pathlib import Path

import pytest

from cosmoflow.cli.app import run_app

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
    """Particles, fields, a model and a prediction of a box of 48^3 cells. Do not write to it."""
    folder = tmp_path_factory.mktemp("chain")
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
    return folder


@pytest.fixture(scope="session")
def momentum_model(chain, tmp_path_factory):
    """A model of the chain's momentum, barely trained."""
    out = tmp_path_factory.mktemp("momentum") / "model"
    arguments = ["train", str(chain / "fields.zarr"), "--out", str(out), "--target=momentum"]
    assert run_app([*arguments, "--quiet", *SMALL, "--set=train.steps=2"]) == 0
    return out


@pytest.fixture
def copy_of(chain, tmp_path):
    """Return a function that copies an output of the chain, to be damaged."""

    def copy(name):
        return Path(shutil.copytree(chain / name, tmp_path / name))

    return copy
