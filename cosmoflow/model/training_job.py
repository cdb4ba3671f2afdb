"""What a training loop is given: its data, its workers, its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cosmoflow.config.networks import TrainConfig
from cosmoflow.model.geometry import Geometry
from cosmoflow.model.samples import Sample, TrainingBox, draw_batch
from cosmoflow.model.streams import StreamedBoxes
from cosmoflow.numerics.blocks import Block

Metrics = dict[str, float]

FINISHED: Final = "finished"
"""Key that only the note of the last metrics has, which tells that the steps are done."""

NOTE_SECONDS: Final = 1.0
"""Shortest time between notes to the driver, in seconds."""


class Workers(Protocol):
    """Interface to the data-parallel workers, provided by the engine."""

    rank: int
    world_size: int

    def wrap(self, module: Any) -> Any:
        """Return the module with gradients averaged over the workers."""

    def total(self, value: float) -> float:
        """Return the sum of a value over the workers; every worker must call it."""

    def report(self, metrics: Metrics) -> None:
        """Report metrics to the driver; every worker must call it."""

    def note(self, metrics: Metrics) -> None:
        """Send metrics of rank 0 to the driver at once; other workers say nothing."""


class Checkpoints(Protocol):
    """Storage of the checkpoints that a loop resumes from."""

    def save(self, step: int, content: bytes) -> None:
        """Store a checkpoint."""

    def newest(self) -> bytes | None:
        """Return the newest complete checkpoint, or None."""


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """Hyperparameters and data of a training run.

    Parameters
    ----------
    config : TrainConfig
        Hyperparameters.
    seed : int
        Seed of the initial weights and the batches.
    crop : int
        Output cells per axis of a training crop.
    training : sequence of TrainingBox, or StreamedBoxes
        Boxes to train on, in memory or read block by block.
    validation : sequence of (TrainingBox, Block)
        Blocks excluded from training.
    """

    config: TrainConfig
    seed: int
    crop: int
    training: Sequence[TrainingBox] | StreamedBoxes
    validation: Sequence[tuple[TrainingBox, Block]]

    def draw(self, step: int, crops: Sequence[int], geometry: Geometry) -> Sample:
        """Draw crops of the batch of a step; see :func:`cosmoflow.model.samples.draw_batch`."""
        return draw_batch(
            self.training.at(step) if isinstance(self.training, StreamedBoxes) else self.training,
            self.config.target,
            geometry,
            crop=self.crop,
            crops=crops,
            augment=self.config.augment,
            key=(self.seed, step),
        )
