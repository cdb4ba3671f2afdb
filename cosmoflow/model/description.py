"""Reading ``model.json`` and the files of filters and families; errors name the key."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from cosmoflow.cosmology.conditions import COORDINATES
from cosmoflow.errors import DataError
from cosmoflow.model.family import Family
from cosmoflow.model.parts import (
    ErrorsPart,
    FamilyPart,
    FilterPart,
    GainPart,
    NormalisationPart,
    Part,
    Scale,
)
from cosmoflow.numerics.wiener import WienerFilter

FORMAT: Final = "cosmoflow/model"
FORMAT_VERSION: Final = 3
_READABLE: Final = (2, 3)
"""Versions that can be read; version 2 has no families of models."""

_SHOWN = 60
"""Characters of an offending value that a message shows."""

Cells = Annotated[int, Field(ge=0, le=1 << 20)]
P = TypeVar("P", bound=Part)

_BOUNDS: Final = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}

REMEDY: Final = "copy the model again, or train it again"


class Description(Part):
    """Content of ``model.json``; keys unknown to this version are ignored.

    A model of one condition has a cell size, a redshift, a cosmology and a normalisation; a family
    of models has ``family`` in their place.
    """

    model_config = ConfigDict(extra="ignore")

    architecture: str
    target: Literal["velocity", "momentum"]
    family: FamilyPart | None = None
    cell_size: Scale | None = None
    redshift: Annotated[float, Field(gt=-1.0)] | None = None
    cosmology: dict[str, float | None] | None = None
    normalisation: NormalisationPart | None = None
    filter: FilterPart | None = None
    gain: GainPart | None = None
    errors: ErrorsPart | None = None
    halo: Cells
    stride: Annotated[int, Field(ge=1, le=1 << 20)]
    smoothing: list[Annotated[float, Field(ge=0.0)]]
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.family is None:
            for name in ("cell_size", "redshift", "cosmology", "normalisation"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name}, or a family")
        if self.errors is not None:
            self.errors.check(0 if self.family is None else len(COORDINATES))
        for name in ("h", "Omega_m", "sigma8"):
            value = (self.cosmology or {}).get(name)
            if value is not None and value <= 0.0:
                raise ValueError(f"a cosmology with {name} above 0, not {value:g}")
        return self


def read_description(content: bytes, where: str) -> Description:
    """Parse ``model.json``.

    Parameters
    ----------
    content : bytes
        Content of the file.
    where : str
        The model's folder, for errors.

    Raises
    ------
    DataError
        The file is damaged, or this version cannot read the model; the message names the key.
    """
    found = _read_object(content, where, "model.json")
    kind = found.get("format")
    if kind != FORMAT:
        raise DataError(
            "this is not a model",
            where=f"{where}/model.json, format",
            value=_show(kind),
            limit=FORMAT,
            remedy=REMEDY,
        )
    _check_version(found.get("format_version"), where)
    return _validate(Description, found, where, "model.json")


def check_description(content: dict[str, Any], where: str) -> None:
    """Check that :func:`read_description` would accept a description before it is written.

    Raises
    ------
    DataError
    """
    _validate(Description, content, where, "model.json", remedy="check the training fields")


def read_filter(content: bytes, where: str, name: str) -> WienerFilter:
    """Parse a file that holds only a filter.

    Raises
    ------
    DataError
        The file is damaged; the message names the key.
    """
    return _read_part(FilterPart, content, where, name).build()


def read_family(content: bytes, where: str, name: str) -> Family:
    """Parse a file that holds only a family.

    Raises
    ------
    DataError
        The file is damaged; the message names the key.
    """
    return _read_part(FamilyPart, content, where, name).build()


def _read_part(part: type[P], content: bytes, where: str, name: str) -> P:
    """Parse a file of a run that holds only a part of a description."""
    remedy = "begin the training again, with --overwrite"
    found = _read_object(content, where, name, remedy=remedy)
    return _validate(part, found, where, name, remedy=remedy)


def _check_version(version: Any, where: str) -> None:
    if type(version) is int and version in _READABLE:
        return
    newer = type(version) is int and version > FORMAT_VERSION
    older = type(version) is int and 0 < version < min(_READABLE)
    raise DataError(
        "this version of cosmoflow does not read the model's format version",
        where=f"{where}/model.json, format_version",
        value=_show(version),
        limit=" or ".join(map(str, _READABLE)),
        remedy="upgrade cosmoflow"
        if newer
        else "train the model again with this cosmoflow"
        if older
        else REMEDY,
    )


def _read_object(content: bytes, where: str, name: str, *, remedy: str = REMEDY) -> dict[str, Any]:
    """Parse a JSON object."""
    try:
        found = json.loads(content)
    # Deep nesting exhausts the parser.
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{name} cannot be read",
            where=f"{where}/{name}",
            value=_printable(str(error)),
            limit="a JSON object in UTF-8",
            remedy=remedy,
        ) from None
    if not isinstance(found, dict):
        raise DataError(
            f"{name} does not hold a JSON object",
            where=f"{where}/{name}",
            value=_show(found),
            limit="{...}",
            remedy=remedy,
        )
    return found


def _validate(
    part: type[P], content: dict[str, Any], where: str, name: str, *, remedy: str = REMEDY
) -> P:
    """Validate a parsed object; the error names the first invalid key."""
    try:
        return part.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    first = problems[0]
    missing = first["type"] == "missing"
    own = first["type"] == "value_error"
    limit = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    for key, words in _BOUNDS.items():
        if key in (context := first.get("ctx", {})):
            # The validator's own text writes 1e-38 with all its zeros.
            limit = f"{words} {context[key]:g}"
    further = len(problems) - 1
    raise DataError(
        f"{name} lacks a key" if missing else f"{name} holds an invalid value",
        where=f"{where}/{name}, {_path(first['loc'])}" if first["loc"] else f"{where}/{name}",
        # A rule that covers several keys names the offending value itself.
        value=None if missing or own else _show(first["input"]),
        limit=None if missing else _printable(limit) + (f" (and {further} more)" * (further > 0)),
        remedy=remedy,
    )


def _path(keys: tuple[int | str, ...]) -> str:
    """Return the place of a value in a file: ``filter.weights[3][0]``."""
    parts = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys]
    return _printable("".join(parts).removeprefix("."))[:_SHOWN]


def _show(value: Any) -> str:
    """Return a value as text for a message."""
    text = _printable(repr(value))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _printable(text: str) -> str:
    """Escape lone surrogates, which JSON can contain and UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode()
