"""Folders of models: finding, opening and saving, and what to suggest for unknown names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cosmoflow.errors import ConfigError, IncompleteError, StorageError, closest
from cosmoflow.events import Listener, caution
from cosmoflow.model.description import read_description
from cosmoflow.model.family import ModelFamily
from cosmoflow.model.folder import Model, from_files, to_files
from cosmoflow.model.names import (
    DESCRIPTION,
    LINEAR,
    RUN,
    WEIGHTS,
    is_linear,
    is_named,
    is_plain,
    model_folder,
    pretrained_models,
)
from cosmoflow.model.registry import ARCHITECTURES
from cosmoflow.model.velocity import UNIT, ModelSpec, VelocityModel
from cosmoflow.stages.inputs.condition import condition_of
from cosmoflow.storage.metadata import Box
from cosmoflow.storage.urls import absolute, exists, has_file, read_bytes, write_bytes


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


def save_model(url: str, model: Model) -> None:
    """Write a model to its folder; the description, which names the weights' digest, last."""
    files = to_files(model, url)
    for name in (WEIGHTS, DESCRIPTION):
        write_bytes(url, name, files[name])


def model_digest(name: str) -> str:
    """Return the digest of a model's weights, since equal settings may give different weights.

    The digest covers the weights of a Wiener filter, the calibration of errors and the gain that
    restores power too; for linear theory it is the name.
    """
    if is_linear(name):
        return name
    folder = model_folder(name)
    description = read_description(read_bytes(folder, DESCRIPTION), folder)
    parts = (description.family or description.filter, description.errors, description.gain)
    kept: list[Any] = [part.model_dump() for part in parts if part is not None] or [None]
    content = json.dumps([description.weights_sha256, *kept], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


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
        similar = closest(near, ships)
        instead = f", or take one that ships, such as {similar}" if similar else ""
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


def near_model(name: str) -> str | None:
    """Return the model or architecture whose name is closest to an unknown name."""
    return closest(name, (*ARCHITECTURES, *pretrained_models()))


def _suggest_folder(path: str) -> str | None:
    """Return the remedy for a model's folder that does not exist; None if none nearby is close."""
    if "://" in path:
        return None
    place = Path(path)
    with suppress(OSError):
        trained = [one.name for one in place.parent.iterdir() if (one / DESCRIPTION).is_file()]
        if near := closest(place.name, trained):
            return f"did you mean {str(place.with_name(near))!r}?"
    return None


def _known_models(ships: Sequence[str]) -> str:
    return (
        f"{', '.join(ships)}, which ship; {LINEAR} or {LINEAR}:R; or the folder of a model that "
        "you trained"
    )
