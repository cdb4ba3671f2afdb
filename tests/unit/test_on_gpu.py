"""What only a GPU can show; skipped where there is none."""

import numpy as np
import pytest
import torch

from cosmoflow.config.networks import InferConfig, TrainConfig
from cosmoflow.engine.serial import SerialEngine
from cosmoflow.errors import ConfigError
from cosmoflow.model.fitting import Fitting, make_loop
from cosmoflow.model.precision import prepare_device
from cosmoflow.model.samples import TrainingBox, draw_batch
from cosmoflow.model.sources import DeviceFields, MemoryFields
from cosmoflow.model.training_job import TrainingJob
from cosmoflow.model.velocity import ModelSpec, Normalisation, VelocityModel
from cosmoflow.numerics.blocks import Block
from cosmoflow.stages.infer import predict_box
from cosmoflow.stages.infer.ensemble import Ensemble, Member
from cosmoflow.stages.infer.layout import device_memory
from cosmoflow.stages.infer.request import Work
from cosmoflow.stages.infer.tiles import Layout
from cosmoflow.stages.infer.worker import compute
from tests.cases import each
from tests.conftest import FLOWS, UNIT_FILTER, synthetic_fields

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GRID = 64


@pytest.fixture(scope="module")
def fields():
    return synthetic_fields(GRID)


def make_model(name="residual-tiny", seed=1):
    """Return a network whose last layer is not zero, so that all of it counts."""
    torch.manual_seed(seed)
    constants = Normalisation(0.0, 1.0, 300.0, 100.0)
    model = VelocityModel(
        ModelSpec(name, "velocity", 2.0, 0.0, {}, constants, filter=UNIT_FILTER)
    ).eval()
    for parameter in model.network.parameters():
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.02)
    model.network.to(memory_format=torch.channels_last_3d)
    return model


@each("origin", [(0, 0, 0), (-7, 60, 13)])
def test_a_gpu_draws_the_crops_that_memory_draws(fields, origin):
    held = DeviceFields(fields, GPU)
    model = make_model()
    batches = [
        draw_batch(
            [TrainingBox.slab(source, FLOWS, 0, GRID)], "velocity", model.geometry,
            crop=16, crops=range(4), augment=True, key=(3, 5),
        )
        for source in (MemoryFields(fields), held)
    ]  # fmt: skip
    for name in ("density", "flows", "target"):
        on_cpu, on_gpu = (getattr(batch, name) for batch in batches)
        assert on_gpu.device.type == "cuda"
        assert torch.equal(on_cpu, on_gpu.cpu())
    block = Block(origin, (20, 21, 22))
    np.testing.assert_array_equal(
        held.read_block("density", block), MemoryFields(fields).read_block("density", block)
    )


@each("symmetries", [1, 3])
def test_a_gpu_predicts_what_a_cpu_predicts(fields, symmetries):
    source = MemoryFields(fields)
    config = InferConfig(precision="float32", symmetries=symmetries, tile=32)
    prepare_device(GPU, same_shapes=False)
    found = [
        predict_box([Member(make_model().to(device), FLOWS)], source, config, device).mean
        for device in (CPU, GPU)
    ]
    rms = np.sqrt(np.mean(np.square(found[0] - fields["wiener_velocity"])))
    assert rms > 1.0
    np.testing.assert_allclose(found[1], found[0], rtol=0.0, atol=1e-4 * rms)


def test_a_gpu_predicts_the_same_for_every_tiling(fields):
    source = MemoryFields(fields)
    prepare_device(GPU, same_shapes=False)
    member = Member(make_model().to(GPU), FLOWS)
    found = [
        predict_box([member], source, InferConfig(precision="float32", tile=tile, batch=batch), GPU)
        for tile, batch in ((16, 8), (32, 1), (64, 1))
    ]
    rms = np.sqrt(np.mean(np.square(found[0].mean)))
    for other in found[1:]:
        np.testing.assert_allclose(other.mean, found[0].mean, rtol=0.0, atol=1e-5 * rms)


class Kept:
    """Keeps the checkpoints of a training in memory."""

    def __init__(self):
        self.contents = []

    def save(self, step, content):
        self.contents.append(content)

    def newest(self):
        return self.contents[-1] if self.contents else None


