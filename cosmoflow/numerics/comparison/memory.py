"""Comparison of fields in memory: the reference for the comparison that streams from stores."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

import numpy as np

from cosmoflow.errors import DataError
from cosmoflow.numerics.blocks import central_boxes, grid_blocks
from cosmoflow.numerics.calibration import NORMAL, Intervals
from cosmoflow.numerics.comparison.blocks import sum_block
from cosmoflow.numerics.comparison.power import subbox_cells, sum_box, sum_subboxes
from cosmoflow.numerics.comparison.readers import TRUTH, Array, ArrayReader
from cosmoflow.numerics.comparison.result import Comparison, Measured
from cosmoflow.numerics.comparison.slices import patch_planes, plane_blocks, sum_plane
from cosmoflow.numerics.comparison.subboxes import Subboxes
from cosmoflow.units import H0_KM_S_PER_MPC_H


def compare(
    density: Array,
    truth: Array,
    predictions: Mapping[str, Array],
    box_size: float,
    subbox: float = 120.0,
    *,
    scheme: str | None = None,
    rate: float = H0_KM_S_PER_MPC_H,
    block: int = 128,
    errors: Mapping[str, Array] | None = None,
    intervals: Intervals = NORMAL,
    particles_per_cell: float | None = None,
) -> Comparison:
    """Compare predicted velocities with the true one, all in memory.

    Parameters
    ----------
    density : ndarray
        Shape ``(n, n, n)``, float32, density over its mean.
    truth : ndarray
        Shape ``(3, n, n, n)``, float32, km/s.
    predictions : mapping of str to ndarray
        Fields like ``truth`` by method; by convention names that start with ``linear`` or
        ``wiener`` are baselines and all others are networks.
    box_size : float
        Side of the periodic box, Mpc/h.
    subbox : float
        Side of the sub-boxes of the paper, Mpc/h, rounded to whole cells. In a smaller box none
        fits and their part of the metrics is null.
    scheme : {'ngp', 'cic', 'tsc', 'pcs'}, optional
        Mass assignment whose window divides the full-box modes of the momentum vector and its
        curl, the only quantities linear in the particles.
    rate : float
        ``f a H``, km/s per Mpc/h, the unit in which divergences are binned.
    block : int
        Cells per axis summed at once; no result depends on it.
    errors : mapping of str to ndarray, optional
        Expected size of the error of each component, fields like ``truth``, by
        method; methods may lack it.
    intervals : (float, float)
        Half-widths of the intervals that should hold 68.27 % and 95 % of the errors, in units of
        that size.
    particles_per_cell : float, optional
        Number of particles in a cell of mean density, to split the residual by that number.

    Returns
    -------
    Comparison
        Its ``metrics`` contain ``box_size``, ``cells``, ``truth``, ``residual`` (per method),
        ``patch``, ``by_density``, ``by_particles``, ``errors``, ``largest_residuals``,
        ``distributions`` and ``spectra`` with ``full`` and ``subbox``.

    Raises
    ------
    DataError
        The fields do not match, or contain values that are not finite.
    """
    _check(density, truth, predictions, box_size, errors or {})
    rho = np.ascontiguousarray(density, np.float32)
    known = {name: np.ascontiguousarray(std, np.float32) for name, std in (errors or {}).items()}
    readers = {
        name: ArrayReader(
            rho,
            np.ascontiguousarray(field, np.float32),
            box_size,
            known.get(name),
            intervals if name in known else None,
            particles_per_cell,
        )
        for name, field in {TRUTH: truth, **predictions}.items()
    }
    grid = density.shape[-1]
    side = subbox_cells(grid, box_size, subbox)
    boxes = Subboxes(grid, side)
    total = Measured.zero(grid, box_size, tuple(predictions), scheme, boxes)
    for part in grid_blocks(grid, block):
        total.cells.add(sum_block(readers, part, rate))
    patch = total.find_patch()
    for part in plane_blocks(patch, block):
        total.plane.add(sum_plane(readers, part))
    total.patch = {name: patch_planes(reader, patch.block) for name, reader in readers.items()}
    for box in central_boxes(grid, side):
        boxes.put(box, sum_subboxes(readers, box, side))
    total.box = sum_box(readers, total.window)
    with closing(boxes):
        return total.comparison()


def _check(
    density: Array,
    truth: Array,
    predictions: Mapping[str, Array],
    box_size: float,
    errors: Mapping[str, Array],
) -> None:
    cells = density.shape[-1] if density.ndim else 0
    if density.shape != (cells,) * 3 or cells < 4:
        raise DataError(
            "The density is not a cube with at least 4 cells per axis.",
            where="density",
            value=density.shape,
        )
    if not predictions or TRUTH in predictions:
        raise DataError(
            "There must be at least one prediction, and no prediction may be called 'truth'.",
            where="predictions",
            value=sorted(predictions),
        )
    if not box_size > 0.0:
        raise DataError(
            "The box size is not positive.", where="box_size", value=box_size, limit="> 0 Mpc/h"
        )
    fields = {"density": density, TRUTH: truth, **predictions}
    fields |= {f"errors of {name}": std for name, std in errors.items()}
    for name, field in fields.items():
        shape = density.shape if field is density else (3, *density.shape)
        if field.shape != shape:
            raise DataError(
                "A field does not match the density's grid.",
                where=name,
                value=field.shape,
                limit=shape,
                remedy="compare fields of one box painted on one grid",
            )
        # The sum is finite only if every cell is, and needs no mask in memory.
        with np.errstate(invalid="ignore"):
            total = np.sum(field, dtype=np.float64)
        if not np.isfinite(total):
            raise DataError("A field contains values that are not finite.", where=name)
