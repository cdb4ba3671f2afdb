"""Time inference beside the bare network and beside MONAI's sliding window.

Usage: python benchmarks/bench_inference.py FIELDS FOLDER [MODEL] [TIMES]

FIELDS is a fields store of 128^3 cells; it is repeated TIMES (2: 256^3 cells) along each axis in
FOLDER. The contestants predict that box with the same network:

bare      one forward pass over the largest tile that memory takes, its halo in place: no stores, no
          periodic border. The rate of its output cells is the goal.
engine    cosmoflow.infer from store to store, model loading, reading and writing included
in memory the same without stores: fields in memory, the velocity in memory
MONAI     sliding_window_inference over the periodically padded box in memory, windows that overlap
          by the halo, weights of 1 in the middle of a window and 0 in its halo: the same numbers,
          and neither reading nor writing. Needs `pip install --no-deps monai`.

The error of each is its largest and its rms difference from a float32 prediction of the small box.
Beside seconds, the table has nanoseconds of CPU a cell of all threads: on a busy machine these say
more than the seconds, which include waiting for a core.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from _boxes import make_flows, open_shipped, repeat_box, wrap_block
from torch import Tensor

from cosmoflow.config import load_settings
from cosmoflow.config.networks import InferConfig
from cosmoflow.engine.buffers import keep_freed_buffers
from cosmoflow.engine.threads import use_threads
from cosmoflow.model.precision import autocast, best_device, prepare_device
from cosmoflow.model.registry import count_flops
from cosmoflow.model.sources import MemoryFields
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.blocks import Block
from cosmoflow.stages.infer import Member, infer, predict_box
from cosmoflow.stages.run import Run
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.flows import WIENER

DEVICE = best_device()
BARE_TILES = (128, 192, 256)
WINDOWS = (32, 64, 128)
PRECISIONS = ("bfloat16", "float32")


class Clock:
    """Seconds of wall time and of CPU since it was made."""

    def __init__(self) -> None:
        self._begun = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Return both."""
        return time.perf_counter() - self._begun[0], time.process_time() - self._begun[1]


def report(name: str, cells: int, taken: tuple[float, float], error: str = "") -> None:
    """Print a line of the table."""
    seconds, cpu = taken
    print(
        f"{name:34s} {seconds:8.2f} s {cells / seconds / 1e6:8.3f} Mcell/s "
        f"{cpu / cells * 1e9:8.1f} ns of CPU a cell  {error}",
        flush=True,
    )


def time_bare(model: VelocityModel, precision: str, tile: int) -> tuple[float, float]:
    """Return the seconds and the CPU seconds of a forward pass over one tile, best of three."""
    cells = model.geometry.input_cells(tile)
    density = torch.ones((1, cells, cells, cells), device=DEVICE)
    flows = torch.zeros((1, model.flows, 3, cells, cells, cells), device=DEVICE)
    best = np.inf, np.inf
    with torch.inference_mode(), autocast(precision, DEVICE):
        for _ in range(3):
            clock = Clock()
            model(density, flows)
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            seconds, cpu = clock.read()
            best = min(best[0], seconds), min(best[1], cpu)
    return best


def run_monai(
    model: VelocityModel, density: Tensor, flow: Tensor, precision: str, window: int
) -> tuple[Tensor, tuple[float, float]]:
    """Predict a box with MONAI's sliding window; return the velocity and what it took."""
    from monai.inferers import sliding_window_inference

    halo = model.geometry.halo
    size = window + 2 * halo
    weights = functional.pad(torch.ones((window,) * 3, device=DEVICE), (halo,) * 6)

    def predict(part: Tensor) -> Tensor:
        found = model(part[:, 0], part[:, None, 1:])
        return functional.pad(found, (halo,) * 6)

    clock = Clock()
    padded = functional.pad(torch.cat([density[None], flow])[None], (halo,) * 6, mode="circular")
    padded = padded.to(DEVICE)
    with torch.inference_mode(), autocast(precision, DEVICE):
        found = sliding_window_inference(
            padded,
            roi_size=size,
            sw_batch_size=4 if window < 64 else 1,
            predictor=predict,
            # Half a cell less than the halo, lest rounding makes the step a cell short.
            overlap=(2 * halo - 0.5) / size,
            roi_weight_map=weights,
        )
    inner = found[0][..., halo:-halo, halo:-halo, halo:-halo]
    inner = inner.cpu()
    return inner, clock.read()


def main(fields: str, folder: str, name: str = "residual-small", times: int = 2) -> None:
    """Run all contestants in turn."""
    use_threads(torch.get_num_threads())
    keep_freed_buffers()
    prepare_device(DEVICE, same_shapes=False)
    model = open_shipped(name, fields).to(DEVICE)
    model.network.to(memory_format=torch.channels_last_3d)
    flows = make_flows(fields, model)
    store = FieldStore(fields)
    exact = predict_box(
        [Member(model, flows)], store, InferConfig(precision="float32"), DEVICE
    ).mean
    box = str(Path(folder) / f"box-{store.grid * times}.zarr")
    repeat_box(fields, box, times)
    cells = (store.grid * times) ** 3
    truth = wrap_block(exact, Block((0, 0, 0), (store.grid * times,) * 3))

    def errors(found: np.ndarray) -> str:
        difference = found - truth
        rms = float(np.sqrt(np.mean(difference.astype(np.float64) ** 2)))
        return f"worst {np.abs(difference).max():.3g}, rms {rms:.2g} km/s"

    place = f"{torch.get_num_threads()} threads"
    if DEVICE.type == "cuda":
        place = torch.cuda.get_device_name()
    # What a process loads once is not measured.
    infer(fields, str(Path(folder) / "velocity.zarr"), name, Run(existing="overwrite"))
    for precision in PRECISIONS:
        print(f"{precision}, {place}, {store.grid * times}^3 cells")
        for tile in BARE_TILES:
            taken = time_bare(model, precision, tile)
            flops = count_flops(name, tile) / taken[0] / 1e9
            report(f"bare network, one tile of {tile}", tile**3, taken, f"{flops:.0f} GFLOP/s")
        out = str(Path(folder) / "velocity.zarr")
        options = ("engine.choice=serial", "engine.workers=1", f"infer.precision={precision}")
        settings = load_settings(overrides=options)
        told: list[object] = []
        clock = Clock()
        found = infer(box, out, name, Run(settings, existing="overwrite", listener=told.append))
        taken = clock.read()
        report("engine, store to store", cells, taken, errors(found["velocity"].values))
        source = MemoryFields({n: FieldStore(box).read(n) for n in ("density", WIENER)})
        clock = Clock()
        config = InferConfig(precision=precision)
        memory = predict_box([Member(model, flows)], source, config, DEVICE).mean
        report("engine, in memory", cells, clock.read(), errors(memory))
        del memory, source
        try:
            import monai  # noqa: F401
        except ImportError:
            print("MONAI is not installed")
            continue
        density = torch.from_numpy(FieldStore(box).read("density"))
        flow = torch.from_numpy(FieldStore(box).read(WIENER))
        for window in WINDOWS:
            velocity, taken = run_monai(model, density, flow, precision, window)
            label = f"MONAI, windows of {window + 2 * model.geometry.halo}"
            report(label, cells, taken, errors(velocity.numpy()))
            del velocity


if __name__ == "__main__":
    main(*sys.argv[1:3], *sys.argv[3:4], *map(int, sys.argv[4:5]))
