"""The shipped model beside others: after a training, and in a comparison."""

import shlex
import shutil

import numpy as np
import pytest
import xarray as xr
import zarr

from cosmoflow.cli.app import run_app
from cosmoflow.cli.verdicts import judge_training
from cosmoflow.model.registry import find_architecture, geometry_of
from cosmoflow.model.samples import validation_blocks
from cosmoflow.stages.infer import find_shipped
from cosmoflow.stages.inspect import inspect, read_comparison
from cosmoflow.storage.fields import FieldStore
from tests.e2e.conftest import SMALL

pytestmark = pytest.mark.e2e

CROP, GRID = 8, 48


def velocity_of(store, name="velocity"):
    return xr.open_zarr(store, consolidated=False)[name].values.astype("f8")


def residual(found, true, blocks):
    """Return the 3-D rms residual over blocks."""
    cells = [tuple(map(slice, block.origin, np.add(block.origin, block.shape))) for block in blocks]
    parts = [((found - true)[(..., *part)] ** 2).sum(axis=0).ravel() for part in cells]
    return np.sqrt(np.concatenate(parts).mean())


def test_models_are_compared_with_what_ships(
    chain, tmp_path, monkeypatch, capsys, cosmoflow, no_figures
):
    monkeypatch.chdir(tmp_path)
    for name in ("first.zarr", "second box.zarr"):
        shutil.copytree(chain / "fields.zarr", tmp_path / name)
    # The names that a training suggests are taken.
    (tmp_path / "second box-velocity.zarr").write_text("a file of another kind")
    monkeypatch.setattr("cosmoflow.model.fitting.NOTE_SECONDS", 0.0)
    train = ["train", "first.zarr", "second box.zarr", *SMALL]
    code, events, err = cosmoflow(*train, "--out=own", "--json")
    assert code == 0, err
    assert {one["done"] for one in events if one["event"] == "advanced"} >= set(range(1, 7))
    found, commands = events[-1]["validation"], events[-1]["next"]
    assert (found["blocks"], found["cells"], found["skipped"]) == (8, 8 * CROP**3, {})
    assert found["learned_from"], "the second box is a copy of the first"

    # Against the whole box, predicted by the command.
    geometry = geometry_of(find_architecture("residual-tiny").build())
    blocks = validation_blocks(GRID, 0, GRID, CROP, geometry, 8)
    assert len(blocks) == 8
    true = velocity_of("second box.zarr")
    filtered = velocity_of("second box.zarr", "wiener_velocity")
    assert run_app(["infer", "second box.zarr", "own.zarr", "--model=own", "-q", *SMALL]) == 0
    assert run_app(["infer", "first.zarr", "shipped.zarr", "-q", *SMALL]) == 0
    for name, velocity in (
        ("this model", velocity_of("own.zarr")),
        ("its Wiener filter", filtered),
        ("residual-small (ships)", velocity_of("shipped.zarr")),
    ):
        assert found["rms"][name] == pytest.approx(residual(velocity, true, blocks), rel=2e-3), name

    # What is suggested works as it is, and the last command goes on from the better model.
    assert commands[0].startswith("cosmoflow infer 'second box.zarr' 'second box-velocity-2.zarr'")
    assert commands[2].endswith("--from residual-small --out own-tuned")
    small = [option for option in SMALL if "train.model" not in option]
    for command in commands:
        assert run_app([*shlex.split(command)[1:], "-q", *small]) == 0
        said = capsys.readouterr().out
    # That model is compared with its start, here what ships, and is no worse than it.
    tuned = read_comparison("own-tuned")
    assert tuned["start"] == "residual-small (ships)"
    assert tuned["rms"]["this model"] <= 1.01 * tuned["rms"][tuned["start"]]
    verdict = inspect("own-tuned")
    assert judge_training(tuned, verdict["validation"], verdict["provenance"]) in said
    assert (tmp_path / "own-tuned" / "history.csv").read_text().splitlines()[1].startswith("0.0,,")
    assert "-velocity-3.zarr' --model ./own-tuned\n" in said
    assert "cells of second box.zarr" in said
    assert "which the model did not learn from" not in said, "it is a copy"

    # A comparison has the shipped model too, and leaves the flow of the truth as it was.
    assert run_app(["infer", "second box.zarr", "x.zarr", "--model=own", "-q", *SMALL]) == 0
    digest = zarr.open_array("second box.zarr/wiener_velocity").attrs["filter"]
    code, events, _ = cosmoflow("evaluate", "second box.zarr", "own.zarr", "--out=report", "--json")
    assert code == 0
    rms = residual(velocity_of("shipped.zarr"), true, [type(blocks[0])((0, 0, 0), (GRID,) * 3)])
    assert events[-1]["residual"]["residual-small (ships)"]["rms"] == pytest.approx(rms, rel=1e-3)
    assert zarr.open_array("second box.zarr/wiener_velocity").attrs["filter"] == digest
    assert run_app(["infer", "second box.zarr", "y.zarr", "--model=own-tuned", "-q", *small]) == 0
    for store, setting, reason in (
        ("y.zarr", 256, "residual-small is predicted in memory"),
        ("own.zarr", 0, "switched off"),
        ("own.zarr", GRID - 1, f"the box has {GRID}^3 cells"),
        ("name=shipped.zarr", 256, "name is already among the predictions"),
    ):
        options = [f"--set=evaluate.shipped_grid={setting}", "--overwrite"]
        evaluate = ["evaluate", "second box.zarr", store, "--out=report", "--json", *options]
        code, events, _ = cosmoflow(*evaluate, "--dry-run")
        assert reason in events[-1]["details"]["shipped"]
        compared = reason.endswith("in memory")
        assert ("residual-small (ships)" in events[-1]["details"]["methods"]) == compared
    code, events, _ = cosmoflow(*evaluate)
    assert not events[-1]["shipped"]["compared"]

    # A box outside of the range of its training does not fit.
    zarr.open_group("first.zarr").attrs["redshift"] = 3.0
    shipped = find_shipped(FieldStore("first.zarr"))
    assert shipped.model is None
    assert shipped.reason.startswith("redshift of the box is 3, and residual-small was trained on")
