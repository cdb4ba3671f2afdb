"""Painting of whole tiles: a tile's particles are summed, and the sums give its fields."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np
from numba import njit

from cosmoflow.numerics.compiled import compiled
from cosmoflow.numerics.painting.shares import (
    COARSE,
    COARSE_BITS,
    LARGE,
    LEAST_MASS,
    MASS_UNITS,
    MOMENTUM_UNITS,
    MOST_MASS,
    cic_shares,
    ngp_shares,
    pcs_shares,
    tsc_shares,
)
from cosmoflow.numerics.painting.vectors import (
    LINE,
    UNPACKED,
    address,
    finish_streams,
    float32_at,
    float64_at,
    prefetch,
    spread,
    stream,
    unpack,
)

_AHEAD: Final = 4
"""Number of runs by which prefetching is ahead of reading."""
_ONE, _TWO, _LINE = np.uint64(1), np.uint64(2), np.uint64(LINE)


@compiled()
def _too_heavy(sums, size, channels):  # type: ignore[no-untyped-def]
    """Check whether a cell has so much mass that adding MOST_MASS might overflow."""
    heaviest = np.int64(0)
    for cell in range(0, size, channels):
        heaviest = max(heaviest, sums[cell])
    return heaviest >= MOST_MASS * MASS_UNITS


@compiled()
def _fold(sums, shape, channels, margin, cells, folds):  # type: ignore[no-untyped-def]
    """Add the margins of axes that span a whole period to the cells of which they are images."""
    for i in range(shape[0]):
        to_i = margin + (i - margin) % cells if folds[0] else i
        for j in range(shape[1]):
            to_j = margin + (j - margin) % cells if folds[1] else j
            for k in range(shape[2]):
                to_k = margin + (k - margin) % cells if folds[2] else k
                if to_i != i or to_j != j or to_k != k:
                    source = ((i * shape[1] + j) * shape[2] + k) * channels
                    target = ((to_i * shape[1] + to_j) * shape[2] + to_k) * channels
                    for c in range(channels):
                        sums[target + c] += sums[source + c]


@compiled()
def _load_tile(sums, shape, channels, margin, kept):  # type: ignore[no-untyped-def]
    """Copy the sums that a tile has kept between its margins."""
    length = (shape[2] - 2 * margin) * channels
    source = 0
    for i in range(margin, shape[0] - margin):
        for j in range(margin, shape[1] - margin):
            at = ((i * shape[1] + j) * shape[2] + margin) * channels
            for k in range(length):
                sums[np.uint64(at + k)] = kept[np.uint64(source + k)]
            source += length


@compiled()
def _keep_tile(sums, shape, channels, margin, kept):  # type: ignore[no-untyped-def]
    """Copy the sums of a tile without its margins to where they are kept."""
    length = (shape[2] - 2 * margin) * channels
    target = 0
    for i in range(margin, shape[0] - margin):
        for j in range(margin, shape[1] - margin):
            at = ((i * shape[1] + j) * shape[2] + margin) * channels
            for k in range(length):
                kept[np.uint64(target + k)] = sums[np.uint64(at + k)]
            target += length


@njit(inline="always")
def _write(values, count, factor, field, at):  # type: ignore[no-untyped-def]
    """Write ``count`` values times a factor to a flat field; full lines bypass the cache."""
    lead = min(-(address(field) // 4 + at) % LINE, count)
    streamed = lead + (count - lead) // LINE * LINE
    for k in range(lead):
        field[np.uint64(at + k)] = values[k] * factor
    for k in range(lead, streamed, LINE):
        stream(values, k, factor, field, at + k)
    for k in range(streamed, count):
        field[np.uint64(at + k)] = values[k] * factor


@njit(inline="always")
def _divide(momentum, inverse, count, empty):  # type: ignore[no-untyped-def]
    """Turn sums of momenta into velocities; cells without mass get the background velocity."""
    for k in range(count):
        speed = momentum[k] * inverse[k]
        momentum[k] = speed if inverse[k] != 0.0 else empty


@compiled(error_model="numpy")
def _store_tile(  # type: ignore[no-untyped-def]
    sums,
    shape,
    channels,
    margin,
    first,
    last,
    block,
    scale,
    background,
    density,
    momentum,
    velocity,
):
    """Turn the sums of a tile into fields; return how many cells have too much mass.

    ``shape`` is the shape of the sums, ``first`` and ``last`` are the tile's corners in the block.
    The fields are flat, which is much faster here than slices, whose references are counted.
    """
    plane = block[0] * block[1] * block[2]
    count = last[2] - first[2]
    # Rows are unpacked in whole steps.
    room = np.empty((4, count + UNPACKED))
    mass, px, py, pz = room[0], room[1], room[2], room[3]
    overflown = 0
    for i in range(last[0] - first[0]):
        for j in range(last[1] - first[1]):
            start = (((margin + i) * shape[1] + margin + j) * shape[2] + margin) * channels
            at = ((first[0] + i) * block[1] + first[1] + j) * block[2] + first[2]
            for k in range(0, count, UNPACKED):
                if channels == 1:
                    unpack(sums, start + k, (mass,), k)
                else:
                    unpack(sums, start + 4 * k, (mass, px, py, pz), k)
            for k in range(count):
                overflown += mass[k] >= MOST_MASS * MASS_UNITS
            if density.shape[0] > 0:
                _write(mass, count, scale / MASS_UNITS, density, at)
            if momentum.shape[0] > 0:
                factor = scale / MOMENTUM_UNITS
                _write(px, count, factor, momentum, at)
                _write(py, count, factor, momentum, at + plane)
                _write(pz, count, factor, momentum, at + 2 * plane)
            if velocity.shape[0] > 0:
                for k in range(count):
                    # 0 marks cells without mass.
                    factor = (MASS_UNITS / MOMENTUM_UNITS) / mass[k]
                    mass[k] = factor if mass[k] >= LEAST_MASS else 0.0
                _divide(px, mass, count, background[0])
                _divide(py, mass, count, background[1])
                _divide(pz, mass, count, background[2])
                _write(px, count, 1.0, velocity, at)
                _write(py, count, 1.0, velocity, at + plane)
                _write(pz, count, 1.0, velocity, at + 2 * plane)
    return overflown


@cache
def tile_painter(  # noqa: PLR0915
    order: int, moving: bool, weighted: bool
) -> Callable[..., int]:
    """Compile the painting of a range of tiles.

    Parameters
    ----------
    order : int
        Cells per axis of a cloud.
    moving : bool
        Whether momenta are painted too.
    weighted : bool
        Whether particles have individual masses.

    Returns
    -------
    callable
        See the source for its parameters. It returns the number of cells with too much mass; it
        may stop early at the first one.
    """
    margin = order - 1

    @compiled()
    def paint_tiles(  # type: ignore[no-untyped-def] # noqa: PLR0912, PLR0915
        first_tile,  # first tile of the range
        last_tile,  # one after the last tile of the range
        starts,  # attributes of Streams, up to mass_stride
        runs,
        sources,
        stride,
        m_stride,
        mean_mass,
        scale,  # the first cell of a cloud is floor(x scale + offset)
        offset,
        cells,  # per axis of the periodic grid
        origin,  # first cell of the block, per axis
        block,  # cells of the block per axis
        tiles,  # number of tiles per axis
        edges,  # tile edges per axis, from the origin
        lengths,  # cells per axis and tile
        folds,  # per axis
        kept,  # sums of tiles from earlier batches, without margins; may be empty
        places,  # of the sums of each tile in ``kept``
        begun,  # whether a tile has kept sums
        added_before,  # mean masses of each tile since its sums were checked
        finish,  # whether to write the fields, or to keep the sums
        density_scale,  # density over its mean per mean mass in a cell
        background,
        density,  # fields, flat; empty ones are not painted
        momentum,
        velocity,
    ):
        step_z = 4 if moving else 1
        size = step_z
        for axis in range(3):
            size *= lengths[axis].max() + 2 * margin
        # Rows are unpacked in whole steps, the last ones of the sums too.
        sums = np.empty(size + UNPACKED * step_z, np.int64)
        overflown = 0
        for tile in range(first_tile, last_tile):
            if not finish and starts[tile] == starts[tile + 1]:
                continue
            ti, tj, tk = tile // (tiles[1] * tiles[2]), tile // tiles[2] % tiles[1], tile % tiles[2]
            shape = (
                lengths[0, ti] + 2 * margin,
                lengths[1, tj] + 2 * margin,
                lengths[2, tk] + 2 * margin,
            )
            corner_x = origin[0] + edges[0, ti] - margin
            corner_y = origin[1] + edges[1, tj] - margin
            corner_z = origin[2] + edges[2, tk] - margin
            end_x, end_y, end_z = shape[0] - order, shape[1] - order, shape[2] - order
            step_y = shape[2] * step_z
            step_x = shape[1] * step_y
            sums[: shape[0] * step_x] = 0
            added = added_before[tile]  # mean masses since the sums were checked
            own = kept[places[tile] : places[tile + 1]]
            if begun[tile]:
                _load_tile(sums, shape, np.int64(step_z), np.int64(margin), own)
            for r in range(starts[tile], starts[tile + 1]):
                x, v, m = sources[runs[r, 0], 0], sources[runs[r, 0], 1], sources[runs[r, 0], 2]
                # Runs are too short for the processor's own prefetching.
                ahead = min(r + _AHEAD, starts[tile + 1] - 1)
                row = np.uint64(runs[ahead, 1] * stride)
                prefetch(sources[runs[ahead, 0], 0], row)
                prefetch(sources[runs[ahead, 0], 0], row + _LINE)
                if moving:
                    prefetch(sources[runs[ahead, 0], 1], row)
                    prefetch(sources[runs[ahead, 0], 1], row + _LINE)
                if not weighted:
                    added += runs[r, 2] - runs[r, 1]
                    if added >= MOST_MASS:
                        if _too_heavy(sums, shape[0] * step_x, step_z):
                            return overflown + 1
                        added = float(runs[r, 2] - runs[r, 1])
                for p in range(runs[r, 1], runs[r, 2]):
                    q = np.uint64(p) * np.uint64(stride)
                    ux = float32_at(x, q) * scale + offset
                    uy = float32_at(x, q + _ONE) * scale + offset
                    uz = float32_at(x, q + _TWO) * scale + offset
                    low_x, low_y, low_z = np.floor(ux), np.floor(uy), np.floor(uz)
                    i = np.int64(low_x) - corner_x
                    j = np.int64(low_y) - corner_y
                    k = np.int64(low_z) - corner_z
                    if (
                        np.uint64(i) > np.uint64(end_x)
                        or np.uint64(j) > np.uint64(end_y)
                        or np.uint64(k) > np.uint64(end_z)
                    ):
                        # Wrap around the periodic box, but skip NaN and positions far outside.
                        if not (
                            abs(low_x) <= 2 * cells
                            and abs(low_y) <= 2 * cells
                            and abs(low_z) <= 2 * cells
                        ):
                            continue
                        i, j, k = i % cells, j % cells, k % cells
                        if i > end_x or j > end_y or k > end_z:
                            continue
                    fx, fy, fz = ux - low_x, uy - low_y, uz - low_z
                    if order == 1:
                        wx, wy, wz = ngp_shares(fx), ngp_shares(fy), ngp_shares(fz)
                    elif order == 2:
                        wx, wy, wz = cic_shares(fx), cic_shares(fy), cic_shares(fz)
                    elif order == 3:
                        wx, wy, wz = tsc_shares(fx), tsc_shares(fy), tsc_shares(fz)
                    else:
                        wx, wy, wz = pcs_shares(fx), pcs_shares(fy), pcs_shares(fz)
                    start = i * step_x + j * step_y + k * step_z
                    a, u = MASS_UNITS, MOMENTUM_UNITS
                    if weighted:
                        mass = float64_at(m, np.uint64(p) * np.uint64(m_stride)) / mean_mass
                        a, u = mass * MASS_UNITS, mass * MOMENTUM_UNITS
                        added += mass
                        if added >= MOST_MASS:
                            if mass >= MOST_MASS or _too_heavy(sums, shape[0] * step_x, step_z):
                                return overflown + 1
                            added = mass
                    if not moving:
                        if not weighted:
                            spread(sums, start, step_x, step_y, (a,), wx, wy, wz, None)
                        else:
                            coarse = a >= LARGE
                            f, shift = (COARSE, COARSE_BITS) if coarse else (1.0, 0)
                            spread(sums, start, step_x, step_y, (f * a,), wx, wy, wz, shift)
                    else:
                        b = u * float32_at(v, q)
                        c = u * float32_at(v, q + _ONE)
                        d = u * float32_at(v, q + _TWO)
                        if not weighted:
                            spread(sums, start, step_x, step_y, (a, b, c, d), wx, wy, wz, None)
                        else:
                            coarse = max(a, abs(b), abs(c), abs(d)) >= LARGE
                            f, shift = (COARSE, COARSE_BITS) if coarse else (1.0, 0)
                            amounts = (f * a, f * b, f * c, f * d)
                            spread(sums, start, step_x, step_y, amounts, wx, wy, wz, shift)
            if folds[0] or folds[1] or folds[2]:
                _fold(sums, shape, np.int64(step_z), np.int64(margin), cells, folds)
            if not finish:
                _keep_tile(sums, shape, np.int64(step_z), np.int64(margin), own)
                begun[tile] = True
                added_before[tile] = added
                continue
            overflown += _store_tile(
                sums,
                shape,
                np.int64(step_z),
                np.int64(margin),
                (edges[0, ti], edges[1, tj], edges[2, tk]),
                (edges[0, ti + 1], edges[1, tj + 1], edges[2, tk + 1]),
                block,
                density_scale,
                background,
                density,
                momentum,
                velocity,
            )
        finish_streams()
        return overflown

    painter: Callable[..., int] = paint_tiles
    return painter
