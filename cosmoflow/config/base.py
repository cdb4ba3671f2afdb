"""Frozen, strict base class of configuration sections, and digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """An immutable section that refuses unknown keys, infinities, NaN, and true for a number."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        # Show only values that differ from the defaults, as all settings would fill screens.
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value != field.default:
                yield name, value

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false, which pydantic reads as 1 and 0, for settings that are numbers."""
        if isinstance(value, bool) and info.field_name is not None:
            kind = cls.model_fields[info.field_name].annotation
            if bool not in (kind, *get_args(kind)):
                raise ValueError("true and false are not allowed here")
        return value


def digest(content: Any) -> str:
    """Return 16 hex digits of the SHA-256 of JSON-like content; the order of keys is ignored."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
