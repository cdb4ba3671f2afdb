"""Validated parts of a model's description, and what they describe.

A number that is not finite, or that float32 cannot hold, would turn predictions into NaN long after
it was read, so the validation refuses it.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from cosmoflow.cosmology.conditions import COORDINATES
from cosmoflow.model.errors import KNOTS, ErrorScale, feature_counts
from cosmoflow.model.family import LIMITED, LIMITED_LATER, Family
from cosmoflow.model.velocity import Normalisation
from cosmoflow.numerics.conditions import ConditionCurves, ConditionSpace
from cosmoflow.numerics.restoration import PowerGain
from cosmoflow.numerics.wiener import FIELDS, WienerFilter

_LARGEST, _SMALLEST = 3.0e38, 1.2e-38
"""Magnitudes that float32 holds with all its digits."""

Single = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]
Scale = Annotated[float, Field(ge=_SMALLEST, le=_LARGEST)]
Gain = Annotated[float, Field(ge=0.0, le=_LARGEST)]
Row = Annotated[list[Single], Field(min_length=1)]
Ends = Annotated[list[Single], Field(min_length=2, max_length=2)]


class Part(BaseModel):
    """An immutable JSON object that refuses text for numbers, NaN and infinity."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class GrownPart(Part):
    """A part with optional keys that models of earlier versions lack: their digests stay."""

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the keys that a model lacks."""
        found: dict[str, Any] = dump(self)
        return {name: value for name, value in found.items() if name in self.model_fields_set}


class NormalisationPart(Part):
    """See :class:`cosmoflow.model.velocity.Normalisation`."""

    density_mean: Single
    density_std: Scale
    velocity_scale: Scale
    target_scale: Scale

    def build(self) -> Normalisation:
        """Return what it describes."""
        return Normalisation(**self.model_dump())


class FilterPart(Part):
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


class GainPart(Part):
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


class CurvesPart(Part):
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


class SpacePart(Part):
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


class FamilyPart(GrownPart):
    """See :class:`cosmoflow.model.family.Family`."""

    space: SpacePart
    limits: dict[str, Ends]
    particles_per_cell: Scale
    fields: list[str] = Field(min_length=1)
    weights: CurvesPart
    density_mean: Row
    density_log_std: Row
    residual_log_rms: Row
    gain: CurvesPart | None
    gain_symmetries: int = Field(ge=1, le=48)
    gain_reach: list[Ends] = []

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.gain_reach) not in {0, len(COORDINATES)}:
            raise ValueError(f"limits of {len(COORDINATES)} coordinates in gain_reach, or none")
        if any(low > high for low, high in self.gain_reach):
            raise ValueError("a gain_reach whose lower end is not above the upper one")
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
            gain_reach=tuple((low, high) for low, high in self.gain_reach),
        )


class ErrorsPart(GrownPart):
    """See :class:`cosmoflow.model.errors.ErrorScale`."""

    log_factors: Annotated[list[Row], Field(min_length=KNOTS, max_length=KNOTS)]
    interval_95: Scale
    bend: Scale = 1.0
    growth: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    reach: list[Ends] = []
    log_interval_95: list[Single] = []

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
