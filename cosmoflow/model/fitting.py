"""The training loop: torch only, whatever runs it."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cosmoflow.config.settings import TrainConfig
from cosmoflow.errors import DataError
from cosmoflow.model.precision import autocast, best_device
from cosmoflow.model.samples import Sample, TrainingBox, draw_batch, read_sample, stack
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.painting import Block

Metrics = dict[str, float]


class Workers(Protocol):
    """The data-parallel workers of a loop, as the engine presents them."""

    rank: int
    world_size: int

    def wrap(self, module: Any) -> Any:
        """Return the module with gradients averaged over the workers."""

    def report(self, metrics: Metrics) -> None:
        """Tell the driver how it goes; every worker must call it."""


class Checkpoints(Protocol):
    """Where a loop keeps what it needs to go on."""

    def save(self, step: int, content: bytes) -> None:
        """Keep a checkpoint."""

    def newest(self) -> bytes | None:
        """Return the newest whole checkpoint, or None."""


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What to fit, on what.

    Parameters
    ----------
    config : TrainConfig
        Hyperparameters.
    seed : int
        Decides weights and batches.
    crop : int
        Output cells per axis of a training crop.
    training : sequence of TrainingBox
        Boxes to learn from.
    validation : sequence of (TrainingBox, Block)
        Blocks never learned from.
    """

    config: TrainConfig
    seed: int
    crop: int
    training: Sequence[TrainingBox]
    validation: Sequence[tuple[TrainingBox, Block]]


