"""Spectra of the compared quantities, in sub-boxes and in a whole box in memory."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor

from cosmoflow.numerics import calculus, fourier
from cosmoflow.numerics.blocks import Block, place, split_block
from cosmoflow.numerics.comparison.readers import TRUTH, Readers, read_tensor
from cosmoflow.numerics.comparison.subboxes import SubboxSums
from cosmoflow.numerics.quantities import QUANTITIES as DEFINED
from cosmoflow.numerics.quantities import Values
from cosmoflow.numerics.spectra import PowerSum, WaveBins, sum_products
from cosmoflow.numerics.threads import map_ahead

QUANTITIES: Final = {
    "speed": "speed",
    "divergence": "divergence",
    "momentum": "momentum_speed",
    "theta_p": "theta_p",
    "vorticity": "vorticity",
    "momentum_vector": "momentum",
    "momentum_curl_vector": "momentum_curl",
}
"""Fields whose spectra the metrics contain, by their name there: the four of the paper's section
4.2 under the paper's names, and two vectors."""
SUBBOX_QUANTITIES: Final = {
    key: QUANTITIES[key] for key in ("speed", "divergence", "momentum", "theta_p")
}


def _make(name: str, values: Values, side: float, *, periodic: bool) -> Tensor:
    """Return a field of a cube by finite differences."""
    rule = DEFINED[name]
    cell = side / values["density"].shape[-1]
    field = rule.cells(values, partial(calculus.difference, cell=cell, periodic=periodic))
    # The mean is in no bin; subtracting it saves digits in float32 transforms of scalars.
    return field if rule.components > 1 else field - field.mean(dtype=torch.float64)


def _modes(name: str, values: Values, box_size: float) -> Tensor:
    """Return the modes of a field of the periodic box."""
    rule = DEFINED[name]
    modes = fourier.forward(_make(rule.field, values, box_size, periodic=True))
    if rule.derive is None:
        return modes
    return rule.derive(modes, calculus.odd_wavenumbers(modes, box_size))


class PairSums:
    """Sums of products of the modes of the truth and of each method, added one by one.

    Parameters
    ----------
    bins : WaveBins
        Bins of the box.
    window : int
        Power of ``sinc(k_i h / 2)`` per axis by which all modes are divided.
    """

    def __init__(self, bins: WaveBins, window: int = 0) -> None:
        self._bins = bins
        self._window = window
        self._truth: Tensor | None = None
        self._sums: list[PowerSum] = []

    def add(self, modes: Tensor) -> None:
        """Add the modes of the truth (first call, kept) or of the next method."""
        fields, pairs = [modes], [(0, 0)]
        if self._truth is None:
            self._truth = modes
        else:
            fields, pairs = [self._truth, modes], [(1, 1), (0, 1)]
        windows = [self._window] * len(fields)
        self._sums.append(sum_products(fields, pairs, self._bins, windows=windows))

    def total(self) -> PowerSum:
        """Return all sums combined, with pairs (0, 0), then (i, i) and (0, i) for each method i."""
        pairs = [(0, 0)]
        for number in range(1, len(self._sums)):
            pairs += [(number, number), (0, number)]
        products = np.concatenate([one.products for one in self._sums])
        return replace(self._sums[0], pairs=tuple(pairs), products=products)


def sum_box(readers: Readers, window: int = 0) -> dict[str, PowerSum]:
    """Measure the spectra of :data:`QUANTITIES` in the whole periodic box, in memory.

    Parameters
    ----------
    readers : mapping of str to FieldReader
        Reader of the truth, then readers of the methods.
    window : int
        Power of ``sinc`` by which the modes of fields linear in the particles are divided.

    Returns
    -------
    dict of PowerSum
        Sums by name of the field.
    """
    truth = readers[TRUTH]
    block, size = Block((0, 0, 0), (truth.grid,) * 3), truth.box_size
    rho = read_tensor(truth, "density", block)
    bins = WaveBins.linear(truth.grid, size)

    sums: dict[str, PowerSum] = {}
    for name in QUANTITIES.values():
        pairs = PairSums(bins, window if DEFINED[name].linear else 0)
        for reader in readers.values():
            values = {"density": rho, "velocity": read_tensor(reader, "velocity", block)}
            pairs.add(_modes(name, values, size))
        sums[name] = pairs.total()
    return sums


def subbox_cells(grid: int, box_size: float, subbox: float) -> int:
    """Return the cells per axis of a sub-box of size ``subbox``, Mpc/h; 0 if none fits."""
    cells = round(subbox * grid / box_size)
    return cells if 4 <= cells <= grid else 0


class GroupSums:
    """Spectra of :data:`SUBBOX_QUANTITIES` in adjacent sub-boxes, as the paper measures them.

    Transforms have no window; differences are one-sided at the faces.

    Parameters
    ----------
    group : Block
        Cells of the sub-boxes, a whole number of them along each axis.
    side : int
        Cells per axis of a sub-box.
    cell : float
        Side of a cell, Mpc/h.
    """

    def __init__(self, group: Block, side: int, cell: float) -> None:
        self._size = side * cell
        self._boxes = [place(box, group) for box in split_block(group, side)]
        bins = WaveBins.linear(side, self._size)
        # The truth's modes of each quantity are computed once for all methods.
        self._sums = [
            {name: PairSums(bins) for name in SUBBOX_QUANTITIES.values()} for _ in self._boxes
        ]

    def add(self, density: Tensor, velocity: Tensor) -> None:
        """Add the truth (first call) or the next method, by its fields in the group."""
        for _ in map_ahead(partial(self._add, density, velocity), range(len(self._boxes))):
            pass

    def _add(self, density: Tensor, velocity: Tensor, number: int) -> None:
        own = (..., *self._boxes[number])
        values = {"density": density[own].contiguous(), "velocity": velocity[own].contiguous()}
        for name, pairs in self._sums[number].items():
            pairs.add(fourier.forward(_make(name, values, self._size, periodic=False)))

    def total(self) -> SubboxSums:
        """Return the sums of the sub-boxes in C order."""
        return SubboxSums.of(
            [{name: one.total() for name, one in box.items()} for box in self._sums]
        )


def sum_subboxes(readers: Readers, group: Block, side: int) -> SubboxSums:
    """Measure the spectra of adjacent sub-boxes; see :class:`GroupSums`.

    Parameters
    ----------
    readers : mapping of str to FieldReader
        Reader of the truth, then readers of the methods.
    group : Block
        Cells of the sub-boxes.
    side : int
        Cells per axis of a sub-box.
    """
    truth = readers[TRUTH]
    sums = GroupSums(group, side, truth.box_size / truth.grid)
    rho = read_tensor(truth, "density", group)
    for reader in readers.values():
        sums.add(rho, read_tensor(reader, "velocity", group))
    return sums.total()
