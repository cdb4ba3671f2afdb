"""Clouds of the textbook and boxes of few particles, for the tests of painting."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from cosmoflow.numerics.blocks import grid_blocks
from cosmoflow.numerics.painting import BlockPainter, bucket_particles, cut_batches
from tests.conftest import cut

SCHEMES = ("ngp", "cic", "tsc", "pcs")
NAMES = ("density", "momentum", "velocity")
quick = settings(max_examples=40)


def paint_in_pieces(
    position,
    velocity,
    grid,
    box,
    scheme,
    *,
    mass=None,
    shard=None,
    chunks=1,
    rows=None,
    **options,
):
    """Paint a box as the stage does: bucket every chunk, paint every shard; return whole fields."""
    shard = shard or grid
    weight = np.ones(len(position)) if mass is None else mass
    background = (velocity * weight[:, None]).sum(axis=0, dtype=np.float64) / weight.sum()
    pieces = [
        (position[rows], velocity[rows], None if mass is None else mass[rows])
        for rows in np.array_split(np.arange(len(position)), chunks)
    ]
    interlaced = "shift" in options
    buckets = [bucket_particles(p, grid, box, shard, scheme, interlaced=interlaced) for p in pieces]
    lead = {"density": (), "momentum": (3,), "velocity": (3,)}
    whole = {name: np.full((*lead[name], grid, grid, grid), np.nan, np.float32) for name in NAMES}
    for index, block in enumerate(grid_blocks(grid, shard)):
        painter = BlockPainter(
            block,
            grid,
            box,
            scheme,
            count=len(position),
            mean_mass=weight.mean(),
            background=background,
            **options,
        )
        parts = [bucket[index] for bucket in buckets]
        for batch, more in cut_batches(parts, rows or len(position)):
            if more:
                painter.add(batch)
                batch.clear()
        fields = painter.finish(batch)
        for name in NAMES:
            cut(whole[name], block)[:] = fields[name]
    return whole


def textbook_weight(scheme, s):
    """Weight of a cell whose centre lies ``s`` cells from the particle (Hockney & Eastwood)."""
    r = np.abs(s)
    if scheme == "ngp":
        return ((s > -0.5) & (s <= 0.5)).astype(float)
    if scheme == "cic":
        return np.clip(1.0 - r, 0.0, None)
    if scheme == "tsc":
        return np.where(r < 0.5, 0.75 - r**2, np.where(r < 1.5, 0.5 * (1.5 - r) ** 2, 0.0))
    near, far = (4.0 - 6.0 * r**2 + 3.0 * r**3) / 6.0, (2.0 - r) ** 3 / 6.0
    return np.where(r < 1.0, near, np.where(r < 2.0, far, 0.0))


def brute_force(position, velocity, grid, box, scheme, mass=None):
    """Density and momentum from the distance of every particle to every cell and its images."""
    centres = np.arange(grid) + 0.5
    u = position.astype(np.float64) * (grid / box)
    images = grid * np.arange(-3, 4)
    s = centres[:, None] + images - u[..., None, None]
    x, y, z = np.moveaxis(textbook_weight(scheme, s).sum(axis=-1), 1, 0)
    weight = np.ones(len(u)) if mass is None else mass / mass.mean()
    per_cell = grid**3 / len(u)
    density = per_cell * np.einsum("p,pi,pj,pk->ijk", weight, x, y, z)
    momentum = per_cell * np.einsum(
        "p,pc,pi,pj,pk->cijk", weight, velocity.astype(np.float64), x, y, z
    )
    return density, momentum


@st.composite
def boxes(draw):
    """A few particles anywhere in a small box, some on borders, some of unequal mass."""
    grid = draw(st.integers(2, 7))
    box = draw(st.sampled_from([1.0, 7.3, 250.0]))
    count = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    position = (rng.random((count, 3)) * box).astype(np.float32)
    special = (np.arange(2 * grid) * (0.5 * box / grid)).astype(np.float32)
    where = rng.random(position.shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    position = np.where(where, rng.choice(special, position.shape), position)
    position = np.minimum(position, np.nextafter(np.float32(box), np.float32(0.0)))
    velocity = (rng.normal(size=(count, 3)) * 400.0 + 50.0).astype(np.float32)
    mass = rng.lognormal(0.0, 2.0, count) if draw(st.booleans()) else None
    return position, velocity, mass, grid, box
