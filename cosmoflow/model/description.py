"""Validated content of a model's JSON files.

A number that is not finite, or that float32 cannot hold, would turn predictions into NaN long after
it was read, so the validation refuses it and names its path in the file.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from cosmoflow.cosmology.conditions import COORDINATES
from cosmoflow.errors import DataError
from cosmoflow.model.errors import KNOTS, ErrorScale, feature_counts
from cosmoflow.model.family import LIMITED, LIMITED_LATER, Family
from cosmoflow.model.velocity import Normalisation
from cosmoflow.numerics.conditions import ConditionCurves, ConditionSpace
from cosmoflow.numerics.restoration import PowerGain
from cosmoflow.numerics.wiener import FIELDS, WienerFilter

FORMAT: Final = "cosmoflow/model"
FORMAT_VERSION: Final = 3
_READABLE: Final = (2, 3)
"""Versions that can be read; version 2 has no families of models."""

_LARGEST, _SMALLEST = 3.0e38, 1.2e-38
"""Magnitudes that float32 holds with all its digits."""

_SHOWN = 60
"""Characters of an offending value that a message shows."""

Single = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]
Scale = Annotated[float, Field(ge=_SMALLEST, le=_LARGEST)]
Gain = Annotated[float, Field(ge=0.0, le=_LARGEST)]
Row = Annotated[list[Single], Field(min_length=1)]
Cells = Annotated[int, Field(ge=0, le=1 << 20)]

_BOUNDS: Final = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}

REMEDY: Final = "copy the model again, or train it again"


class _Part(BaseModel):
    """An immutable JSON object that refuses text for numbers, NaN and infinity."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


P = TypeVar("P", bound=_Part)


class NormalisationPart(_Part):
    """See :class:`cosmoflow.model.velocity.Normalisation`."""

    density_mean: Single
    density_std: Scale
    velocity_scale: Scale
    target_scale: Scale

    def build(self) -> Normalisation:
        """Return what it describes."""
        return Normalisation(**self.model_dump())


class FilterPart(_Part):
    """See :class:`cosmoflow.numerics.wiener.WienerFilter`."""

    fields: list[str] = Field(min_length=1)
    width: Scale
    weights: list[list[Single]] = Field(min_length=2)

    @model_validator(mode="after")
    def _check(self) -> Self:
        unknown = sorted(set(self.fields) - set(FIELDS))
        if unknown:
            raise ValueError(f"fields among {', '.join(FIELDS)}, not {unknown[0]!r}")
        if len(set(self.fields)) < len(self.fields):
            raise ValueError(f"fields that differ, not {self.fields}")
        for number, row in enumerate(self.weights):
            if len(row) != len(self.fields):
                raise ValueError(
                    f"{len(self.fields)} weights in every bin, one a field, not {len(row)} in bin "
                    f"{number}"
                )
        return self

    def build(self) -> WienerFilter:
        """Return what it describes."""
        return WienerFilter(tuple(self.fields), self.width, tuple(map(tuple, self.weights)))


class GainPart(_Part):
    """See :class:`cosmoflow.numerics.restoration.PowerGain`."""

    width: Scale
    potential: list[Gain] = Field(min_length=2)
    rotational: list[Gain] = Field(min_length=2)
    symmetries: int = Field(ge=1, le=48)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.potential) != len(self.rotational):
            raise ValueError(
                f"as many rotational gains as potential ones, not {len(self.rotational)} and "
                f"{len(self.potential)}"
            )
        return self

    def build(self) -> PowerGain:
        """Return what it describes."""
        return PowerGain(self.width, tuple(self.potential), tuple(self.rotational), self.symmetries)


class CurvesPart(_Part):
    """See :class:`cosmoflow.numerics.conditions.ConditionCurves`."""

    step: Scale
    coefficients: list[list[Row]] = Field(min_length=2)

    def check(self, terms: int, curves: int) -> None:
        """Refuse coefficients of another shape."""
        for number, knot in enumerate(self.coefficients):
            if len(knot) != terms or any(len(row) != curves for row in knot):
                raise ValueError(
                    f"{terms} terms of {curves} coefficients at every knot, unlike knot {number}"
                )

    def build(self) -> ConditionCurves:
        """Return what it describes."""
        return ConditionCurves(
            self.step, tuple(tuple(map(tuple, knot)) for knot in self.coefficients)
        )


