"""Models at rest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Protocol

from cosmoflow.config.cosmology import EXTENSIONS
from cosmoflow.errors import DataError, IncompleteError
from cosmoflow.events import Listener, caution, warn_only
from cosmoflow.model.folder import (
    DESCRIPTION,
    WEIGHTS,
    from_files,
    read_description,
    to_files,
)
from cosmoflow.model.registry import LINEAR
from cosmoflow.model.velocity import UNIT, ModelSpec, VelocityModel
from cosmoflow.storage.metadata import BoxMetadata
from cosmoflow.storage.urls import absolute, has_file, read_bytes, write_bytes

RUN = "run.json"
"""Says which run a model folder belongs to, from its first step on."""

PRETRAINED = Path(__file__).parent.parent / "pretrained"
"""The folders of the models that come with cosmoflow."""

DEFAULT_MODEL = "residual-small"
"""Of them, the one that `infer` takes when none is named."""

CELL_SIZE_TOLERANCE = 1e-3


class Box(Protocol):
    """A box that models are applied to; a fields store is one."""

    @property
    def url(self) -> str:
        """Where it is, for messages."""

    @property
    def grid(self) -> int:
        """Cells per axis."""

    @property
    def cell_size(self) -> float:
        """Side of a cell, Mpc/h."""

    @property
    def metadata(self) -> BoxMetadata:
        """Its size, redshift and cosmology."""


def load_model(url: str) -> VelocityModel:
    """Load a model from its folder.

    Raises
    ------
    StorageError
        A file is missing.
    IncompleteError
        Its training did not finish.
    DataError
        A file is damaged.
    """
    if not has_file(url, DESCRIPTION) and has_file(url, RUN):
        raise IncompleteError(
            "the training of this model did not finish",
            where=url,
            remedy="finish it: run the same `cosmoflow train` again with --resume",
        )
    return from_files({name: read_bytes(url, name) for name in (DESCRIPTION, WEIGHTS)}, url)


def find_model(name: str) -> str:
    """Return what a model is known by on every node: its name, or the absolute URL of a folder.

    A folder of the same name as a model that ships is meant by ``./NAME``.
    """
    return name if is_named(name) else absolute(name)


def is_named(name: str) -> bool:
    """Tell whether a model is linear theory or ships, rather than a folder of somebody's."""
    return is_linear(name) or name in pretrained_models()


def model_folder(name: str) -> str:
    """Return the folder of a model; of one that ships, in the installation of this node."""
    return str(PRETRAINED / name) if name in pretrained_models() else name


def pretrained_models() -> list[str]:
    """Return the names of the models that come with cosmoflow."""
    return sorted(folder.name for folder in PRETRAINED.iterdir() if folder.is_dir())


def is_linear(name: str) -> bool:
    """Tell whether a model is linear theory, which there is nothing to load of."""
    return name == LINEAR or name.startswith(f"{LINEAR}:")


def open_model(name: str, fields: Box) -> VelocityModel:
    """Open a model for some fields.

    Parameters
    ----------
    name : str
        Of :func:`find_model`.
    fields : Box
        What it is to be applied to; linear theory fits all.

    Raises
    ------
    StorageError, IncompleteError, DataError, ConfigError
        As :func:`load_model` and :func:`cosmoflow.model.registry.find_architecture`.
    """
    if not is_linear(name):
        return load_model(model_folder(name))
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
    """Return the digest of a model's weights: the same settings need not give the same weights.

    Of linear theory it is the name, of a filter that of its weights.
    """
    if is_linear(name):
        return name
    folder = model_folder(name)
    description = read_description(read_bytes(folder, DESCRIPTION), folder)
    content = json.dumps([description["weights_sha256"], description["filter"]])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def save_model(url: str, model: VelocityModel) -> None:
    """Write a model to its folder; the description, which names the weights' digest, last."""
    files = to_files(model)
    for name in (WEIGHTS, DESCRIPTION):
        write_bytes(url, name, files[name])


def check_fits(
    model: VelocityModel, model_url: str, fields: Box, listener: Listener = warn_only
) -> None:
    """Refuse fields that a model was not made for; warn of those that it has not seen the like of.

    Raises
    ------
    DataError
        The cell sizes differ, or the grid does not divide into the network's stride.
    """
    expected, found = model.spec.cell_size, fields.cell_size
    if abs(found / expected - 1.0) > CELL_SIZE_TOLERANCE:
        grid = round(fields.metadata.box_size / expected)
        raise DataError(
            "the model was trained on cells of another size",
            where=f"{fields.url} with {model_url}",
            value=f"cells of {found:g} Mpc/h",
            limit=f"cells of {expected:g} Mpc/h",
            remedy=f"paint the box onto --grid {grid}, or train a model on such cells",
        )
    found_cosmology, trained_on = fields.metadata.cosmology, model.spec.cosmology
    for name, value, trained in (
        ("redshift", fields.metadata.redshift, model.spec.redshift),
        ("Omega_m", found_cosmology.Omega_m, trained_on.get("Omega_m")),
        ("sigma8", found_cosmology.sigma8, trained_on.get("sigma8")),
        *(
            (name, getattr(found_cosmology, name), trained_on.get(name, usual))
            for name, usual in EXTENSIONS.items()
        ),
    ):
        if value != trained:
            caution(
                listener,
                f"the model was trained at {name} {trained}, the fields have {value}; "
                "nothing says how well it does there",
            )
    if fields.metadata.unknown_expansion is not None:
        caution(
            listener,
            f"the expansion of the box is not known ({fields.metadata.unknown_expansion}); "
            "nothing says how well the model does there",
        )
    geometry = model.geometry
    if geometry.fixed_output is None and fields.grid % geometry.stride:
        raise DataError(
            "the grid does not divide into the network's stride",
            where=fields.url,
            value=f"{fields.grid} cells per axis",
            limit=f"a multiple of {geometry.stride}",
            remedy="paint onto such a grid: across the periodic border tiles must stay on one "
            "lattice",
        )
