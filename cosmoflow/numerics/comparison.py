"""How close predicted velocities come to the true ones, given the density, all in memory.

Three figures of merit per method: the residual velocity cell by cell, the spectra of the periodic
box, and the spectra of the sub-boxes that the paper cuts out (Wu et al. 2021, section 4.2). A
spectrum's ratio ``T(k)`` may be 1 for a field that is wrong everywhere, so ``r(k)`` goes with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmoflow.errors import DataError
from cosmoflow.numerics import calculus, fourier, spectra
from cosmoflow.numerics.residuals import sum_residual
from cosmoflow.numerics.spectra import PowerSum, Spectrum

Array = NDArray[np.float32]
Json = dict[str, Any]

SAMPLED_AT: Final = (0.05, 0.2, 0.6, 1.0, 1.4)
"""Wavenumbers of the tables, h/Mpc."""

SUBBOX_QUANTITIES: Final = ("speed", "divergence", "momentum", "theta_p")
QUANTITIES: Final = (*SUBBOX_QUANTITIES, "momentum_vector", "momentum_curl_vector")

DEFINITIONS: Final[dict[str, str]] = {
    "speed": "|v|",
    "divergence": "theta = div v",
    "momentum": "p = |v| delta, a scalar",
    "theta_p": "Theta_p = |curl(rho v)|, a scalar; rho over its mean, finite differences",
    "momentum_vector": "p = rho v, summed over components; rho over its mean",
    "momentum_curl_vector": "curl(rho v), summed over components, spectral derivatives",
}

_WORST_RANGE: Final = (0.2, 1.4)
_PATCH: Final = 80.0
_THICKNESS: Final = 2.0
_GRADIENT_SCALE: Final = 8.0


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
        First cell along z of the slice and how many are averaged; they wrap too.
    """

    corner: tuple[int, int]
    cells: int
    layer: int
    layers: int

    def cut(self, plane: Array) -> Array:
        """Return the patch of a plane ``(..., n, n)`` as ``(..., cells, cells)``."""
        x, y = (np.arange(c, c + self.cells) % plane.shape[-1] for c in self.corner)
        result: Array = plane[..., x[:, None], y[None, :]]
        return result


@dataclass(frozen=True, eq=False)
class Comparison:
    """What was measured, and the slices to draw.

    Attributes
    ----------
    metrics : dict
        Nested dicts, lists, strings, floats and None (not a number); see :func:`compare`.
    density : ndarray
        Shape ``(n, n)``, float32, density over its mean in the slice, averaged over its layers.
    velocity : dict of ndarray
        Shape ``(3, n, n)`` each, float32, km/s, the same slice of ``'truth'`` and of every method.
    box_size : float
        Mpc/h.
    patch : Patch
        The part of the slice around the steepest infall.
    """

    metrics: Json
    density: Array
    velocity: dict[str, Array]
    box_size: float
    patch: Patch

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the predictions, in the order they were given."""
        return tuple(name for name in self.velocity if name != "truth")

    def to_json(self) -> Json:
        """Return the metrics, which the ``json`` module writes as they are."""
        return self.metrics


def compare(
    density: Array,
    truth: Array,
    predictions: Mapping[str, Array],
    box_size: float,
    subbox: float = 120.0,
    *,
    scheme: str | None = None,
) -> Comparison:
    """Compare predicted velocities with the true one.

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
        Side of the sub-boxes of the paper, Mpc/h, rounded to whole cells. None fits in a box
        smaller than that, and their part of the metrics is then null.
    scheme : {'ngp', 'cic', 'tsc', 'pcs'}, optional
        Divide the full-box modes of the momentum vector and its curl, which alone are linear in
        the particles, by this mass-assignment window.

    Returns
    -------
    Comparison
        Its ``metrics`` hold ``box_size``, ``cells``, ``truth``, ``residual`` (per method),
        ``patch``, ``by_density`` and ``spectra`` with ``full`` and ``subbox``.
    """
    _check(density, truth, predictions, box_size)
    rho, true = _tensor(density), _tensor(truth)
    fields = {name: _tensor(field) for name, field in predictions.items()}
    cells = density.shape[-1]
    sums = {name: sum_residual(rho, true, field) for name, field in fields.items()}
    patch = _busiest_patch(true, box_size)
    velocity = {name: _slice(field, patch) for name, field in {"truth": true, **fields}.items()}
    plane = _slice(rho, patch)
    first = next(iter(sums.values()))
    power = spectra.WINDOWS[scheme] if scheme is not None else 0
    metrics = {
        "box_size": float(box_size),
        "cells": cells,
        "truth": first.truth(),
        "residual": {name: total.figures() for name, total in sums.items()},
        "patch": _patch_metrics(plane, velocity, patch, box_size),
        "by_density": first.by_density()
        | {"methods": {name: total.by_density()["residual"] for name, total in sums.items()}},
        "spectra": {
            "sampling": "linear in k between the bins' mean k; null outside of them",
            "full": {
                "derivatives": "spectral; finite differences for theta_p",
                "scheme": scheme,
                "quantities": _full_box(rho, true, fields, box_size, power),
            },
            "subbox": _subboxes(rho, true, fields, box_size, subbox),
        },
    }
    return Comparison(_plain(metrics), plane, velocity, float(box_size), patch)


def _check(density: Array, truth: Array, predictions: Mapping[str, Array], box_size: float) -> None:
    cells = density.shape[-1] if density.ndim else 0
    if density.shape != (cells,) * 3 or cells < 4:
        raise DataError(
            "The density is no cube of at least 4 cells per axis.",
            where="density",
            value=density.shape,
        )
    if not predictions or "truth" in predictions:
        raise DataError(
            "There must be at least one prediction, and none may be called 'truth'.",
            where="predictions",
            value=sorted(predictions),
        )
    if not box_size > 0.0:
        raise DataError("The box has no size.", where="box_size", value=box_size, limit="> 0 Mpc/h")
    for name, field in {"density": density, "truth": truth, **predictions}.items():
        shape = density.shape if field is density else (3, *density.shape)
        if field.shape != shape:
            raise DataError(
                "A field does not match the density's grid.",
                where=name,
                value=field.shape,
                limit=shape,
                remedy="compare fields of one box painted on one grid",
            )
        # A sum over all cells is finite exactly if every cell is, and needs no mask in memory.
        with np.errstate(invalid="ignore"):
            total = np.sum(field, dtype=np.float64)
        if not np.isfinite(total):
            raise DataError("A field holds values that are not finite.", where=name)


def _tensor(field: Array) -> Tensor:
    """Return a float32 tensor on the array's own memory where that is possible."""
    contiguous = np.ascontiguousarray(field, dtype=np.float32)
    if not contiguous.flags.writeable:
        # torch has no read-only tensors and warns; nothing here writes, but a warning is noise.
        contiguous = contiguous.copy()
    return torch.from_numpy(contiguous)