class SpacePart(_Part):
    """See :class:`cosmoflow.numerics.conditions.ConditionSpace`."""

    low: Row
    high: Row
    degree: int = Field(ge=0, le=2)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not len(self.low) == len(self.high) == len(COORDINATES):
            raise ValueError(f"{len(COORDINATES)} coordinates: {', '.join(COORDINATES)}")
        if any(low > high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError("no lower end above its upper end")
        return self

    def build(self) -> ConditionSpace:
        """Return what it describes."""
        return ConditionSpace(tuple(self.low), tuple(self.high), self.degree)


class FamilyPart(_Part):
    """See :class:`cosmoflow.model.family.Family`."""

    space: SpacePart
    limits: dict[str, Annotated[list[Single], Field(min_length=2, max_length=2)]]
    particles_per_cell: Scale
    fields: list[str] = Field(min_length=1)
    weights: CurvesPart
    density_mean: Row
    density_log_std: Row
    residual_log_rms: Row
    gain: CurvesPart | None
    gain_symmetries: int = Field(ge=1, le=48)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not {*LIMITED} - LIMITED_LATER <= {*self.limits} <= {*LIMITED}:
            raise ValueError(f"limits of {', '.join(LIMITED)}")
        if any(low > high for low, high in self.limits.values()):
            raise ValueError("limits whose lower end is not above the upper one")
        unknown = sorted(set(self.fields) - set(FIELDS))
        if unknown or len(set(self.fields)) < len(self.fields):
            raise ValueError(f"different fields among {', '.join(FIELDS)}, not {self.fields}")
        terms = self.space.build().terms(self.space.low).size
        self.weights.check(terms, len(self.fields))
        if self.gain is not None:
            self.gain.check(terms, 2)
        for name in ("density_mean", "density_log_std", "residual_log_rms"):
            if len(getattr(self, name)) != terms:
                raise ValueError(f"{terms} coefficients of {name}")
        return self

    def build(self) -> Family:
        """Return what it describes."""
        return Family(
            space=self.space.build(),
            limits={name: (low, high) for name, (low, high) in self.limits.items()},
            particles_per_cell=self.particles_per_cell,
            fields=tuple(self.fields),
            weights=self.weights.build(),
            density_mean=tuple(self.density_mean),
            density_log_std=tuple(self.density_log_std),
            residual_log_rms=tuple(self.residual_log_rms),
            gain=None if self.gain is None else self.gain.build(),
            gain_symmetries=self.gain_symmetries,
        )


class ErrorsPart(_Part):
    """See :class:`cosmoflow.model.errors.ErrorScale`."""

    log_factors: Annotated[list[Row], Field(min_length=KNOTS, max_length=KNOTS)]
    interval_95: Scale
    bend: Scale = 1.0
    growth: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    reach: list[Annotated[list[Single], Field(min_length=2, max_length=2)]] = []
    log_interval_95: list[Single] = []

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what models of before do not have: their digests stay as they are."""
        found: dict[str, Any] = dump(self)
        return {name: value for name, value in found.items() if name in self.model_fields_set}

    def check(self, coordinates: int) -> None:
        """Refuse a calibration that is not one of so many coordinates."""
        possible = sorted({*feature_counts(coordinates)})
        if len(self.log_factors[0]) not in possible or len({*map(len, self.log_factors)}) > 1:
            counts = " or ".join(map(str, possible))
            raise ValueError(f"{counts} coefficients in each row of errors.log_factors")
        if len(self.reach) not in {0, coordinates}:
            raise ValueError(f"limits of {coordinates} coordinates in errors.reach")
        if self.log_interval_95 and not coordinates:
            raise ValueError("no errors.log_interval_95 in a model of one condition")
        if len(self.log_interval_95) not in {0, count := len(self.log_factors[0])}:
            raise ValueError(f"{count} coefficients in errors.log_interval_95, or none")

    def build(self) -> ErrorScale:
        """Return what it describes."""
        factors = tuple(map(tuple, self.log_factors))
        reach = tuple((low, high) for low, high in self.reach)
        return ErrorScale(
            factors, self.interval_95, self.bend, self.growth, reach, tuple(self.log_interval_95)
        )


class Description(_Part):
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
