"""Make the boxes that the shipped models learn from and are judged by.

Usage: python benchmarks/shipped/boxes.py FOLDER [--resume]

COLA with 30 steps on a mesh twice as fine as the particles. ``design.csv`` has 96 cosmologies on a
scrambled Sobol sequence (Omega_m 0.18 to 0.42, sigma8 0.66 to 0.99, h 0.60 to 0.76, n_s 0.92 to 1)
with two redshifts each and boxes of 128, 256 or 512 Mpc/h with 128^3 particles; ``fiducial.csv``
eight boxes near the fiducial cosmology; ``large.csv`` one of 256 Mpc/h with 256^3 particles;
``calibration.csv`` boxes of which only the sizes of errors are learned, ``corners.csv`` such boxes
near the corners of the range of Omega_m and sigma8, ``between.csv`` 32 more such boxes all over the
range, on another Sobol sequence; ``held_out.csv`` the conditions that no training or validation may
see; ``drawn.csv`` eight cosmologies drawn after ``corners.csv`` was made, uniformly from most of
the range, to judge the calibration; ``specialists.csv`` three other boxes of each held-out
condition, for models of that condition alone. Every box is painted on one or two grids, so that
cells have 1 to 4 Mpc/h and 1 to 64 particles. Two cores need up to two hours. The fields are
written to FOLDER/fields, and those of the last six tables to folders of their names. ``--only``
makes one of the tables.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import cosmoflow
from cosmoflow.config import load_settings
from cosmoflow.stages.run import Run

HERE = Path(__file__).parent

GRIDS = {
    "design": {128: (64, 128, 96, 32, 48), 256: (128, 64, 96), 512: (128,)},
    "fiducial": {128: (64,)},
    "large": {256: (128, 64)},
    "calibration": {128: (64, 128, 96, 48), 256: (128, 64, 96), 512: (128,)},
    "corners": {128: (64, 128), 256: (128, 64), 512: (128,)},
    "between": {128: (64, 128), 256: (128, 64), 512: (128,)},
    "drawn": {128: (64, 128), 256: (128, 64)},
    "held_out": {128: (64,), 192: (128, 64), 256: (64, 128)},
    "specialists": {128: (64,), 192: (128, 64), 256: (64, 128)},
}
"""Grids by the size of the box, Mpc/h."""

CROP = 48
"""Cells per axis of a training crop: smaller grids are of no use."""

SEEDS = {
    "design": 5001, "fiducial": 6001, "large": 7001, "calibration": 8001, "corners": 8101,
    "drawn": 8201, "between": 8301, "held_out": 9001, "specialists": 11001,
}  # fmt: skip
PARTICLES = {name: 256 if name == "large" else 128 for name in SEEDS}

PLACES = {
    "fiducial": "a", "large": "b", "design": "c", "calibration": "d", "corners": "k",
    "between": "e", "drawn": "r", "held_out": "h", "specialists": "s",
}  # fmt: skip
"""Beginnings of the names of fields: the last of them, which validate, are of the design."""

APART = ("calibration", "corners", "between", "drawn", "held_out", "specialists")
"""Tables whose fields are not put into ``fields``, from which the shipped models learn."""


def pick_grids(name: str, row: int, snapshot: int, box: int) -> list[int]:
    """Return the grids of a snapshot: two in turn of a design, so that all occur as often."""
    grids = GRIDS[name][box]
    if name not in ("design", "calibration"):
        # Two of the fiducial boxes, the first held-out one and its like also have cells of 1 Mpc/h.
        fine = {"fiducial": (1, 5), "held_out": (0,), "specialists": (0, 1, 2)}.get(name, ())
        return [*grids, 128] if box == 128 and row in fine else [*grids]
    count = len(grids)
    second = (row // count + 2 * snapshot + row + 1) % count
    picked = {grids[(row + snapshot) % count], grids[second]}
    return sorted(grid for grid in picked if grid >= CROP)


def main() -> None:
    """Simulate and paint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--only", choices=SEEDS, help="the boxes of one table")
    given = parser.parse_args()
    existing = "resume" if given.resume else "error"
    for name in [given.only] if given.only else SEEDS:
        seed = SEEDS[name]
        table = HERE / f"{name}.csv"
        simulate = {
            "particles": PARTICLES[name], "steps": 30, "mesh_factor": 2, "design": str(table),
        }  # fmt: skip
        settings = load_settings(options={"seed": seed, "simulate": simulate})
        boxes = given.folder / "boxes" / name
        cosmoflow.simulate(str(boxes), Run(settings, existing=existing))
        out = given.folder / (name if name in APART else "fields")
        out.mkdir(exist_ok=True)
        with table.open() as lines:
            rows = list(csv.DictReader(lines))
        for number, row in enumerate(rows):
            redshifts = sorted(map(float, row["redshift"].split()))
            for snapshot, z in enumerate(redshifts):
                # Names say what differs between the boxes of a run.
                parts = [f"box-{number:04d}"] * (len(rows) > 1) + [f"z{z:g}"] * (len(redshifts) > 1)
                for grid in pick_grids(name, number, snapshot, int(row["box_size"])):
                    paint = {"grid": grid, "fill": "nearest"}
                    url = out / f"{PLACES[name]}{number:02d}-{row['box_size']}-{grid}-z{z:g}.zarr"
                    run = Run(load_settings(options={"paint": paint}), existing=existing)
                    cosmoflow.paint(str(boxes / f"{'-'.join(parts)}.zarr"), str(url), run)


if __name__ == "__main__":
    main()
