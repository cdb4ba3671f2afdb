"""Lists the architectures, and describes models for `info` and reports."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

from cosmoflow.model.family import ModelFamily
from cosmoflow.model.folder import Model
from cosmoflow.model.names import (
    DEFAULT_MODEL,
    DESCRIPTION,
    HISTORY,
    WEIGHTS,
    is_linear,
    model_folder,
    pretrained_models,
)
from cosmoflow.model.registry import ARCHITECTURES, count_parameters, find_architecture, summarise
from cosmoflow.stages.inputs.boxes import count_boxes
from cosmoflow.stages.models.folders import load_model
from cosmoflow.storage.urls import has_file
from cosmoflow.tables import html_table, shorten, text_table

_HEADINGS = ("model", "ships", "parameters", "output", "halo", "summary")


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
    spec, parameters = model.spec, count_parameters(model.network)[0]
    trained = (spec.provenance.get("config") or {}).get("train") or {}
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
        # A filter is fitted, and takes no steps.
        "steps": trained.get("steps") if parameters else None,
        "parameters": parameters,
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
