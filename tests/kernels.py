"""Compile the kernels of painting once, before test processes that would each compile them.

``python -m tests.kernels``: 40 s of one core after a change of the kernels, then a second or two.
"""

import itertools

import numpy as np

from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.painting import paint_block

CELLS, PARTICLES = 4, 64


def compile_kernels():
    """Paint a few particles in every way that has kernels of its own; numba keeps them on disk."""
    rng = np.random.default_rng(0)
    position = rng.random((PARTICLES, 3), np.float32) * CELLS
    velocity = rng.random((PARTICLES, 3), np.float32)
    masses = (None, rng.random(PARTICLES))
    fields = (("density", "momentum"), ("density",))
    whole = Block((0, 0, 0), (CELLS,) * 3)
    for mass, names, scheme in itertools.product(masses, fields, ("ngp", "cic", "tsc", "pcs")):
        pieces = [(position, velocity, mass)]
        paint_block(pieces, whole, CELLS, CELLS, scheme, count=PARTICLES, fields=names)


if __name__ == "__main__":
    compile_kernels()