def _busiest_patch(velocity: Tensor, box_size: float) -> Patch:
    """Find where the squared divergence, smoothed at 8 Mpc/h, is largest: the strongest infall."""
    cells = velocity.shape[-1]
    cell = box_size / cells
    strength = calculus.divergence(velocity, box_size) ** 2
    smooth = fourier.smooth_gaussian(fourier.forward(strength), box_size, _GRADIENT_SCALE)
    peak = int(torch.argmax(fourier.inverse(smooth, cells)))
    x, y, z = peak // cells**2, peak // cells % cells, peak % cells
    side = min(cells, max(4, round(_PATCH / cell)))
    layers = min(cells, max(1, round(_THICKNESS / cell)))
    corner = ((x - side // 2) % cells, (y - side // 2) % cells)
    return Patch(corner, side, (z - layers // 2) % cells, layers)


def _slice(field: Tensor, patch: Patch) -> Array:
    layers = (torch.arange(patch.layers) + patch.layer) % field.shape[-1]
    plane: Array = field[..., layers].mean(dim=-1).numpy()
    return plane


def _patch_metrics(
    density: Array, velocity: dict[str, Array], patch: Patch, box_size: float
) -> Json:
    """Return the paper's figures of section 4.1 for the patch: means and scatters over cells."""
    cell = box_size / density.shape[-1]
    rho = torch.from_numpy(patch.cut(density)).unsqueeze(-1)
    cut = {
        name: torch.from_numpy(patch.cut(plane)).unsqueeze(-1) for name, plane in velocity.items()
    }
    sums = {name: sum_residual(rho, cut["truth"], field) for name, field in cut.items()}
    return {
        "side": patch.cells * cell,
        "thickness": patch.layers * cell,
        "corner": [cell * c for c in (*patch.corner, patch.layer)],
        "truth": sums.pop("truth").truth(),
        "residual": {name: total.figures() for name, total in sums.items()},
    }


def _magnitude(v: Tensor) -> Tensor:
    # torch.linalg.vector_norm over a leading axis is thirty times slower (torch 2.13, CPU).
    x, y, z = v.unbind(0)
    return (x * x).addcmul_(y, y).addcmul_(z, z).sqrt_()


def _scalar(quantity: str, rho: Tensor, v: Tensor, side: float, *, periodic: bool) -> Tensor:
    """Return one of the paper's four quantities by finite differences, shape ``(n, n, n)``."""
    if quantity == "divergence":
        field = calculus.divergence(v, side, "difference", periodic=periodic)
    elif quantity == "theta_p":
        field = _magnitude(calculus.curl(v * rho, side, "difference", periodic=periodic))
    else:
        field = _magnitude(v)
        if quantity == "momentum":
            field = field * (rho - 1.0)
    # The mean has a bin of its own; without it float32 transforms lose no digits to it.
    return field - field.mean(dtype=torch.float64)


def _modes(quantity: str, rho: Tensor, v: Tensor, box_size: float) -> Tensor:
    """Return the modes of a quantity of the periodic box."""
    if quantity == "divergence":
        return calculus.divergence_modes(fourier.forward(v), box_size)
    if quantity == "momentum_vector":
        return fourier.forward(v * rho)
    if quantity == "momentum_curl_vector":
        return calculus.curl_modes(fourier.forward(v * rho), box_size)
    return fourier.forward(_scalar(quantity, rho, v, box_size, periodic=True))


def _full_box(
    rho: Tensor, truth: Tensor, fields: dict[str, Tensor], box_size: float, power: int
) -> Json:
    result: Json = {}
    for quantity in QUANTITIES:
        window = (power, power) if quantity.endswith("_vector") else (0, 0)
        reference = _modes(quantity, rho, truth, box_size)
        result[quantity] = _curves(
            quantity,
            {
                name: spectra.sum_modes(
                    reference,
                    _modes(quantity, rho, field, box_size),
                    cells=rho.shape[-1],
                    box_size=box_size,
                    window=window,
                ).spectrum()
                for name, field in fields.items()
            },
        )
    return result


def subbox_corners(cells: int, side: int) -> Iterator[tuple[int, int, int]]:
    """Yield the first cells of the sub-boxes that fit side by side into the box's centre."""
    count = cells // side
    margin = (cells - count * side) // 2
    axis = [margin + side * i for i in range(count)]
    yield from itertools.product(axis, axis, axis)


def _subboxes(
    rho: Tensor, truth: Tensor, fields: dict[str, Tensor], box_size: float, subbox: float
) -> Json | None:
    cells = rho.shape[-1]
    side_cells = round(subbox * cells / box_size)
    corners = list(subbox_corners(cells, side_cells)) if side_cells >= 4 else []
    if not corners:
        return None
    side = side_cells * box_size / cells
    zero = PowerSum.zero(side_cells, side)
    sums = {quantity: dict.fromkeys(fields, zero) for quantity in SUBBOX_QUANTITIES}
    for corner in corners:
        x, y, z = (slice(c, c + side_cells) for c in corner)
        cube = (..., x, y, z)
        here = rho[cube]
        for quantity, totals in sums.items():
            reference = fourier.forward(_scalar(quantity, here, truth[cube], side, periodic=False))
            for name, field in fields.items():
                modes = fourier.forward(_scalar(quantity, here, field[cube], side, periodic=False))
                totals[name] = totals[name] + spectra.sum_modes(
                    reference, modes, cells=side_cells, box_size=side
                )
    return {
        "side": side,
        "cells": side_cells,
        "boxes": len(corners),
        "derivatives": "finite differences, one-sided at the faces",
        "quantities": {
            quantity: _curves(quantity, {name: s.spectrum() for name, s in totals.items()})
            for quantity, totals in sums.items()
        },
    }


def _curves(quantity: str, by_method: dict[str, Spectrum]) -> Json:
    first = next(iter(by_method.values()))
    return {
        "definition": DEFINITIONS[quantity],
        "k": first.k,
        "modes": first.modes,
        "truth": first.auto_a,
        "methods": {
            name: {
                "power": found.auto_b,
                "T": found.transfer,
                "r": found.correlation,
                "sampled": {
                    "k": SAMPLED_AT,
                    "T": found.sample(found.transfer, SAMPLED_AT),
                    "r": found.sample(found.correlation, SAMPLED_AT),
                },
                "worst": _worst(found),
            }
            for name, found in by_method.items()
        },
    }


def _worst(found: Spectrum) -> Json | None:
    """Return the ``T`` farthest from 1 in the range that the paper quotes it for."""
    low, high = _WORST_RANGE
    inside = (found.k >= low) & (found.k <= high) & np.isfinite(found.transfer)
    if not inside.any():
        return None
    k, transfer = found.k[inside], found.transfer[inside]
    at = int(np.argmax(np.abs(transfer - 1.0)))
    return {"k": k[at], "T": transfer[at], "k_range": [low, high]}


def _plain(value: Any) -> Any:
    """Turn arrays into lists and what is no number into None, so that any JSON reader copes."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
