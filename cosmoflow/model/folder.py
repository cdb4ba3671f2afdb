"""Conversion of models to small files and back, without pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from cosmoflow.errors import ConfigError, DataError
from cosmoflow.model.description import (
    FORMAT,
    FORMAT_VERSION,
    REMEDY,
    Description,
    check_description,
    read_description,
)
from cosmoflow.model.family import FamilySpec, ModelFamily
from cosmoflow.model.names import DESCRIPTION, WEIGHTS
from cosmoflow.model.velocity import ModelSpec, VelocityModel

Model = VelocityModel | ModelFamily
"""A stored model: of one condition, or of all."""


def to_files(model: Model, where: str = "the model") -> dict[str, bytes]:
    """Return the files of a model by name.

    Parameters
    ----------
    model : VelocityModel or ModelFamily
        Model to convert.
    where : str
        Destination of the files, for errors.

    Raises
    ------
    DataError
        A weight or constant is not finite, so :func:`from_files` would refuse the model.
    """
    check_weights(model.network.state_dict(), f"{where}/{WEIGHTS}")
    weights = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in model.network.state_dict().items()}
    )
    geometry = model.geometry
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **_describe(model),
        "halo": geometry.halo,
        "stride": geometry.stride,
        "smoothing": list(model.smoothing),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    # A round trip through JSON turns tuples into lists, as the reader sees them.
    check_description(json.loads(json.dumps(description)), where)
    return {
        WEIGHTS: weights,
        DESCRIPTION: (json.dumps(description, indent=2, sort_keys=True) + "\n").encode(),
    }


def _describe(model: Model) -> dict[str, Any]:
    """Return the description of a model, without what only a model made for a box has."""
    content = asdict(model.spec)
    content.pop("fit", None)
    # Models of before do not have these, and their digests stay as they are.
    for part, name in (("errors", "log_interval_95"), ("family", "gain_reach")):
        if (found := content.get(part)) and not found[name]:
            del found[name]
    return content


def from_files(files: Mapping[str, bytes], where: str) -> Model:
    """Build a model from its files.

    Parameters
    ----------
    files : mapping of str to bytes
        ``model.json`` and ``model.safetensors``.
    where : str
        Location of the files, for errors.

    Raises
    ------
    DataError
        A file is truncated or damaged, or the files do not belong together.
    """
    description = read_description(files[DESCRIPTION], where)
    content = files[WEIGHTS]
    found = hashlib.sha256(content).hexdigest()
    if found != description.weights_sha256:
        raise DataError(
            "the model's weights are truncated or damaged",
            where=f"{where}/{WEIGHTS}",
            value=f"{len(content)} bytes, sha256 {found[:12]}",
            limit=f"sha256 {description.weights_sha256[:12]}",
            remedy="copy the model again, or train with --resume to write it again",
        )
    model = _build(description, where)
    _load_weights(model.network, content, f"{where}/{WEIGHTS}")
    return model.eval()


def _build(description: Description, where: str) -> Model:
    """Return a model with random weights, or refuse a description that no architecture fits."""
    try:
        model = _make(description)
    except (ConfigError, ValueError) as error:
        raise DataError(
            "the model's description and architecture do not fit together",
            where=f"{where}/{DESCRIPTION}, architecture",
            value=str(error).splitlines()[0],
            remedy=(error.remedy if isinstance(error, ConfigError) else None) or REMEDY,
        ) from error
    for key, value, expected in (
        ("halo", description.halo, model.geometry.halo),
        ("stride", description.stride, model.geometry.stride),
        ("smoothing", description.smoothing, list(model.smoothing)),
    ):
        if value != expected:
            raise DataError(
                "the model's description and architecture do not fit together",
                where=f"{where}/{DESCRIPTION}, {key}",
                value=value,
                limit=f"{expected}, the value of {description.architecture}",
                remedy=REMEDY,
            )
    return model


def _make(description: Description) -> Model:
    """Return a model with random weights."""
    errors = None if description.errors is None else description.errors.build()
    if description.family is not None:
        return ModelFamily(
            FamilySpec(
                description.architecture,
                description.target,
                description.family.build(),
                dict(description.provenance),
                errors,
            )
        )
    # The description was validated.
    assert description.cell_size is not None
    assert description.redshift is not None
    assert description.cosmology is not None
    assert description.normalisation is not None
    return VelocityModel(
        ModelSpec(
            architecture=description.architecture,
            target=description.target,
            cell_size=description.cell_size,
            redshift=description.redshift,
            cosmology={
                key: value for key, value in description.cosmology.items() if value is not None
            },
            normalisation=description.normalisation.build(),
            provenance=dict(description.provenance),
            filter=None if description.filter is None else description.filter.build(),
            gain=None if description.gain is None else description.gain.build(),
            errors=errors,
        )
    )


def _load_weights(network: nn.Module, content: bytes, where: str) -> None:
    """Load weights, or refuse those that differ from the network's in name, shape or type."""
    try:
        weights = safetensors.torch.load(content)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(
            "the model's weights cannot be read",
            where=where,
            value=str(error).partition("\n")[0],
            limit="a safetensors file",
            remedy=REMEDY,
        ) from error
    expected = network.state_dict()
    if different := sorted(set(expected) ^ set(weights)):
        name = different[0]
        raise DataError(
            "the model's weights are not those of its network",
            where=f"{where}, {name}",
            value="missing" if name in expected else "a tensor that the network does not have",
            limit=f"{len(expected)} tensors",
            remedy=REMEDY,
        )
    for name, tensor in expected.items():
        found = weights[name]
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            raise DataError(
                "the model's weights are not those of its network",
                where=f"{where}, {name}",
                value=f"{tuple(found.shape)} of {found.dtype}",
                limit=f"{tuple(tensor.shape)} of {tensor.dtype}",
                remedy=REMEDY,
            )
    check_weights(weights, where)
    network.load_state_dict(weights)


def check_weights(weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that are not finite.

    Raises
    ------
    DataError
    """
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise DataError(
                "the model's weights are not finite",
                where=f"{where}, {name}",
                value=f"{int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} values",
                remedy="train again, with a smaller train.learning_rate or train.muon_rate",
            )
