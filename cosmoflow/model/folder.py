"""A model as a set of small files. Reading one never unpickles anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, get_args

import safetensors.torch
from safetensors import SafetensorError

from cosmoflow.errors import ConfigError, DataError
from cosmoflow.model.velocity import ModelSpec, Normalisation, Target, VelocityModel
from cosmoflow.numerics.restoration import PowerGain
from cosmoflow.numerics.wiener import WienerFilter

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
FORMAT = "cosmoflow/model"
FORMAT_VERSION = 2


def to_files(model: VelocityModel) -> dict[str, bytes]:
    """Return the files of a model by name."""
    weights = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in model.network.state_dict().items()}
    )
    geometry = model.geometry
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **asdict(model.spec),
        "halo": geometry.halo,
        "stride": geometry.stride,
        "smoothing": list(model.smoothing),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    return {
        WEIGHTS: weights,
        DESCRIPTION: (json.dumps(description, indent=2, sort_keys=True) + "\n").encode(),
    }


def read_description(content: bytes, where: str) -> dict[str, Any]:
    """Parse ``model.json``.

    Raises
    ------
    DataError
        It is damaged or describes no model that this version reads.
    """
    try:
        description = json.loads(content)
    except ValueError as error:
        raise DataError("model.json cannot be read", where=where, value=str(error)) from None
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        raise DataError("this is no model", where=where, value=found, limit=f"format: {FORMAT}")
    if description.get("format_version") != FORMAT_VERSION:
        raise DataError(
            "the model's format version is not one that this cosmoflow reads",
            where=where,
            value=description.get("format_version"),
            limit=FORMAT_VERSION,
            remedy="upgrade cosmoflow",
        )
    return dict(description)


def read_filter(content: dict[str, Any]) -> WienerFilter:
    """Build a filter from what ``dataclasses.asdict`` made of one."""
    return WienerFilter(
        tuple(content["fields"]), float(content["width"]), tuple(map(tuple, content["weights"]))
    )


def _read_gain(content: dict[str, Any]) -> PowerGain:
    return PowerGain(
        float(content["width"]),
        tuple(content["potential"]),
        tuple(content["rotational"]),
        int(content["symmetries"]),
    )


def from_files(files: Mapping[str, bytes], where: str) -> VelocityModel:
    """Build a model from its files.

    Parameters
    ----------
    files : mapping of str to bytes
        ``model.json`` and ``model.safetensors``.
    where : str
        Named in errors.

    Raises
    ------
    DataError
        A file is truncated or damaged, or the two do not belong together.
    """
    description = read_description(files[DESCRIPTION], where)
    weights = files[WEIGHTS]
    found = hashlib.sha256(weights).hexdigest()
    if found != description.get("weights_sha256"):
        raise DataError(
            "the model's weights are truncated or damaged",
            where=f"{where}/{WEIGHTS}",
            value=f"{len(weights)} bytes, sha256 {found[:12]}",
            limit=f"sha256 {str(description.get('weights_sha256'))[:12]}",
            remedy="copy the model again, or train with --resume to write it anew",
        )
    try:
        spec = ModelSpec(
            architecture=description["architecture"],
            target=description["target"],
            cell_size=float(description["cell_size"]),
            redshift=float(description["redshift"]),
            cosmology=dict(description["cosmology"]),
            normalisation=Normalisation(**description["normalisation"]),
            provenance=dict(description["provenance"]),
            filter=None if description["filter"] is None else read_filter(description["filter"]),
            gain=None if description["gain"] is None else _read_gain(description["gain"]),
        )
        if spec.target not in get_args(Target):
            raise ValueError(f"unknown target {spec.target!r}")
        model = VelocityModel(spec)
        model.network.load_state_dict(safetensors.torch.load(weights))
    except (ConfigError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(
            "the model's description and weights do not fit together",
            where=where,
            value=str(error).splitlines()[0],
        ) from error
    return model.eval()
