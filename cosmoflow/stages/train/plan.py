"""Plan of `train`: memory, operations, seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cosmoflow.config.settings import Settings
from cosmoflow.errors import DataError
from cosmoflow.model.geometry import Geometry
from cosmoflow.model.registry import (
    count_flops,
    count_parameters,
    find_architecture,
    geometry_of,
    widest_layer,
)
from cosmoflow.model.samples import slab_cells
from cosmoflow.model.streams import pool_bytes
from cosmoflow.stages import costs
from cosmoflow.stages.inputs.boxes import count_validation
from cosmoflow.stages.run import Plan, Run
from cosmoflow.stages.train.comparison import comparison_seconds
from cosmoflow.stages.train.data import field_bytes, is_streamed

_DEFAULT_CROP = 48


def crop_cells(settings: Settings, geometry: Geometry, grid: int, kept: int = 0) -> int:
    """Return the output cells per axis of a crop in boxes of ``grid`` cells per axis or more.

    Parameters
    ----------
    kept : int
        Cells along x that are kept for validation; a crop fits into the others.

    Raises
    ------
    ConfigError
        The crop does not suit the network.
    DataError
        The box is smaller than a crop.
    """
    largest = geometry.fixed_output or (grid - kept) // geometry.stride * geometry.stride
    default = geometry.fixed_output or max(geometry.stride, min(_DEFAULT_CROP, largest))
    crop = geometry.check_output(settings.train.crop or default, "train.crop")
    if grid < crop:
        raise DataError(
            "the box is smaller than a crop",
            where="the smallest of the boxes",
            value=f"{grid} cells per axis",
            limit=f"train.crop {crop}",
            remedy=f"--set train.crop={largest}" if largest < crop and largest else "larger boxes",
        )
    return crop


@dataclass(frozen=True, kw_only=True)
class TrainPlan(Plan):
    """Plan of `train`.

    Parameters
    ----------
    model, target : str
        Architecture, and the field that it learns.
    crop, batch : int
        Cells per axis of a sample's output, and samples of a step.
    samples, workers : int
        Total number of samples, and workers that share them.
    data : {"in memory", "streamed"}
        Location of the fields during training.
    flops : float
        Total operations of the network.
    """

    model: str
    target: str
    crop: int
    batch: int
    samples: int
    workers: int
    data: str
    flops: float


def plan_training(grids: Sequence[int], run: Run) -> TrainPlan:
    """Plan a training on boxes with the given cells per axis."""
    config = run.settings.train
    architecture = find_architecture(config.model)
    network = architecture.build()
    geometry = geometry_of(network)
    lone = len(grids) == 1
    kept = slab_cells(grids[0], config.validation_fraction, geometry) if lone else 0
    crop = crop_cells(run.settings, geometry, min(grids), kept)
    flops = 3.0 * count_flops(config.model, crop) * config.batch * config.steps
    cells = geometry.input_cells(crop) ** 3
    needed = sum(field_bytes(grid, architecture.flows) for grid in grids)
    streamed = is_streamed(config.data, needed)
    held = pool_bytes(crop, geometry.halo, architecture.flows) if streamed else needed
    parameters, _ = count_parameters(network)
    widest = widest_layer(network)
    compared = grids[-count_validation(len(grids), config.validation_fraction) :]
    if not (config.compare and config.target == "velocity"):
        compared = ()
    return TrainPlan(
        stage="train",
        tasks=config.steps,
        unit="steps",
        # Fields, or blocks of them, held in memory; weights, gradients, average and two moments;
        # activations, of which backpropagation keeps about a dozen of the widest at full size.
        worker_memory=held + 20 * parameters + 12 * 4 * min(widest, 64) * cells * config.batch,
        read=needed + 4 * sum(grid**3 for grid in compared),
        written=4 * parameters * (1 + 4 * config.keep_checkpoints),
        cpu_seconds=flops / costs.TRAINING_CPU_FLOPS + comparison_seconds(compared, crop),
        model=config.model,
        target=config.target,
        crop=crop,
        batch=config.batch,
        samples=config.batch * config.steps,
        workers=config.workers,
        data="streamed" if streamed else "in memory",
        flops=flops,
    )
