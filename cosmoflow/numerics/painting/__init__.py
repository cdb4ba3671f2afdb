"""Mass assignment of density and momentum in one pass, exact in any order.

Every contribution is rounded once to a fixed-point integer, and the sums are integer sums. Integer
addition is associative, so to the last bit a grid does not depend on the order of the particles,
their chunks, the shards of the grid or the number of workers and threads.
"""

from cosmoflow.numerics.painting.batches import batch_size, cut_batches
from cosmoflow.numerics.painting.blocks import SCHEME_ORDER, Piece
from cosmoflow.numerics.painting.checks import check_particles
from cosmoflow.numerics.painting.fields import (
    FIELDS,
    BlockPainter,
    divide_momentum,
    paint_block,
)
from cosmoflow.numerics.painting.nearest import fill_reach, fill_velocity
from cosmoflow.numerics.painting.sorting import bucket_particles

__all__ = [
    "FIELDS",
    "SCHEME_ORDER",
    "BlockPainter",
    "Piece",
    "batch_size",
    "bucket_particles",
    "check_particles",
    "cut_batches",
    "divide_momentum",
    "fill_reach",
    "fill_velocity",
    "paint_block",
]
