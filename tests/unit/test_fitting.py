"""The training loop: it learns, it can be cut in two, and it stops when it should."""

import csv
import itertools
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr

from cosmoflow.config.networks import TrainConfig
from cosmoflow.engine.serial import SerialEngine
from cosmoflow.errors import CosmoflowError
from cosmoflow.events import Message, StageAdvanced
from cosmoflow.model.fitting import Fitting, make_loop
from cosmoflow.model.loss import mean_square
from cosmoflow.model.samples import TrainingBox, measure_normalisation, validation_blocks
from cosmoflow.model.sources import (
    MemoryFields,
)
from cosmoflow.model.training_job import FINISHED, TrainingJob
from cosmoflow.model.velocity import ModelSpec, VelocityModel
from cosmoflow.numerics.blocks import Block
from cosmoflow.stages.train import train
from tests.cases import each
from tests.conftest import FLOWS, UNIT_FILTER, narrow_networks, synthetic_fields
from tests.unit.crops import CROP, GEOMETRY, Watched

BASE = {
    "model": "residual-tiny", "batch": 1, "precision": "float32", "steps": 8,
    "validate_every": 3, "checkpoint_every": 4, "prefetch": 1, "muon_rate": 0.01,
}  # fmt: skip


@pytest.fixture(autouse=True)
def narrow():
    """What is tested is the loop, not what it trains."""
    with narrow_networks():
        yield


ALONE = SimpleNamespace(rank=0, world_size=1, total=lambda value: value)
TIMES = ("samples_per_second", "waiting")


class Kept:
    """Checkpoints in memory."""

    def __init__(self, start=None):
        self.saved = {}
        self.start = start

    def save(self, step, content):
        self.saved[step] = content

    def newest(self):
        return self.saved[max(self.saved)] if self.saved else self.start


def make_job(source, *, seed=1, **changes):
    config = TrainConfig(**{**BASE, **changes})
    slab = 8
    box = TrainingBox.slab(source, FLOWS, 0, source.grid - slab)
    blocks = validation_blocks(source.grid, source.grid - slab, slab, CROP, GEOMETRY, 2)
    return TrainingJob(config, seed, CROP, [box], [(box, block) for block in blocks])


def make_spec(source, target="velocity"):
    box = TrainingBox.slab(source, FLOWS, 0, source.grid)
    constants = measure_normalisation([box], target, 0.1)
    return ModelSpec("residual-tiny", target, 2.0, 0.0, {}, constants, filter=UNIT_FILTER)


def fit(job, spec, checkpoints=None, on_report=None):
    """Run a whole training in this process; return the averaged model and its history."""
    histories, models = [], []
    loop = make_loop(
        partial(VelocityModel, spec),
        lambda: job,
        checkpoints or Kept(),
        lambda history: histories.append(list(history)),
        lambda model, job, note: models.append(model),
    )
    SerialEngine().train(loop, workers=1, on_report=on_report or (lambda metrics: None))
    (model,) = models
    return model, histories[-1]


def timeless(history):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in history]


def test_the_loss_falls_and_the_model_beats_linear_theory():
    """A box of 8^3 cells whose every crop is all of it: 60 steps learn most of its residual."""
    fields = synthetic_fields(8)
    flow = np.array([30.0, -20.0, 10.0], np.float32).reshape(3, 1, 1, 1)
    source = MemoryFields({**fields, "velocity": fields["velocity"] + flow})
    spec = make_spec(source)
    box = TrainingBox.slab(source, FLOWS, 0, 8)
    config = TrainConfig(
        **{**BASE, "steps": 60, "validate_every": 20, "learning_rate": 4e-3, "average": 0.8},
        augment=False,
    )
    job = TrainingJob(config, 1, CROP, [box], [(box, Block((0, 0, 0), (8, 8, 8)))])
    reports = []
    model, history = fit(job, spec, on_report=reports.append)
    # Between them, steps are noted once in a while; a note repeats the last one.
    *reports, last = (report for report in reports if "validation_rms" in report)
    assert reports == history
    assert last == {**history[-1], FINISHED: 1.0}
    assert [row["step"] for row in history] == [20, 40, 60]
    # An untrained network leaves a mean square of 1 by the choice of units.
    assert history[0]["loss"] < 1.0
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["loss"] < 0.3
    linear_theory = np.sqrt(3.0) * spec.normalisation.target_scale
    assert history[-1]["validation_rms"] < 0.6 * linear_theory
    assert not model.training


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(synthetic_box):
    spec = make_spec(synthetic_box)
    whole, expected = fit(make_job(synthetic_box), spec)

    class Dying(Kept):
        def save(self, step, content):
            super().save(step, content)
            raise KeyboardInterrupt

    kept = Dying()
    with pytest.raises(KeyboardInterrupt):
        fit(make_job(synthetic_box), spec, kept)
    assert list(kept.saved) == [4]
    # The process that goes on has other random numbers behind it.
    torch.rand(1000)
    again, history = fit(make_job(synthetic_box), spec, Kept(kept.saved[4]))
    assert timeless(history) == timeless(expected)
    assert [row["step"] for row in history] == [3, 6, 8]
    for name, value in whole.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value), name


