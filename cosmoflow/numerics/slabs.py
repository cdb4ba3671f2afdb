r"""The Fourier transform of a periodic cube in bars and slabs; no process holds more than one.

A real transform of a cube is one of its lines along z, then one of planes along x and y:

1. *bar*, lines along z with an ``a`` by ``b`` cross section, ``(a, b, n)``: :func:`forward_lines`
   transforms them and cuts the result along kz into parts ``(p, a, b)``, one for every slab;
2. *slab*, planes of modes at ``p`` values of kz: :func:`transform_planes` joins the parts of all
   bars and transforms them along x and y, which gives all modes ``(p, n, n)`` of these planes. All
   work on modes happens here: :func:`filter_planes` multiplies them by functions of k, transforms
   the products back along x and y and cuts them into parts, one for every bar;
3. *bar*: :func:`joined_lines` joins the parts of all slabs along kz and transforms them back along
   z, which gives real lines.

A bar can consist of whole chunks of a store, so that each chunk is read once. A mode of a slab has
the axes kz, kx, ky in this order, because a plane must be contiguous for a fast transform.

Each part is a contiguous numpy array, which passes from process to process without a copy. Every
step works on blocks of lines or planes, which threads share.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics import fourier
from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.threads import map_ahead
from cosmoflow.numerics.waves import WaveBlock

Modes = NDArray[np.complex64]

LineBlock = tuple[slice, Callable[[], Tensor]]
"""Lines of a bar: their range along x, counted from its first, and a function that returns their
values ``(..., a, b, n)``, float32. It is called in a thread."""

GROUP = 4
"""Planes of modes whose sums are added first: slabs start with a whole group, so that sums over
modes are the same in slabs of any thickness."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Whole lines of cells along z: their ranges along x and y."""

    x: slice
    y: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Cells along x and y."""
        return self.x.stop - self.x.start, self.y.stop - self.y.start

    def block(self, cells: int, halo: int = 0) -> Block:
        """Return the cells of the bar in a grid, with a halo along x and y."""
        a, b = self.shape
        origin = self.x.start - halo, self.y.start - halo, 0
        return Block(origin, (a + 2 * halo, b + 2 * halo, cells))


def plane_bytes(cells: int) -> int:
    """Return the bytes of one plane of modes, the smallest unit of work on modes."""
    return 8 * cells**2


def field_bytes(cells: int) -> int:
    """Return the bytes of all modes of a field."""
    return plane_bytes(cells) * (cells // 2 + 1)


def line_blocks(shape: tuple[int, int], cells: int) -> Iterator[slice]:
    """Cut the lines of a bar along x into blocks that stay in the cache."""
    step = max(1, fourier.BLOCK_BYTES_CPU // (8 * shape[1] * (cells // 2 + 1)))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def plane_blocks(planes: slice, cells: int) -> list[slice]:
    """Cut the planes of a slab, counted from its first, into blocks that each lie in one group.

    The cuts are the same in every slab that starts with a group.
    """
    step = 1
    while 2 * step <= GROUP and 2 * step * plane_bytes(cells) <= fourier.BLOCK_BYTES_CPU:
        step *= 2
    edges = [planes.start, *range(-(-planes.start // step) * step, planes.stop, step), planes.stop]
    edges = sorted({edge - planes.start for edge in edges})
    return [slice(low, high) for low, high in itertools.pairwise(edges)]


def forward_lines(
    blocks: Iterable[LineBlock], shape: tuple[int, ...], slabs: Sequence[slice]
) -> list[Modes]:
    """Transform the lines of a bar along z, and cut the result along kz.

    Parameters
    ----------
    blocks : iterable of LineBlock
        The lines.
    shape : tuple of int
        Components if any, cells of the bar along x and y.
    slabs : sequence of slice
        Ranges of kz.

    Returns
    -------
    list of (p, ..., a, b) complex64
        One part per slab, which are views of one array.
    """
    planes = np.empty((slabs[-1].stop, *shape), np.complex64)

    def transform(block: LineBlock) -> None:
        x, make = block
        # NumPy copies axes in another order twice as fast as torch does.
        planes[..., x, :] = torch.fft.rfft(make()).movedim(-1, 0).numpy()

    for _ in map_ahead(transform, blocks):
        pass
    return [planes[slab] for slab in slabs]


def transform_planes(parts: Sequence[Modes], bars: Sequence[Bar], block: slice) -> Tensor:
    """Join planes of a slab and transform them along x and y.

    Parameters
    ----------
    parts : sequence of (p, ..., a, b) complex64
        Parts of all bars, in order.
    bars : sequence of Bar
        The bars.
    block : slice
        Planes, counted from the first of the slab.

    Returns
    -------
    (..., q, n, n) complex64
        The same modes as ``torch.fft.rfftn`` gives, with the axes kz, kx, ky.
    """
    cells = bars[-1].x.stop
    lead = parts[0].shape[1:-2]
    joined = np.empty((*lead, block.stop - block.start, cells, cells), np.complex64)
    for part, bar in zip(parts, bars, strict=True):
        joined[..., bar.x, bar.y] = np.moveaxis(part[block], 0, -3)
    modes: Tensor = torch.fft.fft2(torch.from_numpy(joined))
    return modes


def filter_planes(
    fields: Sequence[Sequence[Modes]],
    waves: WaveBlock,
    bars: Sequence[Bar],
    count: int,
    multiply: Callable[[list[Tensor], WaveBlock], Iterable[Tensor]],
) -> list[Modes]:
    """Multiply the modes of fields, transform the products back along x and y and cut them.

    Parameters
    ----------
    fields : sequence of sequence of (p, ..., a, b) complex64
        Parts of each field from all bars, in order.
    waves : WaveBlock
        Wavenumbers of the slab.
    bars : sequence of Bar
        The bars.
    count : int
        Number of products.
    multiply : callable
        Takes the modes of every field for a block of planes and their wavenumbers; returns the
        products.

    Returns
    -------
    list of (p, count, a, b) complex64
        One part per bar.
    """
    first, planes = waves.start[2], waves.shape[2]
    parts = [np.empty((planes, count, *bar.shape), np.complex64) for bar in bars]

    def filter_block(block: slice) -> None:
        modes = [transform_planes(one, bars, block) for one in fields]
        products = multiply(modes, waves.part(block))
        for index, product in enumerate(products):
            back = torch.fft.ifft2(product).numpy()
            for part, bar in zip(parts, bars, strict=True):
                part[block, index] = back[..., bar.x, bar.y]

    for _ in map_ahead(filter_block, plane_blocks(slice(first, first + planes), waves.cells)):
        pass
    return parts


def joined_lines(parts: Sequence[Modes], cells: int) -> Iterator[LineBlock]:
    """Yield the blocks of lines of a bar, which join its parts and transform them back along z.

    Parameters
    ----------
    parts : sequence of (p, count, a, b) complex64
        Parts of all slabs, in order.
    cells : int
        Cells per axis of the grid.

    Yields
    ------
    x : slice
        Range of the lines along x.
    make : callable
        Returns the real fields, ``(count, a, b, n)``, float32.
    """
    a, b = parts[0].shape[-2:]
    for x in line_blocks((a, b), cells):
        yield x, partial(_inverse_lines, parts, x, cells)


def _inverse_lines(parts: Sequence[Modes], x: slice, cells: int) -> Tensor:
    joined = np.concatenate([part[..., x, :] for part in parts])
    modes = torch.from_numpy(joined).movedim(0, -1).contiguous()
    del joined
    lines: Tensor = torch.fft.irfft(modes, n=cells)
    return lines


def gradient(source: Tensor, waves: WaveBlock) -> Iterator[Tensor]:
    """Yield the modes of the components of ``-grad (inverse Laplacian of s)``.

    Parameters
    ----------
    source : Tensor
        Modes of s in the planes of ``waves``.
    waves : WaveBlock
        Wavenumbers of the planes.

    Yields
    ------
    Tensor
        Modes of the x, y, then z component, in the unit of s times Mpc/h.
    """
    potential = source * waves.inverse_squared()
    for k in waves.odd():
        yield potential * (1j * k)


TIDES = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
"""Axes of the components of the tidal tensor, in the order of :func:`tides`."""


def tides(modes: Tensor, waves: WaveBlock) -> Iterator[Tensor]:
    """Yield the modes of the six ``d_i d_j (inverse Laplacian of s)``, in the unit of s."""
    potential = modes * waves.inverse_squared()
    k = waves.odd()
    for i, j in TIDES:
        yield potential * (k[i] * k[j])
