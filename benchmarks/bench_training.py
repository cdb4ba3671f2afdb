"""Time training beside a plain PyTorch loop, and beside the peak of this machine's convolutions.

Usage: python benchmarks/bench_training.py FIELDS [MODEL] [STEPS] [BATCH]

All contestants learn the same network from crops of the same store, drawn in the same way, in turn:

plain      what one writes first: float32, contiguous layout, AdamW, crops read from arrays in
           memory by slicing before each step
engine     the training loop of cosmoflow: bfloat16 where the device is fast at it, channels last,
           Muon, crops drawn ahead by threads, from fields on the GPU if there is one
compiled   the same with train.compile

FLOPs are those of the forward pass three times over. The peak is that of the fastest convolution of
the network's own kind (3^3, 48 to 96 features) in bfloat16 and float32, forward.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from cosmoflow.config.networks import TrainConfig
from cosmoflow.engine.serial import SerialEngine
from cosmoflow.model.fitting import make_loop
from cosmoflow.model.precision import best_device, has_fast_bfloat16, prepare_device
from cosmoflow.model.registry import count_flops, find_architecture
from cosmoflow.model.samples import TrainingBox, draw_batch, measure_normalisation
from cosmoflow.model.sources import DeviceFields, MemoryFields
from cosmoflow.model.training_job import Metrics, TrainingJob
from cosmoflow.model.velocity import ModelSpec, VelocityModel
from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.wiener import SETS
from cosmoflow.stages.flows import ensure_flows
from cosmoflow.stages.run import Run
from cosmoflow.stages.train.data import Split, fit_filter
from cosmoflow.storage.fields import FieldStore

CROP = 48
DEVICE = best_device()
WIDE = ((256, 34), (512, 34))
"""Features and cells of convolutions that only a GPU is asked for."""


def wait_for_device() -> None:
    """Wait until a GPU has done what it was told."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


class Nowhere:
    """Keeps no checkpoints."""

    def save(self, step: int, content: bytes) -> None:
        """Keep nothing."""

    def newest(self) -> bytes | None:
        """Have nothing."""


def prepare(url: str, name: str) -> tuple[TrainingBox, ModelSpec]:
    """Return a box in memory and the description of a model for it."""
    architecture = find_architecture(name)
    wiener = None
    if architecture.filter is not None:
        wiener = fit_filter(Split((url,), ((),), 0, 0), SETS[architecture.filter])
    flows = ensure_flows(url, architecture.smoothing, wiener, Run())
    store = FieldStore(url)
    names = ["density", "velocity", *(flow for flow in flows if isinstance(flow, str))]
    source = MemoryFields({field: store.read(field) for field in names})
    box = TrainingBox.slab(source, flows, 0, source.grid)
    constants = measure_normalisation([box], "velocity", architecture.offset)
    spec = ModelSpec(name, "velocity", store.cell_size, 0.0, {}, constants, filter=wiener)
    return box, spec


