"""The models behind the compared predictions, and what they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cosmoflow.errors import CosmoflowError
from cosmoflow.stages.inspect import read_validation
from cosmoflow.stages.models import describe_model, model_digest
from cosmoflow.storage.fields import FieldStore


def describe_models(store: FieldStore) -> list[dict[str, Any]]:
    """Return the models of a prediction; empty if it does not name any.

    Each is a dict with ``name`` and, if the model is still where the prediction found it and is
    still the same, ``architecture``, ``parameters``, ``cell_size`` and ``redshift`` (a number, a
    range, or "any"), and for trained ones ``boxes``, ``validation_boxes``, ``steps``, ``kept_step``
    (the step whose weights are kept, if it is known) and ``start``, the model that the training
    started from, or None.
    """
    return [_describe(name, digest) for name, digest in models_of(store.metadata.provenance)]


def models_of(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return name or URL, and digest, of each model that made a prediction.

    The list is empty if the provenance names no models.
    """
    said, digests = (
        str((provenance.get(part) or {}).get("models", "")) for part in ("sources", "inputs")
    )
    if not said:
        return []
    known = digests.split()
    # Paths may contain spaces, which also separate the models of an ensemble.
    names = said.split() if len(known) != 1 else [said]
    if len(names) != len(known):
        return [(name, "") for name in names]
    return list(zip(names, known, strict=True))


def _describe(name: str, digest: str) -> dict[str, Any]:
    """Return the facts of a model; its name alone if it is gone, or another by now."""
    try:
        if model_digest(name) != digest:
            return {"name": name}
        said = describe_model(name)
    except (CosmoflowError, OSError):
        return {"name": name}
    provenance = said["provenance"]
    start = (provenance.get("sources") or {}).get("start")
    kept = ("architecture", "parameters", "cell_size", "redshift")
    facts = {"name": said["name"]} | {key: said[key] for key in kept}
    if (boxes := said.get("boxes")) is None:
        return facts
    validation = read_validation(said["folder"], provenance)
    numbers = {"boxes": boxes["training"], "validation_boxes": boxes["validation"]}
    best = None if validation is None else validation["step"]
    return facts | numbers | {"steps": said["steps"], "kept_step": best, "start": start}
