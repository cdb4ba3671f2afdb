"""Numbers of the boxes that train and validate a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def count_validation(stores: int, fraction: float) -> int:
    """Return how many of several stores are for validation."""
    return max(1, round(stores * fraction))


def count_boxes(provenance: Mapping[str, Any]) -> dict[str, int] | None:
    """Return how many boxes a model was trained and validated on; None if that is not known.

    A lone box is trained on but for a slab, which is for validation: it has 0 boxes for that.
    """
    boxes = sum(role.startswith("fields") for role in provenance.get("inputs") or {})
    config = (provenance.get("config") or {}).get("train") or {}
    fraction = config.get("validation_fraction")
    if not boxes or fraction is None:
        return None
    validation = count_validation(boxes, fraction) if boxes > 1 else 0
    return {"training": boxes - validation, "validation": validation}