def fit(fields, steps, checkpoints, stop_at=None, **options):
    box = TrainingBox.slab(DeviceFields(fields, GPU), FLOWS, 0, GRID)
    config = TrainConfig(
        model="residual-tiny", steps=steps, batch=4, checkpoint_every=10, validate_every=20,
        **options,
    )  # fmt: skip
    job = TrainingJob(config, 1, 16, [box], [(box, Block((0, 0, 0), (32, 32, 32)))])
    models, history = [], []

    def on_report(metrics):
        if "loss" not in metrics:
            return
        history.append(metrics)
        if stop_at is not None and metrics["step"] >= stop_at:
            raise KeyboardInterrupt

    loop = make_loop(make_model, lambda: job, checkpoints, lambda rows: None,
                     lambda model, job, note: models.append(model))  # fmt: skip

    try:
        SerialEngine().train(loop, workers=1, on_report=on_report)
    except KeyboardInterrupt:
        return history, None
    return history, models[0]


@each("precision", ["auto", "float32"])
def test_training_learns_on_a_gpu(fields, precision):
    history, model = fit(fields, 120, Kept(), precision=precision)
    assert history[-1]["validation_rms"] < 0.9 * history[0]["validation_rms"]
    assert next(model.network.parameters()).device.type == "cuda"


def test_a_resumed_training_goes_on_with_its_state(fields):
    whole, _ = fit(fields, 60, Kept())
    kept = Kept()
    fit(fields, 60, kept, stop_at=40)
    rest, _ = fit(fields, 60, kept)
    # Sums on a GPU are added in no fixed order.
    assert rest[-1]["step"] == 60
    assert rest[-1]["validation_rms"] == pytest.approx(whole[-1]["validation_rms"], rel=0.02)


def test_a_checkpoint_of_a_gpu_is_read_on_a_cpu(fields, monkeypatch):
    kept = Kept()
    fit(fields, 20, kept)
    monkeypatch.setattr("cosmoflow.model.fitting.best_device", lambda: CPU)
    box = TrainingBox.slab(MemoryFields(fields), FLOWS, 0, GRID)
    config = TrainConfig(model="residual-tiny", steps=60, batch=4)
    job = TrainingJob(config, 1, 16, [box], [(box, Block((0, 0, 0), (16, 16, 16)))])
    fitting = Fitting(make_model(), job, type("One", (), {"rank": 0, "world_size": 1})())
    fitting.restore(kept.newest())
    assert fitting.step == 20
    assert next(fitting.network.parameters()).device.type == "cpu"


@each("precision", ["float32", "bfloat16"])
@each(("name", "tile"), [("residual-small", 96), ("residual-medium", 64), ("residual-large", 64)])
def test_a_forward_pass_keeps_to_its_plan(name, tile, precision):
    """The bytes that torch takes of the GPU are no more than planned, and not far below."""
    model = make_model(name).to(GPU)
    config = InferConfig(precision=precision)
    layout = Layout(tile, (tile,) * 3, tile, 1, 0)
    work = Work((name,), "velocity", config, layout, Block((0, 0, 0), (tile,) * 3),
                (FLOWS,), 1 << 40)  # fmt: skip
    shape = model.geometry.input_cells(tile)
    rng = np.random.default_rng(1)
    source = MemoryFields({
        "density": rng.random((shape,) * 3, np.float32),
        "wiener_velocity": rng.random((3, *(shape,) * 3), np.float32),
    })  # fmt: skip
    ensemble = Ensemble([Member(model, FLOWS)], layout, config, GPU)
    block = Block((0, 0, 0), (tile,) * 3)
    ensemble.predict(ensemble.read(source, block))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    ensemble.predict(ensemble.read(source, block))
    taken = torch.cuda.max_memory_reserved()
    planned = device_memory(work, [model])
    assert taken < planned < 4 * taken


def test_too_little_memory_is_said_with_the_remedy(fields):
    tile = GRID
    model = make_model().to(GPU)
    config = InferConfig()
    layout = Layout(tile, (tile,) * 3, tile, 1, 0)
    work = Work(("m",), "velocity", config, layout, Block((0, 0, 0), (tile,) * 3), (FLOWS,))
    ensemble = Ensemble([Member(model, FLOWS)], layout, config, GPU)
    inputs = ensemble.read(MemoryFields(fields), Block((0, 0, 0), (tile,) * 3))
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    reserved = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((reserved + (32 << 20)) / total)
    try:
        with pytest.raises(ConfigError, match="too little memory") as caught:
            compute(ensemble, inputs, work)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "infer.tile" in str(caught.value)
    assert compute(ensemble, inputs, work)
