"""Whether a model fits a box: its cells, and the range that it was trained on."""

from __future__ import annotations

import math

from cosmoflow.config.cosmology import EXTENSIONS
from cosmoflow.errors import DataError
from cosmoflow.events import Listener, caution, warn_only
from cosmoflow.model.names import DEFAULT_MODEL, LINEAR
from cosmoflow.model.velocity import Fit, VelocityModel
from cosmoflow.storage.metadata import Box
from cosmoflow.units import LENGTH

CELL_SIZE_TOLERANCE = 1e-3

SMALLEST_GRID = 2
"""Least cells per axis that `paint` makes."""


def check_fits(
    model: VelocityModel,
    model_url: str,
    fields: Box,
    listener: Listener = warn_only,
    *,
    strict: bool = False,
) -> None:
    """Refuse fields of another cell size than a model's; warn of another redshift or cosmology.

    Families of models fit all cells; boxes outside of their range give a warning, or an error if
    ``strict``.

    Raises
    ------
    DataError
        The cell sizes differ, or the box is outside of the range.
    """
    found_cosmology, trained_on = fields.metadata.cosmology, model.spec.cosmology
    alike: tuple[tuple[str, float, float | None], ...] = ()
    if model.spec.fit is not None:
        _check_range(model.spec.fit, model_url, fields, listener, strict=strict)
    elif not has_cells(fields.cell_size, model.spec.cell_size):
        raise _unlike_cells(model.spec.cell_size, model_url, fields)
    else:
        alike = (
            ("redshift", fields.metadata.redshift, model.spec.redshift),
            ("Omega_m", found_cosmology.Omega_m, trained_on.get("Omega_m")),
            ("sigma8", found_cosmology.sigma8, trained_on.get("sigma8")),
        )
    for name, value, trained in (
        *alike,
        *(
            (name, getattr(found_cosmology, name), trained_on.get(name, usual))
            for name, usual in EXTENSIONS.items()
        ),
    ):
        if value != trained:
            said = (
                f"the model was trained at {name} {trained}, the fields have {value}"
                if model.spec.fit is None
                else f"the fields have {name} {value}, and {model_url} may have been trained on "
                f"boxes with {trained} only"
            )
            caution(listener, f"{said}; its accuracy there is unknown")
    if fields.metadata.unknown_expansion is not None:
        caution(
            listener,
            f"the expansion of the box is not known ({fields.metadata.unknown_expansion}); "
            "the accuracy of the model there is unknown",
        )


def _check_range(
    fit: Fit, model_url: str, fields: Box, listener: Listener, *, strict: bool
) -> None:
    """Refuse or announce a box outside of the range of a family of models."""
    if fit.assumed_particles is not None:
        caution(
            listener,
            f"{fields.url} does not state its number of particles per cell: {model_url} assumes "
            f"{fit.assumed_particles:.3g}; --set infer.particles_per_cell=N (in Python "
            "particles_per_cell=N) states it",
        )
    for one in fit.excess:
        limit = f"{one.low:g} to {one.high:g}"
        unit = f" {LENGTH}" if one.name == "cell_size" else ""
        hint = ""
        if unit and not 0.1 * one.low < one.value < 10.0 * one.high:
            hint = f"; is the side of the box, {fields.metadata.box_size:g}, in {LENGTH}?"
        if strict:
            raise DataError(
                "the box is outside of the range that the model was trained on",
                where=f"{fields.url} with {model_url}, {one.name}",
                value=f"{one.value:g}",
                limit=limit,
                remedy="leave infer.strict out for a warning, or train the model on such boxes: "
                f"cosmoflow train BOXES --from {model_url} --out MODEL",
            )
        caution(
            listener,
            f"{one.name} of the box is {one.value:g}{unit}, and {model_url} was trained on {limit}"
            f"{unit}; its accuracy there is unknown{hint}",
        )


def _unlike_cells(cell_size: float, model_url: str, fields: Box) -> DataError:
    """Return the error for fields whose cells differ from those of a model, with a remedy."""
    size = fields.metadata.box_size
    limit = f"cells of {cell_size:g} Mpc/h, to {CELL_SIZE_TOLERANCE:.1%}"
    others = (
        f"--model {DEFAULT_MODEL}, which knows many cells; --model {LINEAR} or {LINEAR}:R, which "
        "fit any cells; or a model trained on your cells"
    )
    grid = fitting_grid(size, cell_size)
    if grid is not None:
        remedy = f"a grid of {grid} cells per axis (cosmoflow paint --grid {grid}); or {others}"
    else:
        near = _nearest_grids(size, cell_size)
        cells = " and ".join(f"{size / g:g} Mpc/h on {g}^3" for g in near)
        limit += f"; no grid of this box has them, the nearest are {cells}"
        boxes = " or ".join(f"{g * cell_size:g}" for g in near)
        remedy = f"{others}; or a box whose side is a multiple of the cell, such as {boxes} Mpc/h"
    return DataError(
        "the model was trained on cells of another size",
        where=f"{fields.url} with {model_url}",
        value=f"cells of {fields.cell_size:g} Mpc/h, {fields.grid}^3 in a box of {size:g} Mpc/h",
        limit=limit,
        remedy=remedy,
    )


def has_cells(found: float, expected: float) -> bool:
    """Return whether cells have the size that a model was trained on, to 0.1 %."""
    return abs(found / expected - 1.0) <= CELL_SIZE_TOLERANCE


def fitting_grid(box_size: float, cell_size: float) -> int | None:
    """Return the cells per axis that cut a box into cells of a model's size, to 0.1 %, or None."""
    grids = _nearest_grids(box_size, cell_size)
    fitting = [grid for grid in grids if has_cells(box_size / grid, cell_size)]
    return min(fitting, key=lambda grid: abs(box_size / grid - cell_size), default=None)


def _nearest_grids(box_size: float, cell_size: float) -> list[int]:
    """Return the grids whose cell sizes are closest to ``cell_size``, from both sides."""
    below = math.floor(box_size / cell_size)
    return sorted({max(below, SMALLEST_GRID), max(below + 1, SMALLEST_GRID)})