def test_a_finished_run_that_is_resumed_changes_nothing(synthetic_box):
    spec = make_spec(synthetic_box)
    kept = Kept()
    job = make_job(synthetic_box, steps=2)
    model, history = fit(job, spec, kept)
    again, same = fit(job, spec, kept)
    assert same == history
    for name, value in model.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value)


def test_a_seed_decides_the_model(synthetic_box):
    spec = make_spec(synthetic_box)
    one, same, other = (
        fit(make_job(synthetic_box, steps=2, seed=seed), spec)[0].network.state_dict()
        for seed in (5, 5, 6)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["output.weight"], other["output.weight"])


def test_a_loss_that_is_not_finite_names_its_step(synthetic_box):
    spec = make_spec(synthetic_box)
    source = Watched(synthetic_box, spoil=("velocity", 3))
    kept = Kept()
    job = make_job(source, validate_every=100, checkpoint_every=1)
    with pytest.raises(CosmoflowError, match="finite") as caught:
        fit(job, spec, kept)
    assert caught.value.where == "step 3"
    assert not np.isfinite(caught.value.value)
    assert "train.learning_rate" in caught.value.remedy
    assert list(kept.saved) == [1, 2]
    # The newest checkpoint is good: a run without the spoilt crop goes on from it.
    _, history = fit(make_job(synthetic_box, steps=4), spec, kept)
    assert np.isfinite(history[-1]["loss"])


