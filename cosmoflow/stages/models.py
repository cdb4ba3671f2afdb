"""Stored models: loading, saving, listing, and checks that a model fits some fields."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from cosmoflow.config.cosmology import EXTENSIONS
from cosmoflow.cosmology.conditions import COORDINATES
from cosmoflow.errors import ConfigError, DataError, IncompleteError, StorageError
from cosmoflow.events import Listener, caution, warn_only
from cosmoflow.model.description import read_description
from cosmoflow.model.family import ModelFamily
from cosmoflow.model.folder import Model, from_files, to_files
from cosmoflow.model.names import (
    DEFAULT_MODEL,
    DESCRIPTION,
    HISTORY,
    LINEAR,
    RUN,
    WEIGHTS,
    is_linear,
    is_named,
    is_plain,
    model_folder,
    pretrained_models,
)
from cosmoflow.model.registry import ARCHITECTURES, count_parameters, find_architecture, summarise
from cosmoflow.model.velocity import UNIT, Fit, ModelSpec, VelocityModel
from cosmoflow.stages.inputs.boxes import count_boxes
from cosmoflow.stages.inputs.condition import condition_of
from cosmoflow.storage.metadata import Box
from cosmoflow.storage.urls import absolute, exists, has_file, read_bytes, write_bytes
from cosmoflow.tables import html_table, shorten, text_table
from cosmoflow.units import LENGTH

CELL_SIZE_TOLERANCE = 1e-3

SMALLEST_GRID = 2
"""Least cells per axis that `paint` makes."""

_SLOPE = COORDINATES.index("slope")

_HEADINGS = ("model", "ships", "parameters", "output", "halo", "summary")


def load_model(url: str) -> Model:
    """Load a model from its folder.

    Raises
    ------
    StorageError
        A file is missing.
    IncompleteError
        The training of the model did not finish.
    DataError
        A file is damaged.
    """
    if not has_file(url, DESCRIPTION) and has_file(url, RUN):
        raise IncompleteError(
            "the training of this model did not finish",
            where=url,
            remedy="finish it: run the same `cosmoflow train` again with --resume",
        )
    if not has_file(url, DESCRIPTION) and not has_file(url, WEIGHTS):
        raise StorageError(
            "there is no such model: the folder has no model.json",
            where=url,
            limit=_known_models(pretrained_models()),
            remedy=_suggest_folder(url) or "check the path",
        )
    return from_files({name: read_bytes(url, name) for name in (DESCRIPTION, WEIGHTS)}, url)


def find_model(name: str) -> str:
    """Return an identifier of a model that is valid on every node: a name, or an absolute URL.

    A shipped model takes precedence over a folder of the same name; ``./NAME`` is the folder.

    Raises
    ------
    ConfigError
        There is neither a model nor a folder of this name.
    """
    if is_named(name):
        return name
    if is_plain(name) and not exists(name):
        raise unknown_model(name)
    return absolute(name)


def warn_of_namesake(name: str, listener: Listener) -> None:
    """Warn if a shipped model is used while a trained one is in a folder of the same name here."""
    if is_named(name) and has_file(absolute(name), DESCRIPTION):
        caution(
            listener,
            f"{name} is the model that ships with cosmoflow; the folder of that name is ./{name}",
        )


def near_model(name: str) -> str | None:
    """Return the model or architecture whose name is closest to an unknown name."""
    names = {known.casefold(): known for known in (*ARCHITECTURES, *pretrained_models())}
    near = difflib.get_close_matches(name.casefold(), names, n=1)
    return names[near[0]] if near else None


def _suggest_folder(path: str) -> str | None:
    """Return the remedy for a model's folder that does not exist; None if none nearby is close."""
    if "://" in path:
        return None
    place = Path(path)
    with suppress(OSError):
        trained = [one.name for one in place.parent.iterdir() if (one / DESCRIPTION).is_file()]
        if near := difflib.get_close_matches(place.name, trained, n=1):
            return f"did you mean {str(place.with_name(near[0]))!r}?"
    return None


