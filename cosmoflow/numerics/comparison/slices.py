"""The slice through the whole box that figures show, and the patch that they enlarge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.numerics.blocks import Block, axis_blocks, grow
from cosmoflow.numerics.comparison.coarse import CoarseSum, Runs, first_cells
from cosmoflow.numerics.comparison.readers import (
    TRUTH,
    Array,
    FieldReader,
    Json,
    Readers,
    read_tensor,
)
from cosmoflow.numerics.quantities import QUANTITIES
from cosmoflow.numerics.residuals import sum_residual

SIDE: Final = 80.0
"""Side of the patch, Mpc/h."""
THICKNESS: Final = 2.0
"""Thickness of the slice, Mpc/h."""
PLANE_CELLS: Final = 1024
"""Maximum cells per axis of a slice through the box: a figure has no more pixels."""


@dataclass(frozen=True)
class Patch:
    """The square of the slice that the figures enlarge.

    Attributes
    ----------
    corner : (int, int)
        First cell along x and y; the patch wraps around the box.
    cells : int
        Cells per side.
    layer, layers : int
        First cell of the slice along z and number of averaged cells; they wrap too.
    grid : int
        Cells per axis of the box.
    """

    corner: tuple[int, int]
    cells: int
    layer: int
    layers: int
    grid: int

    @classmethod
    def around(cls, centre: tuple[int, int, int], grid: int, box_size: float) -> Patch:
        """Return the patch around a cell."""
        cell = box_size / grid
        side = min(grid, max(4, round(SIDE / cell)))
        layers = min(grid, max(1, round(THICKNESS / cell)))
        x, y, z = centre
        corner = ((x - side // 2) % grid, (y - side // 2) % grid)
        return cls(corner, side, (z - layers // 2) % grid, layers, grid)

    @property
    def block(self) -> Block:
        """Cells of the patch, which may extend past the grid."""
        return Block((*self.corner, self.layer), (self.cells, self.cells, self.layers))

    def cut(self, plane: NDArray[np.float32]) -> Array:
        """Return the patch of a plane ``(..., m, m)`` of the box as ``(..., cells, cells)``.

        Cells repeat if the plane has fewer of them than the box.
        """
        size = plane.shape[-1]
        x, y = (np.arange(c, c + self.cells) % self.grid * size // self.grid for c in self.corner)
        result: Array = plane[..., x[:, None], y[None, :]]
        return result


def plane_cells(grid: int) -> int:
    """Return the cells per axis of the slice through a box."""
    return min(grid, PLANE_CELLS)


def plane_blocks(patch: Patch, size: int) -> list[Block]:
    """Return the blocks in which to read the slice, ``size`` cells wide along x and y."""
    spans = axis_blocks(patch.grid, size)
    return [
        Block((x, y, patch.layer), (nx, ny, patch.layers)) for x, nx in spans for y, ny in spans
    ]


def sum_plane(readers: Readers, block: Block) -> CoarseSum:
    """Sum density and velocities of a block of the slice over layers into the slice's cells.

    Returns
    -------
    CoarseSum
        Sums of the density, then of three velocity components of the truth and of every method.
    """
    truth = readers[TRUTH]
    runs = Runs(truth.grid, plane_cells(truth.grid), block.origin[:2], block.shape[:2])
    values = np.empty((1 + 3 * len(readers), *runs.shape))

    def put(first: int, field: Array) -> None:
        flat = field.sum(axis=-1, dtype=np.float64)
        values[first : first + len(field)] = runs.sum(flat)

    put(0, truth.read("density", block)[None])
    for number, reader in enumerate(readers.values()):
        put(1 + 3 * number, reader.read("velocity", block))
    return CoarseSum(runs.origin, values)


def mean_planes(total: CoarseSum, names: list[str], patch: Patch) -> tuple[Array, dict[str, Array]]:
    """Return density and velocities in the slice from the sums over the whole slice.

    Returns
    -------
    density : ndarray
        Shape ``(m, m)``, float32.
    velocity : dict of ndarray
        Shape ``(3, m, m)`` each, float32, km/s, by name.
    """
    widths = np.diff(first_cells(patch.grid, total.values.shape[-1]))
    means = (total.values / (patch.layers * widths[:, None] * widths[None, :])).astype(np.float32)
    velocity = {name: means[1 + 3 * i : 4 + 3 * i] for i, name in enumerate(names)}
    return means[0], velocity


def patch_planes(reader: FieldReader, patch: Block) -> dict[str, Array]:
    """Return the fields of one method in the patch, averaged over its layers.

    Returns
    -------
    dict of ndarray
        float32: ``density`` ``(m, m)``, over its mean; ``velocity`` and ``momentum``
        ``(3, m, m)``, km/s; ``divergence`` ``(m, m)`` and ``momentum_curl`` ``(3, m, m)``,
        km/s/(Mpc/h), by finite differences.
    """
    haloed, cell = grow(patch, 1), reader.box_size / reader.grid
    rho, v = read_tensor(reader, "density", haloed), read_tensor(reader, "velocity", haloed)
    values = {"density": rho, "velocity": v}
    made = {name: QUANTITIES[name].make(values, cell) for name in ("divergence", "momentum_curl")}

    def inner(field: Tensor) -> Tensor:
        return field[..., 1:-1, 1:-1, 1:-1]

    fields = {
        "density": inner(rho),
        "velocity": inner(v),
        "momentum": inner(v * rho),
        **made,
    }
    return {
        name: field.mean(dim=-1, dtype=torch.float64).float().numpy()
        for name, field in fields.items()
    }


def patch_fields(planes: dict[str, dict[str, Array]]) -> dict[str, dict[str, Array]]:
    """Reorder the fields in the patch from method, quantity to quantity, method."""
    quantities = planes[TRUTH]
    fields = {
        quantity: {name: found[quantity] for name, found in planes.items()}
        for quantity in quantities
    }
    fields["density"] = {TRUTH: quantities["density"]}
    return fields


def patch_metrics(fields: dict[str, dict[str, Array]], patch: Patch, box_size: float) -> Json:
    """Return the statistics of the paper's section 4.1 for the patch: means and scatters."""
    cell = box_size / patch.grid
    # Copy: arrays from another process may be read-only, which torch does not support.
    rho = torch.tensor(fields["density"][TRUTH]).unsqueeze(-1)
    planes = {name: torch.tensor(v).unsqueeze(-1) for name, v in fields["velocity"].items()}
    sums = {name: sum_residual(rho, planes[TRUTH], field) for name, field in planes.items()}
    return {
        "side": patch.cells * cell,
        "thickness": patch.layers * cell,
        "corner": [cell * c for c in (*patch.corner, patch.layer)],
        "truth": sums.pop(TRUTH).truth(),
        "residual": {name: total.figures() for name, total in sums.items()},
    }
