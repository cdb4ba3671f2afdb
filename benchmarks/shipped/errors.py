"""Calibrate the sizes of errors that a family of models expects, on boxes that it has not seen.

Usage: python benchmarks/shipped/errors.py MODEL OUT FIELDS... [--growth-only] [--left-out]

FIELDS are stores that ``boxes.py --only`` makes of ``calibration``, ``corners`` and ``between``.
Every box is predicted; the calibration is fitted to the errors and the sizes of its cells, and OUT
is MODEL with it. Boxes are left out whose cells cut the lattice on which particles began, such as
96^3 cells for 128^3 particles: painting adds noise there that no coordinate of a condition tells.
With --growth-only the rest of the calibration stays: a few conditions are enough for how the
largest sizes grow, and too few for how the factors depend on the condition.
With --left-out the calibration is also made without every twelfth of the cosmologies in turn, and
the coverage of their boxes is printed.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cosmoflow.config.networks import InferConfig
from cosmoflow.model.errors import INSIDE_68, UNCALIBRATED, calibrate, fit_growth
from cosmoflow.model.family import CONSTANTS, ModelFamily
from cosmoflow.model.names import model_folder
from cosmoflow.model.precision import has_fast_bfloat16
from cosmoflow.stages.flows import ensure_flows
from cosmoflow.stages.infer import Member, predict_box
from cosmoflow.stages.inputs.condition import condition_of
from cosmoflow.stages.models import load_model, save_model
from cosmoflow.stages.run import Run
from cosmoflow.storage.fields import FieldStore

Floats = NDArray[np.float32]
CPU = torch.device("cpu")
MOST = 1 << 18
"""Cells of a box that are used, drawn at random."""
FOLDS = 12
Boxes = tuple[list[Floats], list[Floats], list[Floats], list[list[float]]]


def judge(family: ModelFamily, name: str, url: str) -> tuple[Floats, Floats, Floats, list[float]]:
    """Predict a box with sizes that are not calibrated.

    Returns
    -------
    residual, size : ndarray
        Errors and expected sizes in units of the target's rms, shape ``(3, cells)``.
    log_density : ndarray
        Standardised logarithm of the density, shape ``(cells,)``.
    coordinates : list of float
        Standardised coordinates of the condition.
    """
    store = FieldStore(url)
    condition = condition_of(store, None)
    model = family.at(condition)
    flows = ensure_flows(url, model.smoothing, model.spec.filter, Run(), model=name)
    precision = "bfloat16" if has_fast_bfloat16(CPU) else "float32"
    config = InferConfig(precision=precision, errors=True)
    found = predict_box([Member(model, flows)], FieldStore(url), config, CPU)
    assert found.size is not None
    one = model.spec.normalisation
    density = store.read("density")
    log_density = (np.log(density + model.offset) - one.density_mean) / one.density_std
    chosen = np.random.default_rng(0).permutation(density.size)[:MOST]
    residual, size = (
        (field / one.target_scale).reshape(3, -1)[:, chosen]
        for field in (found.mean - store.read("velocity"), found.size)
    )
    coordinates = family.spec.family.frame(condition)[CONSTANTS:]
    return residual, size, log_density.ravel()[chosen], list(coordinates)


def left_out(boxes: Boxes, cosmologies: Sequence[str]) -> Floats:
    """Return the share of the errors of each box within the 68 % interval, calibrated without it.

    Boxes of one cosmology are left out together.

    Parameters
    ----------
    boxes : tuple of list
        What :func:`judge` returns of each box, one list for each part.
    cosmologies : sequence of str
        Name of the cosmology of each box.
    """
    residuals, sizes, densities, coordinates = boxes
    names = sorted(set(cosmologies))
    order = np.random.default_rng(0).permutation(len(names))
    folds = np.array([order[names.index(one)] % FOLDS for one in cosmologies])
    shares = np.zeros(len(folds), np.float32)
    for fold in range(FOLDS):
        kept = np.flatnonzero(folds != fold)
        errors = calibrate(*([part[box] for box in kept] for part in boxes))
        for box in np.flatnonzero(folds == fold):
            log_size = torch.from_numpy(np.log(sizes[box]))
            scale = errors.at(coordinates[box])
            size = scale.size(log_size, torch.from_numpy(densities[box])).numpy()
            shares[box] = (np.abs(residuals[box]) <= size).mean()
    return shares


def cosmology_of(url: str) -> str:
    """Return the folder and the number of the cosmology of a box of ``boxes.py``."""
    path = Path(url)
    return f"{path.parent.name}/{path.name.split('-')[0]}"


def has_whole_cells(url: str) -> bool:
    """Return whether every cell of a box began with the same number of particles."""
    particles = condition_of(FieldStore(url), None).particles_per_cell
    assert particles is not None
    along: float = particles ** (1.0 / 3.0)
    return math.isclose(along, round(along), rel_tol=1e-6)


def main() -> None:
    """Calibrate a model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("fields", nargs="+")
    parser.add_argument("--growth-only", action="store_true")
    parser.add_argument("--left-out", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    before = load_model(model_folder(given.model))
    if not isinstance(before, ModelFamily):
        raise SystemExit(f"{given.model} is not a family of models")
    raw = before.blank(UNCALIBRATED)
    raw.network.load_state_dict(before.network.state_dict())
    urls = [url for url in given.fields if has_whole_cells(url)]
    print(f"{len(urls)} of {len(given.fields)} boxes")
    judged = [judge(raw, given.model, url) for url in urls]
    residuals, sizes, densities, coordinates = boxes = tuple(map(list, zip(*judged, strict=True)))
    if given.left_out:
        off = 100.0 * (left_out(boxes, [cosmology_of(url) for url in urls]) - INSIDE_68)
        rms, worst = np.sqrt(np.mean(off**2)), np.abs(off).max()
        print(f"68 % in boxes left out: off by {rms:.1f} points rms, {worst:.1f} at most")
    if given.growth_only:
        assert before.spec.errors is not None
        found = fit_growth(residuals, sizes)
        errors = replace(before.spec.errors, bend=found.bend, growth=found.growth)
    else:
        errors = calibrate(residuals, sizes, densities, coordinates)
    print(f"bend {errors.bend:.3f}, growth {errors.growth:.3f}")
    model = before.blank(errors)
    model.network.load_state_dict(before.network.state_dict())
    save_model(given.out, model)


if __name__ == "__main__":
    main()
