"""Results of a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cosmoflow.numerics.comparison.blocks import (
    BlockSum,
    coarse_cells,
    largest_residuals,
    residual_maps,
    strongest_infall,
)
from cosmoflow.numerics.comparison.coarse import CoarseSum
from cosmoflow.numerics.comparison.curves import box_curves, subbox_curves
from cosmoflow.numerics.comparison.readers import TRUTH, Array, Json
from cosmoflow.numerics.comparison.slices import (
    Patch,
    mean_planes,
    patch_fields,
    patch_metrics,
    plane_cells,
)
from cosmoflow.numerics.comparison.subboxes import Subboxes
from cosmoflow.numerics.distributions import bin_edges
from cosmoflow.numerics.particle_bins import ParticleBinSum
from cosmoflow.numerics.spectra import WINDOWS, PowerSum
from cosmoflow.tables import html_table, shorten, text_table

_HEADINGS = ("velocity residual", "rms, km/s", "rms / true rms", "mean cosine")


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Metrics of a comparison and the slices to plot.

    Attributes
    ----------
    metrics : dict
        Nested dicts, lists, strings, floats and None (for NaN); see ``compare``.
    density : ndarray
        Shape ``(m, m)``, float32, density over its mean in the slice, averaged over its layers;
        ``m`` is the box's cells per axis; a box with more than 1024 has cells averaged to 1024.
    velocity : dict of ndarray
        Shape ``(3, m, m)`` each, float32, km/s, the same slice of ``'truth'`` and of every method.
    box_size : float
        Box size, Mpc/h.
    patch : Patch
        The part of the slice around the strongest infall.
    patch_fields : dict of dict of ndarray
        Fields in the patch by quantity, then by ``'truth'`` and method, float32, at the box's
        resolution, averaged over the layers of the slice: ``density`` (of the truth alone)
        ``(p, p)``, ``velocity`` and ``momentum`` ``(3, p, p)`` km/s, ``divergence`` ``(p, p)`` and
        ``momentum_curl`` ``(3, p, p)`` km/s/(Mpc/h).
    residual_map : dict of ndarray
        Shape ``(g, g)`` each, float32, km/s: rms residual by method over columns of coarse cells
        along z.
    """

    metrics: Json
    density: Array
    velocity: dict[str, Array]
    box_size: float
    patch: Patch
    patch_fields: dict[str, dict[str, Array]]
    residual_map: dict[str, Array]

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the predictions, in the order they were given."""
        return tuple(name for name in self.velocity if name != TRUTH)

    def to_json(self) -> Json:
        """Return the metrics, which the ``json`` module can write."""
        return self.metrics

    def residual_rows(self) -> list[tuple[str, float, float, float]]:
        """Return method, 3-D rms residual (km/s), mean cosine and rms over the truth's rms.

        The rows start with the best method.
        """
        rows = [
            (name, found["rms"], found["mean_cosine"], found["relative"])
            for name, found in self.metrics["residual"].items()
        ]
        return sorted(rows, key=lambda row: math.inf if row[1] is None else row[1])

    def __repr__(self) -> str:
        return "\n".join(
            [self._title(), text_table(_HEADINGS, self._cells()), "metrics: all figures, by name"]
        )

    def _repr_html_(self) -> str:
        return html_table(self._title(), _HEADINGS, self._cells())

    def _title(self) -> str:
        rms = _figure(self.metrics["truth"]["rms"], 1)
        return (
            f"Comparison of a box of {self.box_size:g} Mpc/h, {self.metrics['cells']}^3 cells, "
            f"true rms {rms} km/s"
        )

    def _cells(self) -> list[list[str]]:
        return [
            [shorten(name, 40), _figure(rms, 1), _figure(relative, 3), _figure(cosine, 3)]
            for name, rms, cosine, relative in self.residual_rows()
        ]


@dataclass(eq=False)
class Measured:
    """The sums from which a comparison is made, independent of how the box was cut.

    Parameters
    ----------
    grid : int
        Cells per axis.
    box_size : float
        Box size, Mpc/h.
    methods : tuple of str
        Names of the methods, in order.
    scheme : str or None
        Mass assignment whose window was divided out of the box's vectors.
    cells : BlockSum
        Sums over all cells.
    plane : CoarseSum
        Sums over the slice; see :func:`sum_plane`.
    subboxes : Subboxes
        Spectra of every sub-box.
    patch : dict of dict of ndarray
        Fields in the patch for the truth and every method; see :func:`patch_planes`.
    box : dict of PowerSum
        Spectra of the whole box.
    """

    grid: int
    box_size: float
    methods: tuple[str, ...]
    scheme: str | None
    cells: BlockSum
    plane: CoarseSum
    subboxes: Subboxes
    patch: dict[str, dict[str, Array]] = field(default_factory=dict)
    box: Mapping[str, PowerSum] = field(default_factory=dict)

    @classmethod
    def zero(
        cls,
        grid: int,
        box_size: float,
        methods: Sequence[str],
        scheme: str | None,
        subboxes: Subboxes,
    ) -> Measured:
        """Return the sums of a box over nothing, to which the sums of its parts are added."""
        names = (TRUTH, *methods)
        cells = BlockSum.zero(names, coarse_cells(grid, box_size))
        plane = CoarseSum.zero(1 + 3 * len(names), plane_cells(grid), axes=2)
        return cls(grid, box_size, tuple(methods), scheme, cells, plane, subboxes)

    @property
    def window(self) -> int:
        """Power of ``sinc`` per axis by which the box's vectors are divided."""
        return WINDOWS[self.scheme] if self.scheme is not None else 0

    def find_patch(self) -> Patch:
        """Return the patch around the strongest infall, once all cells are summed."""
        infall = strongest_infall(self.cells.coarse, self.grid, self.box_size)
        return Patch.around(infall, self.grid, self.box_size)

    def comparison(self) -> Comparison:
        """Compute the comparison from the sums."""
        grid, size, methods, cells = self.grid, self.box_size, self.methods, self.cells
        patch, fields = self.find_patch(), patch_fields(self.patch)
        density, velocity = mean_planes(self.plane, [TRUTH, *methods], patch)
        residual = cells.residual
        first = residual[methods[0]]
        metrics = {
            "box_size": float(size),
            "cells": grid,
            "truth": first.truth(),
            "residual": {name: total.figures() for name, total in residual.items()},
            "patch": patch_metrics(fields, patch, size),
            "by_density": first.by_density()
            | {"methods": {name: t.by_density()["residual"] for name, t in residual.items()}},
            "by_particles": by_particles(cells.particles),
            "errors": {name: one.figures() for name, one in cells.calibration.items()},
            "largest_residuals": largest_residuals(cells.coarse, grid, size, methods),
            "distributions": {
                "edges": bin_edges(),
                "truth": cells.distributions[TRUTH].figures(),
                "methods": {name: cells.distributions[name].figures() for name in methods},
            },
            "spectra": {
                "sampling": "linear in k between the bins' mean k; null outside of them",
                "full": box_curves(self.box, methods, self.scheme),
                "subbox": subbox_curves(self.subboxes, methods),
            },
        }
        maps = residual_maps(cells.coarse, grid, methods)
        return Comparison(_plain(metrics), density, velocity, float(size), patch, fields, maps)


def by_particles(sums: Mapping[str, ParticleBinSum]) -> Json | None:
    """Return the residuals by the number of particles in a cell; None if it is not known."""
    first = next(iter(sums.values()), None)
    if first is None:
        return None
    return first.shared() | {"methods": {name: one.figures() for name, one in sums.items()}}


def _figure(value: float | None, digits: int) -> str:
    """Format a number, or return a dash if it is None (the cosine of a fluid at rest)."""
    return "-" if value is None else f"{value:.{digits}f}"


def _plain(value: Any) -> Any:
    """Turn arrays into lists and non-finite numbers into None, which every JSON reader accepts."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