def unknown_model(name: str) -> ConfigError:
    """Return the error for a name without a trained model; it names alternatives."""
    ships = pretrained_models()
    near = near_model(name)
    if near is None:
        remedy = _suggest_folder(name) or "`cosmoflow models` lists all models"
    elif is_named(near):
        remedy = f"did you mean {near!r}?"
    else:
        # An architecture without a trained model would be refused as well.
        similar = difflib.get_close_matches(near, ships, n=1)
        instead = f", or take one that ships, such as {similar[0]}" if similar else ""
        asked = "" if near == name else f"did you mean {near!r}? No trained model of it ships: "
        remedy = f"{asked}train it (cosmoflow train FIELDS --out DIR --model {near}){instead}"
    return ConfigError(
        f"{name!r} is an architecture, and no trained model of it ships"
        if name in ARCHITECTURES
        else f"there is no such model as {name!r}, and no folder of that name",
        where="model",
        value=name,
        limit=_known_models(ships),
        remedy=remedy,
    )


def _known_models(ships: Sequence[str]) -> str:
    return (
        f"{', '.join(ships)}, which ship; {LINEAR} or {LINEAR}:R; or the folder of a model that "
        "you trained"
    )


class ModelList(list[dict[str, Any]]):
    """List of architectures, each as a dict of its properties."""

    def __repr__(self) -> str:
        return text_table(_HEADINGS, self._cells())

    def _repr_html_(self) -> str:
        return html_table("architectures", _HEADINGS, self._cells())

    def _cells(self) -> list[list[str]]:
        return [
            [
                one["name"],
                "default" if one["default"] else "yes" if one["ships"] else "",
                f"{one['parameters']:,}",
                f"{one['output_cells']}^3",
                str(one["halo"]),
                shorten(one["summary"], 48),
            ]
            for one in self
        ]


def models() -> ModelList:
    """List the architectures, and whether a trained model of each ships with cosmoflow.

    Returns
    -------
    ModelList
        A list of dicts: ``name``, ``summary``, ``ships``, ``default`` (the model that ``infer``
        uses if none is given), ``parameters``, ``trainable``,
        ``input_cells``, ``output_cells``, ``halo``, ``stride``, ``channels`` and
        ``flops_per_output_cell``.
    """
    ships = pretrained_models()
    return ModelList(
        asdict(summarise(name)) | {"ships": name in ships, "default": name == DEFAULT_MODEL}
        for name in ARCHITECTURES
    )


def open_model(name: str, fields: Box, *, particles_per_cell: float | None = None) -> VelocityModel:
    """Open a model that :func:`find_model` identified, for a box.

    Linear theory takes the cells of ``fields``, and a family of models their condition, with
    ``particles_per_cell`` if they do not state their own.

    Raises
    ------
    StorageError, IncompleteError, DataError, ConfigError
        See :func:`load_model` and :func:`cosmoflow.model.registry.find_architecture`.
    """
    if not is_linear(name):
        model = load_model(model_folder(name))
        if isinstance(model, ModelFamily):
            return model.at(condition_of(fields, particles_per_cell))
        return model
    metadata = fields.metadata
    return VelocityModel(
        ModelSpec(
            architecture=name,
            target="velocity",
            cell_size=fields.cell_size,
            redshift=metadata.redshift,
            cosmology=metadata.cosmology.model_dump(mode="json"),
            normalisation=UNIT,
        )
    ).eval()


