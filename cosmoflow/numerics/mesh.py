"""Particle-mesh assignment: cloud-in-cell painting of a density and interpolation of a force.

The centre of cell ``i`` is at ``(i + 1/2) L / n``. Compiled loops handle tensors in main memory,
``index_add_`` and gathers handle tensors on a GPU; both accept positions any number of periods
outside the box.

References
----------
Hockney & Eastwood 1981, Computer Simulation Using Particles, section 5-2 (cloud-in-cell).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics import fourier

SLAB_PLANES = 4
"""Minimum thickness of a slab, in cells: many slabs for many threads, small enough for a cache."""
BLOCKS = 256
"""Pieces of the particle list in the counting sort; fixed, so that threads change no result."""
GPU_CHUNK = 1 << 23
"""Particles handled at once on a GPU: about 0.5 GB of temporaries."""


def paint_contrast(
    positions: Tensor,
    box_size: float,
    cells: int,
    *,
    out: Tensor | None = None,
    scratch: Tensor | None = None,
) -> Tensor:
    """Return the cloud-in-cell density contrast of equal-mass particles.

    Parameters
    ----------
    positions : Tensor
        Shape ``(n, 3)``, float32, comoving Mpc/h, taken modulo the box.
    box_size : float
        Box size, Mpc/h.
    cells : int
        Cells per axis, at least 2.
    out : Tensor, optional
        Output, shape ``(cells, cells, cells)``, float32, contiguous.
    scratch : Tensor, optional
        Any contiguous float32 or complex64 tensor of at least 4 n bytes, which is overwritten with
        the sorted indices instead of allocating memory. Unused on a GPU.

    Returns
    -------
    Tensor
        Shape ``(cells, cells, cells)``, float32, ``rho / mean(rho) - 1``.

    Notes
    -----
    On a CPU the particles' indices are counting-sorted by slabs of planes. A slab's particles touch
    that slab and the first plane of the next one, so all even slabs are painted in parallel, then
    all odd ones. There are no atomics and the order of every sum is fixed: the result is identical
    to the bit for any number of threads. On a GPU the sums use atomics, in no fixed order.
    """
    if out is None:
        out = fourier.empty((cells,) * 3, device=positions.device)
    count = positions.shape[0]
    # Starting at -1 with weights of cells / particles saves a pass over the grid.
    weight = cells**3 / count
    out.fill_(-1.0)
    if positions.device.type == "cpu":
        slabs = max(1, 2 * (cells // (2 * SLAB_PLANES)))
        index = _index_array(count, scratch)
        x = positions.contiguous().view(-1).numpy()
        scale, grid = cells / box_size, out.view(-1).numpy()
        starts = _sort_by_slab(x, scale, cells, slabs, BLOCKS, index)
        _paint_slabs(x, index, starts, scale, np.float32(weight), grid, cells)
    else:
        _paint_torch(positions, box_size, weight, out)
    return out


def interpolate(
    field: Tensor,
    positions: Tensor,
    box_size: float,
    out: Tensor,
    *,
    scale: float = 1.0,
    accumulate: bool = False,
) -> Tensor:
    """Interpolate a field at particles with the cloud-in-cell kernel, the adjoint of painting.

    Parameters
    ----------
    field : Tensor
        Shape ``(n, n, n)``, float32.
    positions : Tensor
        Shape ``(p, 3)``, float32, comoving Mpc/h, taken modulo the box.
    box_size : float
        Box size, Mpc/h.
    out : Tensor
        Shape ``(p,)``, float32, any stride (such as a column of a ``(p, 3)`` tensor).
    scale : float
        Factor on the interpolated values.
    accumulate : bool
        Add to ``out`` instead of replacing it.

    Returns
    -------
    Tensor
        ``out``.
    """
    if positions.device.type == "cpu":
        cells = field.shape[0]
        _interpolate(
            field.contiguous().view(-1).numpy(),
            positions.contiguous().view(-1).numpy(),
            cells / box_size,
            np.float32(scale),
            accumulate,
            out.numpy(),
            cells,
            BLOCKS,
        )
    else:
        _interpolate_torch(field, positions, box_size, out, scale, accumulate)
    return out


# --- CPU -----------------------------------------------------------------------------------------


def _index_array(count: int, scratch: Tensor | None) -> NDArray[Any]:
    """Return an array for ``count`` indices, inside ``scratch`` if it is large enough."""
    if count >= 2**31:
        return np.empty(count, dtype=np.int64)
    if scratch is not None and scratch.numel() * scratch.element_size() >= 4 * count:
        return scratch.view(-1).numpy().view(np.int32)[:count]
    return np.empty(count, dtype=np.int32)


@numba.njit(inline="always")
def _cell(x: float, inverse_cell: float, cells: int) -> tuple[Any, Any, Any]:
    """Return the two cells that share a particle along one axis, and the upper one's share.

    Double precision costs nothing here and leaves only the rounding of ``x``. The modulus, taken
    only outside the box, keeps any value, NaN included, in range. Unsigned indices avoid code for
    numpy's wrap-around of negative indices.
    """
    u = x * inverse_cell - 0.5
    low = np.floor(u)
    i: Any = np.int64(low)
    if np.uint64(i) >= np.uint64(cells):
        i = i % cells
    j = i + 1
    if j == cells:
        j = 0
    return np.uint64(i), np.uint64(j), np.float32(u - low)


@numba.njit(parallel=True, cache=True, nogil=True)
def _sort_by_slab(
    x: NDArray[np.float32],
    inverse_cell: float,
    cells: int,
    slabs: int,
    blocks: int,
    index: NDArray[Any],
) -> NDArray[np.int64]:
    """Write particles' indices to ``index``, stably sorted by slab; return the slabs' starts."""
    count = index.shape[0]
    slab_of = np.empty(cells, np.int64)
    for i in range(cells):
        slab_of[i] = i * slabs // cells
    cursor = np.zeros((blocks, slabs), np.int64)
    for b in numba.prange(blocks):
        tally = np.zeros(slabs, np.int64)
        for p in range(b * count // blocks, (b + 1) * count // blocks):
            i, _, _ = _cell(x[3 * p], inverse_cell, cells)
            tally[slab_of[i]] += 1
        cursor[b, :] = tally
    starts = np.empty(slabs + 1, np.int64)
    total = 0
    for s in range(slabs):
        starts[s] = total
        for b in range(blocks):
            number = cursor[b, s]
            cursor[b, s] = total
            total += number
    starts[slabs] = total
    for b in numba.prange(blocks):
        place = cursor[b, :].copy()
        for p in range(b * count // blocks, (b + 1) * count // blocks):
            i, _, _ = _cell(x[3 * p], inverse_cell, cells)
            s = slab_of[i]
            index[place[s]] = p
            place[s] += 1
    return starts


@numba.njit(cache=True, nogil=True)
def _paint_run(
    x: NDArray[np.float32],
    run: NDArray[Any],
    inverse_cell: float,
    weight: np.float32,
    grid: NDArray[np.float32],
    cells: int,
) -> None:
    """Add ``weight`` times the kernel of the particles in ``run`` to a flat ``grid``."""
    n, one, two, three = np.uint64(cells), np.uint64(1), np.uint64(2), np.uint64(3)
    for q in range(run.shape[0]):
        p = np.uint64(run[q]) * three
        i0, i1, dx = _cell(x[p], inverse_cell, cells)
        j0, j1, dy = _cell(x[p + one], inverse_cell, cells)
        k0, k1, dz = _cell(x[p + two], inverse_cell, cells)
        # Each share is the remainder of its parent, so that the shares sum to the weight exactly.
        w1 = weight * dx
        w0 = weight - w1
        w01 = w0 * dy
        w00 = w0 - w01
        w11 = w1 * dy
        w10 = w1 - w11
        w001, w011, w101, w111 = w00 * dz, w01 * dz, w10 * dz, w11 * dz
        r00, r01 = (i0 * n + j0) * n, (i0 * n + j1) * n
        r10, r11 = (i1 * n + j0) * n, (i1 * n + j1) * n
        grid[r00 + k0] += w00 - w001
        grid[r00 + k1] += w001
        grid[r01 + k0] += w01 - w011
        grid[r01 + k1] += w011
        grid[r10 + k0] += w10 - w101
        grid[r10 + k1] += w101
        grid[r11 + k0] += w11 - w111
        grid[r11 + k1] += w111


@numba.njit(parallel=True, cache=True, nogil=True)
def _paint_slabs(
    x: NDArray[np.float32],
    index: NDArray[Any],
    starts: NDArray[np.int64],
    inverse_cell: float,
    weight: np.float32,
    grid: NDArray[np.float32],
    cells: int,
) -> None:
    """Paint all slabs: the even ones in parallel, then the odd ones."""
    slabs = len(starts) - 1
    for parity in range(min(2, slabs)):
        for half in numba.prange((slabs - parity + 1) // 2):
            s = 2 * half + parity
            _paint_run(x, index[starts[s] : starts[s + 1]], inverse_cell, weight, grid, cells)


@numba.njit(parallel=True, cache=True, nogil=True)
def _interpolate(
    field: NDArray[np.float32],
    x: NDArray[np.float32],
    inverse_cell: float,
    scale: np.float32,
    accumulate: bool,
    out: NDArray[np.float32],
    cells: int,
    blocks: int,
) -> None:
    """Interpolate a flat ``field`` at all particles, block by block."""
    count = out.shape[0]
    n, one, two, three = np.uint64(cells), np.uint64(1), np.uint64(2), np.uint64(3)
    for block in numba.prange(blocks):
        for particle in range(block * count // blocks, (block + 1) * count // blocks):
            q = np.uint64(particle)
            p = q * three
            i0, i1, dx = _cell(x[p], inverse_cell, cells)
            j0, j1, dy = _cell(x[p + one], inverse_cell, cells)
            k0, k1, dz = _cell(x[p + two], inverse_cell, cells)
            r00, r01 = (i0 * n + j0) * n, (i0 * n + j1) * n
            r10, r11 = (i1 * n + j0) * n, (i1 * n + j1) * n
            f00, f01, f10, f11 = field[r00 + k0], field[r01 + k0], field[r10 + k0], field[r11 + k0]
            f00 += dz * (field[r00 + k1] - f00)
            f01 += dz * (field[r01 + k1] - f01)
            f10 += dz * (field[r10 + k1] - f10)
            f11 += dz * (field[r11 + k1] - f11)
            f00 += dy * (f01 - f00)
            f10 += dy * (f11 - f10)
            value = scale * (f00 + dx * (f10 - f00))
            # A factor of 0 on the old value would keep a NaN of an uninitialised buffer.
            out[q] = out[q] + value if accumulate else value


# --- GPU -----------------------------------------------------------------------------------------


def _corners(x: Tensor, box_size: float, cells: int) -> tuple[list[tuple[Tensor, Tensor]], ...]:
    """Return, per axis, the two cells that share each particle and their shares."""
    axes = []
    for axis in range(3):
        u = x[:, axis].double() * (cells / box_size) - 0.5
        low = torch.floor(u)
        share = (u - low).float()
        i = low.long().remainder_(cells)
        axes.append([(i, 1.0 - share), ((i + 1).remainder_(cells), share)])
    return tuple(axes)


def _paint_torch(positions: Tensor, box_size: float, weight: float, out: Tensor) -> None:
    cells, grid = out.shape[0], out.view(-1)
    for x in torch.split(positions, GPU_CHUNK):
        along_x, along_y, along_z = _corners(x, box_size, cells)
        for i, wx in along_x:
            for j, wy in along_y:
                row, w = (i * cells + j) * cells, wx * wy * weight
                for k, wz in along_z:
                    grid.index_add_(0, row + k, w * wz)


def _interpolate_torch(
    field: Tensor,
    positions: Tensor,
    box_size: float,
    out: Tensor,
    scale: float,
    accumulate: bool,
) -> None:
    cells, values = field.shape[0], field.view(-1)
    for x, target in zip(
        torch.split(positions, GPU_CHUNK), torch.split(out, GPU_CHUNK), strict=True
    ):
        along_x, along_y, along_z = _corners(x, box_size, cells)
        total = torch.zeros(x.shape[0], dtype=torch.float32, device=x.device)
        for i, wx in along_x:
            for j, wy in along_y:
                row, w = (i * cells + j) * cells, wx * wy
                for k, wz in along_z:
                    total.addcmul_(w * wz, values[row + k])
        if accumulate:
            target.add_(total, alpha=scale)
        else:
            torch.mul(total, scale, out=target)