def test_the_rate_warms_up_and_decays_to_nothing(synthetic_box):
    job = make_job(synthetic_box, steps=100, warmup=0.1)
    fitting = Fitting(VelocityModel(make_spec(synthetic_box)), job, None)
    rates = [fitting.optimiser.schedule(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert all(a < b for a, b in itertools.pairwise(rates[:10]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)


def test_the_stage_does_not_learn_from_its_validation_slab(fields_store, serial_run, tmp_path):
    """Spoiling the slab's velocities changes what validation says and nothing else."""
    options = {**BASE, "steps": 2, "crop": CROP}
    models = []
    for name, factor in (("as it is", 1.0), ("spoilt", 7.0)):
        store = fields_store(16, shard=16, seed=5)
        group = zarr.open_group(store.url, mode="r+")
        velocity = group["velocity"][:]
        velocity[:, 12:] *= factor
        group["velocity"][:] = velocity
        models.append(train([store.url], str(tmp_path / name), serial_run(train=options)))
    one, other = (model.network.state_dict() for model in models)
    assert models[0].spec.normalisation == models[1].spec.normalisation
    assert all(torch.equal(one[name], other[name]) for name in one)
    rms = [
        float(list(csv.DictReader((tmp_path / name / "history.csv").open()))[-1]["validation_rms"])
        for name in ("as it is", "spoilt")
    ]
    assert rms[1] > 2.0 * rms[0]


def test_the_loss_is_by_volume_and_by_mass():
    rng = np.random.default_rng(0)
    residual, density = rng.normal(size=(2, 3, 4, 4, 4)), rng.lognormal(size=(2, 4, 4, 4))
    volume = (residual**2).mean()
    mass = (residual**2 * density[:, None]).mean()
    tensors = torch.from_numpy(residual), torch.from_numpy(density)
    assert float(mean_square(*tensors, 0.0)) == pytest.approx(volume)
    assert float(mean_square(*tensors, 0.5)) == pytest.approx((volume + 0.5 * mass) / 1.5)


def test_weighting_by_mass_changes_what_is_learned(synthetic_box):
    spec = make_spec(synthetic_box)
    one, same, other = (
        fit(make_job(synthetic_box, steps=2, density_weight=weight), spec)[0].network.state_dict()
        for weight in (0.0, 0.0, 2.0)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["output.weight"], other["output.weight"])
    with pytest.raises(ValueError, match="density_weight"):
        TrainConfig(target="momentum", density_weight=1.0)


def test_training_stops_when_validation_gets_no_better(synthetic_box):
    """With a rate of nothing every validation is the same: the second one is the last."""
    spec = make_spec(synthetic_box)
    still = {"learning_rate": 1e-30, "muon_rate": 1e-30, "weight_decay": 0.0}
    kept = Kept()
    _, history = fit(
        make_job(synthetic_box, steps=100, validate_every=2, patience=1, **still), spec, kept
    )
    assert [row["step"] for row in history] == [2, 4]
    # The checkpoint of the last step says that it is over.
    job = make_job(synthetic_box, steps=100, validate_every=2, patience=1, **still)
    _, again = fit(job, spec, kept)
    assert again == history


@each("kept", [{"patience": 3}, {"start": "another model"}])
def test_patience_and_a_start_keep_the_weights_that_validated_best(synthetic_box, kept):
    """Rates that are far too large: what comes later is worse than what came first."""
    spec = make_spec(synthetic_box)
    wild = {"learning_rate": 1.0, "muon_rate": 3.0, "average": 0.0, "warmup": 0.0}
    options = {"steps": 12, "validate_every": 1, **kept, **wild}
    job = make_job(synthetic_box, **options)
    checkpoints = Kept()
    model, history = fit(job, spec, checkpoints)
    best = min(row["validation_rms"] for row in history)
    assert history[-1]["validation_rms"] > best
    fitting = Fitting(model, job, ALONE)
    assert fitting.validate() == pytest.approx(best, rel=1e-6)
    # A start is measured once, before the first step, and a checkpoint has it.
    assert [row["step"] for row in history][:2] == ([0, 1] if "start" in kept else [1, 2])
    again, same = fit(job, spec, Kept(checkpoints.saved[min(checkpoints.saved)]))
    assert [row["step"] for row in same] == [row["step"] for row in history]
    assert torch.equal(again.network.output.weight, model.network.output.weight)


def test_the_stage_tells_its_loss_and_history_as_it_goes(
    fields_store, serial_run, tmp_path, monkeypatch
):
    monkeypatch.setattr("cosmoflow.model.fitting.NOTE_SECONDS", 0.0)
    store = fields_store(16, shard=16)
    options = {**BASE, "steps": 4, "validate_every": 2, "crop": CROP, "tensorboard": True}
    seen, told, words = [], [], []

    def listen(event):
        path = tmp_path / "model" / "history.csv"
        if isinstance(event, Message):
            words.append(event.text)
        if isinstance(event, StageAdvanced) and event.stage == "train":
            told.append(event)
            if path.exists():
                seen.append(len(path.read_text().splitlines()) - 1)

    train([store.url], str(tmp_path / "model"), serial_run(train=options, listener=listen))
    assert seen[0] == 1
    assert seen[-1] == 2
    with (tmp_path / "model" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    residual = f"residual {float(rows[0]['validation_rms']):.1f} km/s at step 2"
    assert [event.done for event in told] == [1, 2, 3, 4]
    assert [event.note for event in told[:3]] == ["", residual, residual]
    losses = [event.values["loss"] for event in told]
    # At validations the mean since the one before, as documented; otherwise of the last 20 steps.
    assert [losses[1], losses[3]] == [float(row["loss"]) for row in rows]
    # The mean of all three steps so far.
    assert 2 * losses[1] < 3 * losses[2] < 2 * (losses[1] + losses[3])
    assert "fitting the Wiener filter" in words
    assert words[-1] == "the steps are done; next: comparing it with other models"
    assert list((tmp_path / "model" / "tensorboard").glob("events*"))


@each("data", ["memory", "stream"])
def test_the_stage_learns_from_memory_and_from_a_stream(fields_store, serial_run, tmp_path, data):
    # Chunks as large as the box: a halo wraps around it several times, and each time all are read.
    store = fields_store(16, shard=16, chunk=16, seed=5)
    options = {**BASE, "steps": 6, "crop": CROP, "data": data}
    one, two = (
        train([store.url], str(tmp_path / name), serial_run(train=options)).network.state_dict()
        for name in ("one", "two")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert float(one["output.weight"].abs().max()) > 0.0


def test_a_damaged_model_is_written_again_from_its_checkpoint(fields_store, serial_run, tmp_path):
    url, out = fields_store(24, shard=24).url, tmp_path / "model"
    options = {"model": "residual-tiny", "steps": 2, "batch": 1, "crop": 8, "compare": False}
    with narrow_networks():
        train(url, str(out), serial_run(train=options))
        whole = (out / "model.safetensors").read_bytes()
        (out / "model.safetensors").write_bytes(whole[:100])
        train(url, str(out), serial_run(train=options, existing="resume"))
    assert (out / "model.safetensors").read_bytes() == whole
