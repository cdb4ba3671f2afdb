"""Show that a prediction does not depend on how it is made, and on what it does depend.

Usage: python benchmarks/infer_exactness.py FIELDS [MODEL]

FIELDS is a fields store of 128^3 cells or so. Differences are the largest from the prediction in
one tile of the whole box, over the rms of a component of the velocity; or, where it says so, the
3-D rms in km/s. Shifts and turns are of the inputs, and undone in the output.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from _boxes import make_flows, open_shipped
from _measure import rms
from numpy.typing import NDArray

from cosmoflow.config import load_settings
from cosmoflow.config.networks import InferConfig
from cosmoflow.engine import Session
from cosmoflow.model.sources import MemoryFields
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.symmetry import CUBE_GROUP, Symmetry
from cosmoflow.stages.infer import infer
from cosmoflow.stages.infer.ensemble import Ensemble, Member
from cosmoflow.stages.infer.tiles import Layout
from cosmoflow.stages.run import Run
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.flows import WIENER

CPU = torch.device("cpu")
TILES = (16, 32, 64, 128)
BATCHES = (1, 4)
WORKERS = (1, 2)
Fields = dict[str, NDArray[np.float32]]


def predict(
    model: VelocityModel, fields: Fields, precision: str, tile: int, batch: int = 1
) -> NDArray[np.float32]:
    """Predict a whole box in memory."""
    source = MemoryFields(fields)
    whole = Block((0, 0, 0), (source.grid,) * 3)
    layout = Layout(source.grid, whole.shape, tile, batch)
    config = InferConfig(precision=precision)
    ensemble = Ensemble([Member(model, (WIENER,))], layout, config, CPU)
    return ensemble.predict(ensemble.read(source, whole)).mean


def shift(fields: Fields, cells: tuple[int, int, int]) -> Fields:
    """Move periodic fields."""
    return {name: np.roll(field, cells, axis=(-3, -2, -1)) for name, field in fields.items()}


def turn(fields: Fields, symmetry: Symmetry) -> Fields:
    """Turn density and velocities."""
    return {
        name: symmetry.apply(torch.from_numpy(field), vector=field.ndim == 4).contiguous().numpy()
        for name, field in fields.items()
    }


def show_tilings(model: VelocityModel, fields: Fields, precision: str) -> None:
    """Print the worst difference for tile sizes and batches."""
    grid = fields["density"].shape[0]
    reference = predict(model, fields, precision, grid)
    scale = float(reference.std())
    for tile, batch in itertools.product(TILES, BATCHES):
        found = predict(model, fields, precision, tile, batch)
        worst = np.abs(found - reference).max() / scale
        print(f"{precision:9s} tile {tile:4d}, batch {batch}: {worst:.1e}", flush=True)


def show_workers(fields: str, name: str, precision: str) -> None:
    """Print the worst difference for workers of Ray and sizes of shards, through the stores."""
    with tempfile.TemporaryDirectory() as folder:
        reference = None
        for workers, shard in itertools.product((0, *WORKERS), (32, 64, 128)):
            options = {"choice": "ray" if workers else "serial", "workers": workers or None}
            settings = load_settings(
                overrides=(f"infer.shard={shard}", f"infer.precision={precision}"),
                options={"engine": options},
            )
            with Session(settings.engine) as session:
                out = str(Path(folder) / f"{workers}-{shard}.zarr")
                found = infer(fields, out, name, Run(settings, session))["velocity"].values
            if reference is None:
                reference = found
            worst = np.abs(found - reference).max() / float(reference.std())
            engine = f"{workers} workers of Ray" if workers else "this process"
            same = ", bit for bit" if np.array_equal(found, reference) else ""
            print(f"{precision:9s} {engine}, shards of {shard}: {worst:.1e}{same}", flush=True)


def show_shifts(model: VelocityModel, fields: Fields) -> None:
    """Print what shifts and turns of the box change."""
    reference = predict(model, fields, "float32", 64)
    scale = float(reference.std())
    for cells in ((4, 0, 0), (8, -12, 20), (1, 0, 0), (2, 2, 2), (3, 1, 2)):
        moved = predict(model, shift(fields, cells), "float32", 64)
        back = np.roll(moved, tuple(-c for c in cells), axis=(-3, -2, -1)) - reference
        print(
            f"shift by {cells}: worst {np.abs(back).max() / scale:.1e}, {rms(back):.3f} km/s rms",
            flush=True,
        )
    changes = []
    for symmetry in CUBE_GROUP:
        turned = predict(model, turn(fields, symmetry), "bfloat16", 64)
        undone = symmetry.inverse().apply(torch.from_numpy(turned), vector=True).numpy()
        changes.append(rms(undone - reference))
    print(
        f"48 symmetries: {min(changes):.2f} to {max(changes):.2f} km/s rms, "
        f"mean {np.mean(changes):.2f}"
    )


def main(url: str, name: str = "residual-small") -> None:
    """Print the tables."""
    model = open_shipped(name, url)
    model.network.to(memory_format=torch.channels_last_3d)
    make_flows(url, model)
    store = FieldStore(url)
    fields = {name: store.read(name) for name in ("density", WIENER)}
    for precision in ("float32", "bfloat16"):
        show_tilings(model, fields, precision)
        show_workers(url, name, precision)
    show_shifts(model, fields)
    both = [predict(model, fields, precision, 64) for precision in ("float32", "bfloat16")]
    print(f"bfloat16 against float32: {rms(both[1] - both[0]):.3f} km/s rms")
    if "velocity" in store.variables:
        true = store.read("velocity")
        residuals = [rms(found - true) for found in both]
        print("residual, float32 and bfloat16: {:.3f} and {:.3f} km/s".format(*residuals))


if __name__ == "__main__":
    main(*sys.argv[1:3])
