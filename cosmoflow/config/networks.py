"""Settings of the stages that train networks and predict with them."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cosmoflow.config.base import Section

Precision = Literal["auto", "float32", "bfloat16"]
Derivable = Literal["momentum", "divergence", "vorticity", "velocity_shear", "count"]


class TrainConfig(Section):
    """Settings of training."""

    model: str = Field("residual-small", description="architecture, see `cosmoflow models`")
    target: Literal["velocity", "momentum"] = Field("velocity", description="field to predict")
    start: str | None = Field(
        None, description="model to start from: a name or folder; by default random weights"
    )
    layers: Literal["all", "decoder", "modulation"] = Field(
        "all",
        description="layers that learn: all, those from the coarsest resolution on, or only the "
        "last one and the modulation",
    )
    steps: int = Field(2000, ge=1, description="optimiser steps")
    batch: int = Field(2, ge=1, description="crops per step, shared among the workers")
    crop: int | None = Field(
        None,
        ge=1,
        description="output cells per axis of a crop; by default 48, or as many as fit into "
        "a smaller box, or those of a network of fixed size",
    )
    error_steps: int = Field(
        0,
        ge=0,
        description="further steps, with the prediction frozen, that teach the network the size of "
        "its errors; 0 for a network that does not know them. If not set, a model that starts from "
        "one that knows its errors takes a tenth of its steps, at least 100",
    )
    optimiser: Literal["muon", "adamw"] = Field(
        "muon", description="Muon for hidden kernels and AdamW for the rest, or AdamW for all"
    )
    learning_rate: float = Field(2e-3, gt=0.0, description="peak learning rate of AdamW")
    muon_rate: float = Field(0.04, gt=0.0, description="peak learning rate of Muon")
    weight_decay: float = Field(
        1e-4, ge=0.0, description="weight decay per step, multiplied by the learning rate"
    )
    warmup: float = Field(0.05, ge=0.0, lt=1.0, description="fraction of the steps for warm-up")
    gradient_clip: float = Field(1.0, gt=0.0, description="largest norm of the gradient")
    average: float = Field(
        0.99, ge=0.0, lt=1.0, description="decay per step of the running average of the weights"
    )
    density_weight: float = Field(
        0.0,
        ge=0.0,
        description="weight of the velocity loss by mass, relative to the loss by volume",
    )
    augment: bool = Field(True, description="apply the 48 symmetries of the cube")
    precision: Precision = Field("auto", description="precision of the network")
    compile: bool = Field(
        False, description="let torch.compile fuse the network; needs a C++ compiler on CPUs"
    )
    workers: int = Field(1, ge=1, description="data-parallel workers")
    data: Literal["auto", "memory", "stream"] = Field(
        "auto", description="hold the fields in memory, or stream blocks of them if they do not fit"
    )
    prefetch: int = Field(2, ge=1, description="batches drawn ahead, each in its own thread")
    validation_fraction: float = Field(
        0.125,
        gt=0.0,
        lt=0.5,
        description="fraction of the boxes kept for validation; a slab if there is only one box",
    )
    validate_every: int = Field(200, ge=1, description="steps between validations")
    patience: int | None = Field(
        None, ge=1, description="validations without improvement after which training stops early"
    )
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    measure_gain: int = Field(
        1,
        ge=0,
        le=48,
        description="symmetries to average over when measuring the gain that restores power, in "
        "whole validation boxes after training; 0 skips the measurement",
    )
    compare: bool = Field(
        True,
        description="compare the new model with the Wiener filter and the shipped model, where it "
        "fits, in the validation boxes",
    )
    tensorboard: bool = Field(False, description="also write metrics for TensorBoard")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints to keep")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.density_weight and self.target == "momentum":
            raise ValueError("density_weight is for velocities: momenta include the density")
        if self.batch % self.workers:
            raise ValueError(f"batch {self.batch} does not divide among {self.workers} workers")
        return self


class InferConfig(Section):
    """Settings of inference and its output."""

    tile: int | None = Field(
        None, ge=1, description="largest output of a pass, cells per axis; by default set by memory"
    )
    batch: int | None = Field(None, ge=1, description="tiles per pass; by default set by tile size")
    overlap: int = Field(
        0,
        ge=0,
        description="cells that neighbouring tiles of a padded network share, to blend seams",
    )
    precision: Precision = Field("auto", description="precision of the network")
    symmetries: int = Field(
        1, ge=1, le=48, description="cube symmetries to average over; cost is proportional"
    )
    errors: bool = Field(
        False, description="also write the size of the errors that the model expects"
    )
    spread: bool = Field(
        False, description="also write the spread of the predictions: their standard deviation"
    )
    fields: tuple[Derivable, ...] = Field((), description="fields to derive in the same pass")
    region: tuple[tuple[float, float], ...] | None = Field(
        None, description="ranges of x, y and z, Mpc/h, e.g. 0:128,0:128,64:96; by default all"
    )
    rounding: float | None = Field(
        None, gt=0.0, description="tolerated rounding error of velocities, km/s, to save space"
    )
    particles_per_cell: float | None = Field(
        None, gt=0.0, description="mean number of particles of a box that does not state it"
    )
    strict: bool = Field(
        False, description="refuse boxes outside of the range that the model was trained on"
    )
    restore_power: bool = Field(
        False, description="add restored_velocity, which has the power of the true velocity"
    )
    shard: int | None = Field(
        None, ge=1, description="cells per axis of one write; by default the input's"
    )

    @field_validator("region", mode="before")
    @classmethod
    def _read_region(cls, value: Any) -> Any:
        """Accept text such as "0:128,0:128,64:96"."""
        if not isinstance(value, str):
            return value
        ranges = [tuple(part.split(":")) for part in value.split(",")]
        if len(ranges) != 3 or any(len(part) != 2 for part in ranges):
            raise ValueError(
                f"region is from:to for x, y and z, such as 0:128,0:128,64:96, not {value}"
            )
        return ranges

    @field_validator("fields", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        """Accept text such as "momentum,divergence"."""
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.fields)) < len(self.fields):
            raise ValueError(f"fields lists a name twice: {', '.join(self.fields)}")
        if self.region is not None:
            if len(self.region) != 3:
                raise ValueError("region needs three ranges, for x, y and z")
            if any(not low < high for low, high in self.region):
                raise ValueError(f"region has an empty range: {self.region}")
            if self.restore_power:
                raise ValueError("restore_power needs the whole box, without a region")
        return self