def model_digest(name: str) -> str:
    """Return the digest of a model's weights, since equal settings may give different weights.

    The digest covers the weights of a Wiener filter and the calibration of errors too; for linear
    theory it is the name.
    """
    if is_linear(name):
        return name
    folder = model_folder(name)
    description = read_description(read_bytes(folder, DESCRIPTION), folder)
    parts = (description.family or description.filter, description.errors)
    kept: list[Any] = [part.model_dump() for part in parts if part is not None] or [None]
    content = json.dumps([description.weights_sha256, *kept], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def save_model(url: str, model: Model) -> None:
    """Write a model to its folder; the description, which names the weights' digest, last."""
    files = to_files(model, url)
    for name in (WEIGHTS, DESCRIPTION):
        write_bytes(url, name, files[name])


def fitting_grid(box_size: float, cell_size: float) -> int | None:
    """Return the cells per axis that cut a box into cells of a model's size, to 0.1 %, or None."""
    grids = _nearest_grids(box_size, cell_size)
    fitting = [grid for grid in grids if has_cells(box_size / grid, cell_size)]
    return min(fitting, key=lambda grid: abs(box_size / grid - cell_size), default=None)


def _nearest_grids(box_size: float, cell_size: float) -> list[int]:
    """Return the grids whose cell sizes are closest to ``cell_size``, from both sides."""
    below = math.floor(box_size / cell_size)
    return sorted({max(below, SMALLEST_GRID), max(below + 1, SMALLEST_GRID)})


def has_cells(found: float, expected: float) -> bool:
    """Return whether cells have the size that a model was trained on, to 0.1 %."""
    return abs(found / expected - 1.0) <= CELL_SIZE_TOLERANCE


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
            caution(
                listener,
                f"the model was trained at {name} {trained}, the fields have {value}; "
                "its accuracy there is unknown",
            )
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


def describe_model(name: str) -> dict[str, Any]:
    """Return the description of a model that ``cosmoflow info`` prints."""
    if is_linear(name):
        architecture = find_architecture(name)
        return {
            "kind": "model",
            "name": name,
            "architecture": name,
            "summary": architecture.summary,
            "target": "velocity",
            "cell_size": "any",
            "redshift": "any",
            "cosmology": "any",
            "parameters": 0,
            "halo": 0,
            "stride": 1,
            "smoothing": list(architecture.smoothing),
            "boxes": None,
            "files": [],
            "provenance": {},
        }
    folder = model_folder(name)
    model = load_model(folder)
    spec = model.spec
    return {
        "kind": "model",
        "name": PurePosixPath(name).name,
        "folder": folder,
        "ships": folder != name,
        "architecture": spec.architecture,
        "summary": find_architecture(spec.architecture).summary,
        "target": spec.target,
        **_describe_training(model),
        "boxes": count_boxes(spec.provenance),
        "parameters": count_parameters(model.network)[0],
        "network_parameters": summarise(spec.architecture).parameters,
        "halo": model.geometry.halo,
        "stride": model.geometry.stride,
        "smoothing": list(model.smoothing),
        "files": [file for file in (DESCRIPTION, WEIGHTS, HISTORY) if has_file(folder, file)],
        "provenance": spec.provenance,
    }


def _describe_training(model: Model) -> dict[str, Any]:
    """Return what a model was trained on: the range of a family, or one condition."""
    if isinstance(model, ModelFamily):
        family = model.spec.family
        limits = {name: list(ends) for name, ends in family.limits.items()}
        return {
            "cell_size": limits["cell_size"],
            "redshift": limits["redshift"],
            "cosmology": "many",
            "limits": limits,
            # h and n_s enter a condition by this slope, and by the fluctuations.
            "slope": [family.space.low[_SLOPE], family.space.high[_SLOPE]],
            "knows_errors": model.spec.errors is not None,
            "filter": list(family.fields),
            "gains_for_symmetries": None if family.gain is None else family.gain_symmetries,
        }
    spec = model.spec
    return {
        "cell_size": spec.cell_size,
        "redshift": spec.redshift,
        "cosmology": spec.cosmology,
        "knows_errors": spec.errors is not None,
        "filter": None if spec.filter is None else list(spec.filter.fields),
        "gains_for_symmetries": None if spec.gain is None else spec.gain.symmetries,
    }