def run_plain(box: TrainingBox, spec: ModelSpec, crop: int, steps: int, batch: int) -> float:
    """Return the samples per second of a plain loop."""
    model = VelocityModel(spec).to(DEVICE)
    optimiser = torch.optim.AdamW(model.network.parameters(), lr=1e-3)

    def step(number: int) -> None:
        drawn = draw_batch(
            [box], "velocity", model.geometry,
            crop=crop, crops=range(batch), augment=True, key=(1, number),
        )  # fmt: skip
        density, flows = drawn.density.to(DEVICE), drawn.flows.to(DEVICE)
        output = model.network(model.channels(density, flows))
        wanted = model.normalised_target(drawn.target.to(DEVICE), density, flows)
        loss = nn.functional.mse_loss(output, wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    step(0)
    wait_for_device()
    start = time.perf_counter()
    for number in range(1, steps + 1):
        step(number)
    wait_for_device()
    return batch * steps / (time.perf_counter() - start)


def run_engine(
    box: TrainingBox, spec: ModelSpec, crop: int, steps: int, batch: int, **changes: bool
) -> tuple[float, float]:
    """Return the samples per second of our loop, and the share of the time it waits for crops."""
    reports: list[Metrics] = []
    options = {"batch": batch, "steps": 2 * steps, "validate_every": steps, **changes}
    if DEVICE.type == "cuda":
        names = ["density", "velocity", *(flow for flow in box.flows if isinstance(flow, str))]
        fields = {name: box.source.read_block(name, box.region) for name in names}
        box = replace(box, source=DeviceFields(fields, DEVICE))
    config = TrainConfig(model=spec.architecture, checkpoint_every=10 * steps, **options)
    job = TrainingJob(config, 1, crop, [box], [(box, Block((0, 0, 0), (crop, crop, crop)))])
    loop = make_loop(
        partial(VelocityModel, spec), lambda: job, Nowhere(), lambda rows: None, lambda *end: None
    )
    SerialEngine().train(loop, workers=1, on_report=reports.append)
    # The first report has the warming up in it, and the compilation.
    return reports[-1]["samples_per_second"], reports[-1]["waiting"]


def peak(dtype: torch.dtype) -> float:
    """Return the FLOP/s of the fastest convolution tried."""
    best = 0.0
    prepare_device(DEVICE, same_shapes=True)
    on_gpu = DEVICE.type == "cuda"
    for features, cells in ((48, 34), (64, 34), (96, 20), (96, 34), *(WIDE if on_gpu else ())):
        layer = nn.Conv3d(features, features, 3, device=DEVICE)
        layer.to(dtype, memory_format=torch.channels_last_3d)
        tile = torch.randn(8 if on_gpu else 1, features, cells, cells, cells, device=DEVICE).to(
            dtype, memory_format=torch.channels_last_3d
        )
        flops = 2 * 27 * features**2 * (cells - 2) ** 3 * len(tile)
        with torch.inference_mode():
            layer(tile)
            for _ in range(5):
                wait_for_device()
                start = time.perf_counter()
                layer(tile)
                wait_for_device()
                best = max(best, flops / (time.perf_counter() - start))
    return best


def main() -> None:
    """Print a table."""
    url = sys.argv[1]
    name = sys.argv[2] if len(sys.argv) > 2 else "residual-small"
    steps = int(sys.argv[3]) if len(sys.argv) > 3 else 30
    batch = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    box, spec = prepare(url, name)
    crop = VelocityModel(spec).geometry.fixed_output or CROP
    flops = 3 * count_flops(name, crop)
    tops = {"float32": peak(torch.float32)}
    if has_fast_bfloat16(DEVICE):
        tops["bfloat16"] = peak(torch.bfloat16)
    for kind, top in tops.items():
        print(f"peak of a convolution, {kind}: {top / 1e9:.0f} GFLOP/s")
    best = max(tops.values())
    place = f"{torch.get_num_threads()} threads"
    if DEVICE.type == "cuda":
        place = torch.cuda.get_device_name()
    print(f"{name}, {batch} crops of {crop}^3 a step, {flops / 1e9:.1f} GFLOP each, {place}")
    contestants: dict[str, Callable[[], tuple[float, float]]] = {
        "plain": lambda: (run_plain(box, spec, crop, steps, batch), 0.0),
        "engine": lambda: run_engine(box, spec, crop, steps, batch),
        "compiled": lambda: run_engine(box, spec, crop, steps, batch, compile=True),
    }
    plain = 0.0
    for contestant, run in contestants.items():
        speed, waiting = run()
        plain = plain or speed
        print(
            f"{contestant:10s} {speed:6.2f} samples/s  {speed * flops / 1e9:6.0f} GFLOP/s  "
            f"{speed * flops / best:5.0%} of peak  {speed / plain:4.1f} x plain  "
            f"waits {waiting:.1%}"
        )


if __name__ == "__main__":
    main()
