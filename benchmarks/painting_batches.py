"""What it costs to paint a shard in batches, and what sorting within a batch gains.

Usage: python benchmarks/painting_batches.py [--cells 128] [--particles 1 8]

One thread paints density and momentum of a shard from particles that are shuffled, or in the order
of a lattice, in batches of several sizes. "no tiles" adds the particles of one batch to the sums of
the whole shard in their given order. Times are CPU seconds for a million particles, the best of
several rounds in which all take turns.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import numba
import numpy as np
from numpy.typing import NDArray

from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.painting import BlockPainter, Piece, cut_batches, fields

ROUNDS = 4
PART = 1 << 18
"""Particles of a part that arrives."""


def make_parts(cells: int, per_cell: int, *, ordered: bool) -> list[Piece]:
    """Return displaced particles of a lattice, in parts as tasks hand them on."""
    rng = np.random.default_rng(1)
    count = per_cell * cells**3
    place = np.arange(count) if ordered else rng.permutation(count)
    lattice = np.stack(np.unravel_index(place // per_cell, (cells,) * 3), axis=1)
    position = (lattice + rng.normal(0.5, 1.5, (count, 3))) % cells
    position = np.minimum(position, np.nextafter(cells, 0)).astype(np.float32)
    position[position >= cells] = 0.0
    velocity = rng.normal(0.0, 300.0, (count, 3)).astype(np.float32)
    return [
        (position[start : start + PART], velocity[start : start + PART], None)
        for start in range(0, count, PART)
    ]


def paint(
    parts: list[Piece], cells: int, rows: int
) -> tuple[float, dict[str, NDArray[np.float32]]]:
    """Paint a shard inside a larger box; return CPU seconds and fields."""
    block = Block((0, 0, 0), (cells,) * 3)
    count = sum(len(position) for position, _, _ in parts)
    begun = time.process_time()
    painter = BlockPainter(
        block, 2 * cells, 2.0 * cells, count=count, fields=("density", "momentum")
    )
    for batch, more in cut_batches(parts, rows):
        if more or rows < count:
            painter.add(batch)
            batch.clear()
    found = painter.finish(batch)
    return time.process_time() - begun, found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=128)
    parser.add_argument("--particles", type=int, nargs="+", default=[1, 8])
    given = parser.parse_args()
    numba.set_num_threads(1)
    tile = fields.TILE
    for per_cell in given.particles:
        for ordered in (True, False):
            parts = make_parts(given.cells, per_cell, ordered=ordered)
            total = per_cell * given.cells**3
            sizes = [1 << bits for bits in range(19, 25) if 1 << bits <= total]
            spent, expected = defaultdict[str, list[float]](list), None
            for _ in range(ROUNDS):
                for name, rows in [("no tiles", total), *((f"{n:,}", n) for n in sizes)]:
                    fields.TILE = (given.cells,) * 3 if name == "no tiles" else tile
                    seconds, found = paint(parts, given.cells, rows)
                    expected = expected or found
                    assert all(np.array_equal(found[key], expected[key]) for key in found)
                    spent[name].append(seconds / total * 1e6)
            best = ", ".join(f"{name}: {min(times):.3f}" for name, times in spent.items())
            print(f"{per_cell} a cell, {'ordered' if ordered else 'shuffled'}: {best}", flush=True)


if __name__ == "__main__":
    main()
