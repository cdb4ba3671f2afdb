"""Compare ways in which the condition of a box reaches a network: a training for each.

Usage: python benchmarks/modulations.py FOLDER START [--steps 500]

FOLDER is that of ``benchmarks/shipped/boxes.py``, with the tables ``held_out`` and ``specialists``.
Each way starts from START, the folder of a model of one condition (a ``residual-small`` made by
``--config fiducial``), and learns from the same crops of the ``specialists``; six of those
validate. Prints the 3-D rms residual in the held-out boxes:

- *scales and shifts*, one of each for every feature that a convolution gives: what ships;
- *styles*: also a scale for every feature that a convolution takes, after which its weights are
  brought back to their norm, as in StyleGAN2 (Karras et al. 2020, arXiv:1912.04958);
- *nothing*: the network does not know the condition; its filter and constants still do.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from unittest.mock import patch

import torch
from fine_tuning import fit
from specialists import residual
from torch import Tensor, nn

from cosmoflow.model.family import ModelFamily
from cosmoflow.model.modulation import HIDDEN, ModulatedNetwork, convolutions
from cosmoflow.stages.models import load_model
from cosmoflow.storage.fields import FieldStore

VALIDATION = (
    "s02-128-64-z0", "s02-128-64-z1", "s08-128-64-z0", "s14-128-64-z2", "s17-192-64-z0",
    "s20-256-64-z0",
)  # fmt: skip
RATES = {"muon_rate": 0.01, "learning_rate": 2e-3}
"""Those of the shipped recipe."""


class Styled(ModulatedNetwork):
    """Also scales of the features that convolutions take."""

    def __init__(self, network: nn.Module, coordinates: int) -> None:
        super().__init__(network, coordinates)
        self.taken = {name: one.in_channels for name, one in convolutions(network)}
        output = nn.Linear(HIDDEN, sum(self.taken.values()))
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)
        self.styles = nn.Sequential(nn.Linear(coordinates, HIDDEN), nn.SiLU(), output)

    def folded(self, condition: Tensor) -> dict[str, Tensor]:
        """Return the parameters of the network for a condition."""
        plain = dict(self.network.named_parameters())
        parameters = super().folded(condition)
        styles = self.styles(condition).split(list(self.taken.values()))
        kinds = dict(convolutions(self.network))
        for (name, kind), style in zip(kinds.items(), styles, strict=True):
            taken = 0 if isinstance(kind, nn.ConvTranspose3d) else 1
            shape = [-1 if axis == taken else 1 for axis in range(5)]
            rest = [axis for axis in range(5) if axis != 1 - taken]
            before = plain[f"{name}.weight"]
            after = before * (1.0 + style).view(shape)
            norms = [one.square().sum(rest, keepdim=True).sqrt() for one in (before, after)]
            factor = (1.0 + style).view(shape) * norms[0] / norms[1].clamp_min(1e-12)
            parameters[f"{name}.weight"] = parameters[f"{name}.weight"] * factor
        return parameters


class Unconditioned(ModulatedNetwork):
    """A network that does not know the condition."""

    def __init__(self, network: nn.Module, coordinates: int) -> None:
        super().__init__(network, coordinates)
        self.modulation.requires_grad_(requires_grad=False)

    def folded(self, condition: Tensor) -> dict[str, Tensor]:
        """Return the parameters of the network, the same for any condition."""
        return dict(self.network.named_parameters())


WAYS = {"scales and shifts": ModulatedNetwork, "styles": Styled, "nothing": Unconditioned}


def main() -> None:
    """Train each way, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("start")
    parser.add_argument("--steps", type=int, default=500)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if isinstance(load_model(given.start), ModelFamily):
        parser.error(f"{given.start} is a family, which has a modulation already")
    stores = sorted((given.folder / "specialists").glob("*.zarr"))
    # The last eighth of the fields validates.
    stores.sort(key=lambda url: url.stem in VALIDATION)
    held_out = sorted((given.folder / "held_out").glob("*.zarr"))
    found: list[list[float]] = []
    for name, kind in WAYS.items():
        out = given.folder / name.replace(" ", "-")
        begun = time.perf_counter()
        with patch("cosmoflow.model.family.ModulatedNetwork", kind):
            history = fit(
                [str(url) for url in stores], out, start=given.start, steps=given.steps,
                validate_every=max(1, given.steps // 5), error_steps=0, compare=False,
                optimiser="muon", **RATES,
            )  # fmt: skip
            found.append([residual(str(out), FieldStore(str(url))) for url in held_out])
        said = ", ".join(f"{crops:.0f}: {one:.2f}" for crops, one in history)
        print(f"{name}, {(time.perf_counter() - begun) / 60.0:.1f} min; {said}", flush=True)
    print(f"| box | {' | '.join(WAYS)} |\n|{' --- |' * (1 + len(WAYS))}")
    for url, *row in zip(held_out, *found, strict=True):
        print(f"| {url.stem} | {' | '.join(f'{one:.1f}' for one in row)} |")
    ratios = [torch.tensor(one).div(torch.tensor(found[0])).mean().item() for one in found]
    print(f"| mean of the ratios to the first | {' | '.join(f'{one:.4f}' for one in ratios)} |")


if __name__ == "__main__":
    main()
