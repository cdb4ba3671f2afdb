"""Print how models do in boxes of many conditions: residual, power and correlation of div v.

Usage: python benchmarks/conditions_table.py FIELDS... --model NAME... [--best] [--restored]

For every fields store and every model: the 3-D rms residual in km/s and over the true rms; T and r
of the divergence at ``--k`` h/Mpc and at 0.5 and 0.8 of the Nyquist wavenumber; for models that
know their errors, the share of components within the 68 and 95 % intervals, in all cells and in the
quartile of cells where it is farthest off. ``--best`` adds a Wiener filter fitted to the very box;
``--restored`` adds predictions with their power restored, averaged over the symmetries for which
the gains of the model were measured.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from _measure import rms
from numpy.typing import NDArray

from cosmoflow.config.networks import InferConfig
from cosmoflow.errors import CosmoflowError
from cosmoflow.model.precision import has_fast_bfloat16
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics import calculus, fourier
from cosmoflow.numerics.radial import RadialBins
from cosmoflow.numerics.wiener import SETS, sum_products
from cosmoflow.stages.flows import ensure_flows
from cosmoflow.stages.infer import Member, predict_box
from cosmoflow.stages.inputs.expansion import growth_rate_hubble
from cosmoflow.stages.models import find_model, open_model
from cosmoflow.stages.run import Run
from cosmoflow.storage.fields import FieldStore

Floats = NDArray[np.float32]
CPU = torch.device("cpu")


def divergence(velocity: Floats, size: float) -> torch.Tensor:
    """Return the modes of the divergence of a velocity."""
    modes = fourier.forward(torch.from_numpy(velocity))
    return calculus.divergence_modes(modes, calculus.odd_wavenumbers(modes, size))


def compare(true: Floats, found: Floats, size: float, first: float) -> str:
    """Return T and r of the divergence at three wavenumbers, the first in h/Mpc, as text."""
    cells = true.shape[-1]
    bins = RadialBins.covering(cells, size)
    index = bins.index(cells, size)
    left, right = divergence(true, size), divergence(found, size)
    pairs = ((left, left), (right, right), (left, right))
    own, other, cross = (bins.sum_product(a, b, index) for a, b in pairs)
    nyquist = np.pi * cells / size
    said = []
    for k in (first, 0.5 * nyquist, 0.8 * nyquist):
        at = round(k / bins.width)
        near = slice(max(1, at - 1), at + 2)
        one, two, both = own[near].sum(), other[near].sum(), cross[near].sum()
        said.append(f"{two / one:.3f} {both / np.sqrt(one * two):.3f}")
    return " | ".join(said)


def coverage(true: Floats, found: Floats, size: Floats, interval: float, density: Floats) -> str:
    """Return the shares of components within both intervals, in all cells and in quartiles."""
    ratio = np.abs(true - found) / size
    edges = np.quantile(density, [0.25, 0.5, 0.75])
    quartile = np.digitize(density, edges)
    said = []
    for limit, wanted in ((1.0, 68.27), (interval, 95.0)):
        inside = ratio < limit
        parts = [100.0 * inside[:, quartile == number].mean() for number in range(4)]
        worst = max(parts, key=lambda part: abs(part - wanted))
        said.append(f"{100.0 * inside.mean():.1f} ({worst:.1f})")
    return " ".join(said)


def predict(
    model: VelocityModel, store: FieldStore, name: str, symmetries: int = 1
) -> tuple[Floats, Floats | None]:
    """Return the prediction of a box, and the size of its errors if the model knows it."""
    flows = ensure_flows(store.url, model.smoothing, model.spec.filter, Run(), model=name)
    precision = "bfloat16" if has_fast_bfloat16(CPU) else "float32"
    errors = model.spec.errors is not None
    config = InferConfig(precision=precision, errors=errors, symmetries=symmetries)
    found = predict_box([Member(model, flows)], FieldStore(store.url), config, CPU)
    return found.mean, found.size


def restore(model: VelocityModel, store: FieldStore, name: str) -> Floats:
    """Return the prediction of a box with its power restored."""
    gain = model.spec.gain
    if gain is None:
        raise SystemExit(f"{name} has no gains to restore power with")
    mean, _ = predict(model, store, name, gain.symmetries)
    found: Floats = gain.restore(torch.from_numpy(mean), store.metadata.box_size).numpy()
    return found


def best_filter(store: FieldStore) -> Floats:
    """Return the velocity of the Wiener filter that is fitted to this very box."""
    size, rate = store.metadata.box_size, growth_rate_hubble(store.metadata)
    density, velocity = (torch.from_numpy(store.read(name)) for name in ("density", "velocity"))
    bins = RadialBins.covering(store.grid, size)
    wiener = sum_products(density, velocity, size, rate, SETS["wiener"], bins).solve()
    found: Floats = wiener.velocity(density, size, rate).numpy()
    return found


def main() -> None:
    """Print a line for every box and model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fields", nargs="+")
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--restored", action="store_true")
    parser.add_argument("--k", type=float, default=0.2, help="first wavenumber, h/Mpc")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    at = f"T r at {given.k:g} | 0.5 k_N | 0.8 k_N"
    print(f"| box | model | residual | over rms | {at} | 68 % 95 % |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for url in given.fields:
        store = FieldStore(url)
        true, density = store.read("velocity"), store.read("density")
        norm = rms(true)
        found: dict[str, tuple[Floats, Floats | None, float]] = {}
        for name in given.model:
            try:
                model = open_model(find_model(name), store)
            except CosmoflowError as error:
                print(f"| {Path(url).stem} | {name} | {error.message} |")
                continue
            interval = 0.0 if model.spec.errors is None else model.spec.errors.interval_95
            found[name] = (*predict(model, store, name), interval)
            if given.restored:
                found[f"{name}, power restored"] = (restore(model, store, name), None, 0.0)
        if given.best:
            found["wiener of the box"] = (best_filter(store), None, 0.0)
        for name, (mean, size, interval) in found.items():
            residual = rms(true - mean)
            inside = "" if size is None else coverage(true, mean, size, interval, density)
            cells = (Path(url).stem, Path(name).name, f"{residual:.1f}", f"{residual / norm:.4f}")
            text = compare(true, mean, store.metadata.box_size, given.k)
            print(f"| {' | '.join(cells)} | {text} | {inside} |", flush=True)


if __name__ == "__main__":
    main()
