"""Measure what it would cost to store a Wiener flow as one potential in place of three components.

Usage: python benchmarks/flow_as_potential.py FIELDS [MODEL]

FIELDS is a painted fields store whose Wiener velocity has been made for MODEL (residual-small). The
flow of the filter has no curl, so a potential of 4 bytes a cell holds what its 12 bytes hold. A
block would get its velocity back by central differences, of 2 to 16 points, within a halo. The
table has the rms error per component of that velocity, and the 3-D rms residual from the painted
velocity of the flow alone and of the network that is given it.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import torch
from _boxes import make_flows, open_shipped

from cosmoflow.config.networks import InferConfig
from cosmoflow.model.sources import MemoryFields
from cosmoflow.numerics import calculus, fourier
from cosmoflow.stages.infer import Member, predict_box
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.flows import WIENER

HALVES = (1, 2, 3, 4, 6, 8)
"""Points on each side of a cell."""


def coefficients(half: int) -> list[float]:
    """Return the weights of the points 1 to ``half`` of the central difference of that width."""
    return [
        2.0
        * (-1) ** (n + 1)
        * math.factorial(half) ** 2
        / (2 * n * math.factorial(half - n) * math.factorial(half + n))
        for n in range(1, half + 1)
    ]


def differences(potential: torch.Tensor, cell: float, half: int) -> torch.Tensor:
    """Return the gradient of a periodic field, by central differences."""
    parts = []
    for axis in range(3):
        total = torch.zeros_like(potential)
        for n, weight in enumerate(coefficients(half), start=1):
            total += weight * (potential.roll(-n, axis) - potential.roll(n, axis))
        parts.append(total / cell)
    return torch.stack(parts)


def main(url: str, name: str = "residual-small") -> None:
    """Print the table."""
    model = open_shipped(name, url)
    model.network.to(memory_format=torch.channels_last_3d)
    flows = make_flows(url, model)
    store = FieldStore(url)
    density, truth = store.read("density"), torch.from_numpy(store.read("velocity"))
    flow = torch.from_numpy(store.read(WIENER))
    modes = fourier.forward(flow.double())
    waves = calculus.odd_wavenumbers(modes, store.metadata.box_size)
    square = sum(wave * wave for wave in waves)
    square[square == 0.0] = 1.0
    divergence = calculus.divergence_modes(modes, waves)
    potential = fourier.inverse(-divergence / square, store.grid).float()

    def residual(found: np.ndarray | torch.Tensor) -> float:
        difference = torch.as_tensor(found) - truth
        return float(difference.double().square().sum(0).mean().sqrt())

    def show(label: str, velocity: torch.Tensor) -> None:
        source = MemoryFields({"density": density, WIENER: velocity.numpy()})
        config, device = InferConfig(), torch.device("cpu")
        found = predict_box([Member(model, flows)], source, config, device).mean
        error = float((velocity - flow).double().square().mean().sqrt())
        print(
            f"{label:22s} flow off by {error:7.3f} km/s; residual of the flow "
            f"{residual(velocity):7.2f}, of {name} {residual(found):7.2f} km/s",
            flush=True,
        )

    show("three components", flow)
    for half in HALVES:
        show(f"potential, {2 * half} points", differences(potential, store.cell_size, half))


if __name__ == "__main__":
    main(*sys.argv[1:3])