class Fitting:
    """A model being fitted: weights, their running average, optimiser, step, history.

    Parameters
    ----------
    model : VelocityModel
        Its weights are changed in place.
    job : TrainingJob
        What to fit.
    workers : Workers
        The workers beside this one.
    """

    def __init__(self, model: VelocityModel, job: TrainingJob, workers: Workers) -> None:
        self.job = job
        self.workers = workers
        self.device = best_device()
        self.model = model.to(self.device)
        self.network = self.model.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.average = {
            name: value.detach().clone() for name, value in self.network.state_dict().items()
        }
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(),
            lr=job.config.learning_rate,
            weight_decay=job.config.weight_decay,
        )
        self.step = 0
        self.history: list[Metrics] = []
        # Losses since the last report: they belong to the checkpoint, so that a resumed run
        # reports what the uninterrupted one would have reported.
        self.losses: list[float] = []

    def restore(self, content: bytes) -> None:
        """Continue from a checkpoint."""
        state = torch.load(io.BytesIO(content), map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]
        self.history = state["history"]
        self.losses = state["losses"]

    def checkpoint(self) -> bytes:
        """Return all that :meth:`restore` needs."""
        buffer = io.BytesIO()
        torch.save(
            {
                "network": self.network.state_dict(),
                "average": self.average,
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "history": self.history,
                "losses": self.losses,
            },
            buffer,
        )
        return buffer.getvalue()

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step: linear warm-up, then half a cosine to zero."""
        config = self.job.config
        warmup = max(1, round(config.warmup * config.steps))
        if step < warmup:
            return config.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, config.steps - warmup)
        return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

    def run(self, checkpoints: Checkpoints) -> None:
        """Train to the last step.

        Raises
        ------
        DataError
            The loss is no longer finite; the newest checkpoint is still good.
        """
        config = self.job.config
        content = checkpoints.newest()
        if content is not None:
            self.restore(content)
        parallel: nn.Module = self.workers.wrap(self.network)
        since, started = self.step, time.perf_counter()
        with ThreadPoolExecutor(max_workers=1) as reader:
            following = reader.submit(self._draw, self.step)
            while self.step < config.steps:
                batch = following.result()
                if self.step + 1 < config.steps:
                    following = reader.submit(self._draw, self.step + 1)
                self.losses.append(self._advance(parallel, batch))
                self.step += 1
                last = self.step == config.steps
                if self.step % config.validate_every == 0 or last:
                    samples = (self.step - since) * config.batch * self.workers.world_size
                    metrics = {
                        "step": float(self.step),
                        "loss": sum(self.losses) / len(self.losses),
                        "learning_rate": self.learning_rate(self.step - 1),
                        "samples_per_second": samples / (time.perf_counter() - started),
                    }
                    if self.workers.rank == 0:
                        metrics["validation_rms"] = self.validate()
                    self.history.append(metrics)
                    self.workers.report(metrics)
                    self.losses = []
                    since, started = self.step, time.perf_counter()
                if (self.step % config.checkpoint_every == 0 or last) and self.workers.rank == 0:
                    checkpoints.save(self.step, self.checkpoint())

    def _draw(self, step: int) -> Sample:
        config = self.job.config
        return draw_batch(
            self.job.training,
            config.target,
            self.model.geometry,
            crop=self.job.crop,
            batch=config.batch,
            augment=config.augment,
            key=(self.job.seed, step, self.workers.rank),
        )

    def _advance(self, parallel: nn.Module, batch: Sample) -> float:
        """Take one optimiser step and return its loss."""
        config = self.job.config
        density, linear, target = (
            part.to(self.device, non_blocking=True)
            for part in (batch.density, batch.linear, batch.target)
        )
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate(self.step)
        parallel.train()
        inputs = self.model.channels(density, linear).to(memory_format=torch.channels_last_3d)
        with autocast(config.precision, self.device):
            output = parallel(inputs)
        wanted = self.model.normalised_target(target, density, linear)
        loss = mean_square(
            output.float() - wanted, self.model.inner(density), config.density_weight
        )
        value = loss.item()
        if not math.isfinite(value):
            raise DataError(
                "the loss is no longer finite",
                where=f"step {self.step + 1}",
                value=value,
                remedy="checkpoints up to here are kept; train with --overwrite and a smaller "
                "train.learning_rate, or with train.precision=float32",
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), config.gradient_clip)
        self.optimiser.step()
        self._update_average()
        return value

    def _update_average(self) -> None:
        """Move the running average; early on it follows faster, to forget the random start."""
        decay = min(self.job.config.average, (1 + self.step) / (10 + self.step))
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value.detach(), 1.0 - decay)
            else:
                self.average[name].copy_(value)

    def averaged_model(self) -> VelocityModel:
        """Return a copy of the model with the averaged weights."""
        model = VelocityModel(self.model.spec).to(self.device)
        model.network.load_state_dict(self.average)
        return model.eval()

    def validate(self) -> float:
        """Return the rms of the 3-D residual over the validation blocks, km/s."""
        return validate(
            self.averaged_model(), self.job.validation, self.job.config.precision, self.device
        )


def mean_square(residual: Tensor, density: Tensor, weight: float) -> Tensor:
    """Return the mean square of a residual, by volume and by mass.

    Parameters
    ----------
    residual : Tensor
        Shape ``(batch, 3, n, n, n)``.
    density : Tensor
        Shape ``(batch, n, n, n)``, over its mean.
    weight : float
        Of the mean over mass; that over volume has 1. Mass is what is observed, and most of it is
        in few cells.
    """
    squares = residual.square()
    loss = squares.mean()
    if weight > 0.0:
        loss = (loss + weight * (squares * density.unsqueeze(1)).mean()) / (1.0 + weight)
    return loss


@torch.inference_mode()
def validate(
    model: VelocityModel,
    blocks: Sequence[tuple[TrainingBox, Block]],
    precision: str,
    device: torch.device,
) -> float:
    """Return the rms 3-D residual of a model over some blocks, km/s."""
    total, cells = 0.0, 0
    for box, block in blocks:
        sample = stack([read_sample(box, model.spec.target, block, model.geometry.halo)])
        with autocast(precision, device):
            predicted = model(sample.density.to(device), sample.linear.to(device))
        residual: Tensor = predicted - sample.target.to(device)
        total += float(residual.double().square().sum())
        cells += residual[0, 0].numel()
    return math.sqrt(total / cells)


def make_loop(
    make_model: Callable[[], VelocityModel],
    make_job: Callable[[], TrainingJob],
    checkpoints: Checkpoints,
    on_finished: Callable[[VelocityModel, list[Metrics]], None],
) -> Callable[[Workers], None]:
    """Return the function that every worker runs.

    Parameters
    ----------
    make_model, make_job : callable
        Called in each worker, so that only stores' names travel.
    checkpoints : Checkpoints
        Shared by the workers.
    on_finished : callable
        Called by rank 0 with the averaged model and the history.
    """

    def loop(workers: Workers) -> None:
        job = make_job()
        torch.manual_seed(job.seed)
        fitting = Fitting(make_model(), job, workers)
        fitting.run(checkpoints)
        if workers.rank == 0:
            on_finished(fitting.averaged_model(), fitting.history)

    return loop
