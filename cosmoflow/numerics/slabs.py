r"""The Fourier transform of a periodic cube in slabs; no process holds more than one slab.

A real transform of a cube is one of its planes along y and z, then one along x:

1. *x-slab*, planes ``(p, n, n)``: :func:`forward_planes` transforms them along y and z and cuts the
   result ``(p, n, n // 2 + 1)`` into parts along y, one for every y-slab;
2. *y-slab*, rows of modes: :func:`transform_rows` joins the parts of all x-slabs along x and
   transforms them, which gives all modes ``(n, r, n // 2 + 1)`` of these rows. All work on modes
   happens here: :func:`filter_rows` multiplies them by functions of k, transforms the products
   back along x and cuts them into parts along x;
3. *x-slab*: :func:`joined_blocks` joins the parts of all y-slabs along y, and the inverse transform
   along y and z, :func:`inverse_planes`, gives real planes.

Operations that need only the transform along y and z, such as a derivative along y, happen in
step 3: the components of a gradient or a tidal tensor share the parts that are sent.

Each part is a contiguous numpy array, which passes from process to process without a copy. Every
step works on blocks of planes or rows, which threads share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics import fourier
from cosmoflow.numerics.blocks import axis_blocks
from cosmoflow.numerics.threads import map_ahead

Modes = NDArray[np.complex64]

PlaneBlock = tuple[slice, Callable[[], Tensor]]
"""Planes of a slab, counted from its first, and a function that returns their values ``(..., b, n,
n)``, float32. It is called in a thread."""


def cut_axis(cells: int, shard: int, thickness: int) -> list[slice]:
    """Cut an axis into slabs of nearly equal thickness, each within one shard.

    Parameters
    ----------
    cells, shard : int
        Cells of the axis and of a shard.
    thickness : int
        Maximum cells of a slab.
    """
    slabs: list[slice] = []
    for origin, length in axis_blocks(cells, shard):
        even = -(-length // -(-length // thickness))
        slabs += [
            slice(origin + start, origin + start + size)
            for start, size in axis_blocks(length, even)
        ]
    return slabs


@dataclass(frozen=True, slots=True)
class RowWaves:
    """Wavenumbers of a range of rows of modes, shape ``(n, r, n // 2 + 1)``.

    Parameters
    ----------
    cells : int
        Cells per axis of the grid.
    box_size : float
        Side of the box, Mpc/h.
    rows : slice
        Range of the n frequencies along y.
    """

    cells: int
    box_size: float
    rows: slice

    def along_x(self) -> Tensor:
        """Return kx with the Nyquist frequency set to zero, as odd filters need it."""
        return fourier.wavenumbers(self.cells, self.box_size, odd=True)[0]

    def odd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return kx, ky and kz with Nyquist frequencies set to zero, shaped to broadcast."""
        kx, ky, kz = fourier.wavenumbers(self.cells, self.box_size, odd=True)
        return kx, ky[:, self.rows], kz

    def squared(self) -> Tensor:
        """Return ``k^2``, (h/Mpc)^2."""
        kx, ky, kz = fourier.wavenumbers(self.cells, self.box_size)
        return kx**2 + ky[:, self.rows] ** 2 + kz**2

    def inverse_squared(self) -> Tensor:
        """Return ``1 / k^2``, and 0 for the mean, which has no potential."""
        squared = self.squared()
        if self.rows.start == 0:
            squared[0, 0, 0] = torch.inf
        return squared.reciprocal_()


class Parts:
    """An array in parts along an axis, filled block by block.

    Parameters
    ----------
    shape : tuple of int
        Shape of the array.
    axis : int
        Axis to cut, negative (counted from the last).
    cuts : sequence of slice
        Ranges of the parts along the axis.
    dtype : type
        Data type.
    """

    def __init__(
        self, shape: tuple[int, ...], axis: int, cuts: Sequence[slice], dtype: type[Any]
    ) -> None:
        self._axis, self._cuts = axis, list(cuts)
        self.arrays: list[NDArray[Any]] = []
        for cut in cuts:
            own = list(shape)
            own[axis] = cut.stop - cut.start
            self.arrays.append(np.empty(own, dtype))

    def put(self, place: tuple[Any, ...], values: Tensor) -> None:
        """Set ``array[place]``; the place must cover the whole of the cut axis."""
        for array, cut in zip(self.arrays, self._cuts, strict=True):
            own = values.narrow(self._axis, cut.start, cut.stop - cut.start)
            array[place] = own.numpy()


def forward_planes(
    blocks: Iterable[PlaneBlock], shape: tuple[int, ...], rows: Sequence[slice]
) -> list[Modes]:
    """Transform planes along y and z, and cut the result along y.

    Parameters
    ----------
    blocks : iterable of PlaneBlock
        The planes of the slab.
    shape : tuple of int
        Components if any, planes of the slab, cells per axis of the grid.
    rows : sequence of slice
        The y-slabs.

    Returns
    -------
    list of (..., p, r, n // 2 + 1) complex64
        One part per y-slab.
    """
    cells = shape[-1]
    parts = Parts((*shape, cells // 2 + 1), -2, rows, np.complex64)

    def transform(block: PlaneBlock) -> None:
        x, make = block
        parts.put((..., x, slice(None), slice(None)), torch.fft.rfft2(make()))

    for _ in map_ahead(transform, blocks):
        pass
    return parts.arrays


def plane_blocks(planes: int, cells: int) -> Iterator[slice]:
    """Cut planes (or rows) of modes into blocks that stay in the cache."""
    step = max(1, fourier.BLOCK_BYTES_CPU // block_bytes(cells))
    for start in range(0, planes, step):
        yield slice(start, min(start + step, planes))


def block_bytes(cells: int) -> int:
    """Return the bytes of one plane of modes, the smallest unit of work."""
    return 8 * cells * (cells // 2 + 1)


def transform_rows(parts: Sequence[Modes], block: slice) -> Tensor:
    """Join rows of a y-slab along x and transform them along x.

    Parameters
    ----------
    parts : sequence of (..., p, r, n // 2 + 1) complex64
        Parts of all x-slabs, in order.
    block : slice
        Rows, counted from the first of the slab.

    Returns
    -------
    (..., n, b, n // 2 + 1) complex64
        The same modes as ``torch.fft.rfftn`` gives.
    """
    joined = np.concatenate([part[..., block, :] for part in parts], axis=-3)
    modes: Tensor = torch.fft.fft(torch.from_numpy(joined), dim=-3)
    return modes


def filter_rows(
    fields: Sequence[Sequence[Modes]],
    waves: RowWaves,
    slabs: Sequence[slice],
    count: int,
    multiply: Callable[[list[Tensor], RowWaves], Iterable[Tensor]],
) -> list[Modes]:
    """Multiply the modes of fields, transform the products back along x and cut them along x.

    Parameters
    ----------
    fields : sequence of sequence of (p, r, n // 2 + 1) complex64
        Parts of each field from all x-slabs, in order.
    waves : RowWaves
        Wavenumbers of the y-slab.
    slabs : sequence of slice
        The x-slabs.
    count : int
        Number of products.
    multiply : callable
        Takes the modes of every field for a block of rows and their wavenumbers; returns the
        products.

    Returns
    -------
    list of (count, p, r, n // 2 + 1) complex64
        One part per x-slab.
    """
    cells, rows = waves.cells, waves.rows
    shape = (count, cells, rows.stop - rows.start, cells // 2 + 1)
    parts = Parts(shape, -3, slabs, np.complex64)

    def filter_block(block: slice) -> None:
        own = RowWaves(
            cells, waves.box_size, slice(rows.start + block.start, rows.start + block.stop)
        )
        products = multiply([transform_rows(one, block) for one in fields], own)
        for index, product in enumerate(products):
            parts.put((index, slice(None), block), torch.fft.ifft(product, dim=0))

    for _ in map_ahead(filter_block, plane_blocks(rows.stop - rows.start, cells)):
        pass
    return parts.arrays


def joined_blocks(parts: Sequence[Modes]) -> Iterator[PlaneBlock]:
    """Yield the blocks of planes of an x-slab, which join its parts along y.

    Parameters
    ----------
    parts : sequence of (count, p, r, n // 2 + 1) complex64
        Parts of all y-slabs, in order.

    Yields
    ------
    planes : slice
        Planes of the slab in the block.
    join : callable
        Returns ``(count, b, n, n // 2 + 1)``, complex64: real along x, modes along y and z.
    """
    cells = sum(part.shape[2] for part in parts)
    for x in plane_blocks(parts[0].shape[1], cells):
        yield x, partial(_join_rows, parts, x)


def _join_rows(parts: Sequence[Modes], x: slice) -> Tensor:
    return torch.from_numpy(np.concatenate([part[:, x] for part in parts], axis=2))


def inverse_planes(modes: Tensor) -> Tensor:
    """Transform ``(..., n, n // 2 + 1)`` back along y and z."""
    cells = modes.shape[-2]
    planes: Tensor = torch.fft.irfft2(modes, s=(cells, cells))
    return planes


def gradient_rows(source: Tensor, waves: RowWaves) -> Iterator[Tensor]:
    """Yield the modes to send for ``-grad (inverse Laplacian of s)``: ``s/k^2``, ``kx s/k^2``.

    Parameters
    ----------
    source : Tensor
        Modes of s in the rows of ``waves``.
    waves : RowWaves
        Wavenumbers of the rows.
    """
    potential = source * waves.inverse_squared()
    yield potential
    yield potential * waves.along_x()


def gradient_planes(travelled: Tensor, box_size: float) -> Iterator[tuple[int, Tensor]]:
    """Yield the components of the gradient from the modes that :func:`gradient_rows` yields.

    Parameters
    ----------
    travelled : Tensor
        Received modes, shape ``(2, b, n, n // 2 + 1)``.
    box_size : float
        Box size, Mpc/h.

    Yields
    ------
    axis : int
        0, 1, 2.
    component : Tensor
        Shape ``(b, n, n)``, in the unit of s times Mpc/h.
    """
    potential, along_x = travelled
    _, ky, kz = fourier.wavenumbers(travelled.shape[-2], box_size, odd=True)
    yield 0, inverse_planes(along_x * 1j)
    yield 1, inverse_planes(potential * (1j * ky))
    yield 2, inverse_planes(potential * (1j * kz))


def tide_rows(modes: Tensor, waves: RowWaves) -> Iterator[Tensor]:
    """Yield the modes to send for the tidal tensor of s: ``kx^p s/k^2`` for p = 0, 1, 2."""
    power = modes * waves.inverse_squared()
    yield power
    for _ in range(2):
        power = power * waves.along_x()
        yield power


def tide_planes(travelled: Tensor, box_size: float) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Yield the six ``d_i d_j (inverse Laplacian)``, as :func:`fourier.tidal_components` does.

    Parameters
    ----------
    travelled : Tensor
        Modes from :func:`tide_rows`, shape ``(3, b, n, n // 2 + 1)``.
    box_size : float
        Box size, Mpc/h.

    Yields
    ------
    (i, j) : tuple of int
        Axes, i <= j.
    component : Tensor
        Shape ``(b, n, n)``, in the unit of s.
    """
    _, ky, kz = fourier.wavenumbers(travelled.shape[-2], box_size, odd=True)
    one = torch.ones(())
    for (i, j), power, factor in (
        ((1, 1), 0, ky * ky), ((2, 2), 0, kz * kz), ((1, 2), 0, ky * kz),
        ((0, 1), 1, ky), ((0, 2), 1, kz), ((0, 0), 2, one),
    ):  # fmt: skip
        yield (i, j), inverse_planes(travelled[power] * factor)
