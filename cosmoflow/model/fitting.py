"""The training loop: torch only, independent of the engine."""

from __future__ import annotations

import io
import math
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from cosmoflow.errors import DataError
from cosmoflow.model.folder import check_weights
from cosmoflow.model.loss import mean_square
from cosmoflow.model.optimiser import Optimiser
from cosmoflow.model.precision import autocast, best_device, prepare_device
from cosmoflow.model.prefetch import Prefetcher
from cosmoflow.model.samples import Sample, TrainingBox, read_sample, stack
from cosmoflow.model.training_job import (
    FINISHED,
    NOTE_SECONDS,
    Checkpoints,
    Metrics,
    TrainingJob,
    Workers,
)
from cosmoflow.model.velocity import Reconstruction
from cosmoflow.numerics.blocks import Block

SMOOTHED = 20
"""Newest steps whose mean loss a note tells."""

_UNREADABLE = (
    *(AttributeError, EOFError, IndexError, KeyError, RuntimeError, TypeError, ValueError),
    *(UnpicklingError, struct.error),
)
"""Exceptions raised on restoring a checkpoint of another kind."""


@dataclass
class Best:
    """The averaged weights with the best validation, and the number of validations since."""

    rms: float
    average: dict[str, Tensor]
    stale: int = 0


class _Clock:
    """Measures steps per second and the fraction of time spent waiting for data."""

    def __init__(self, step: int) -> None:
        self.restart(step)

    def restart(self, step: int) -> None:
        self._step, self._start, self._waited = step, time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def read(self, step: int) -> tuple[float, float]:
        seconds = time.perf_counter() - self._start
        return (step - self._step) / seconds, self._waited / seconds


class Fitting:
    """State of a training run: weights, their running average, optimiser, step, history.

    Parameters
    ----------
    model : Reconstruction
        Model to train; its weights are changed in place.
    job : TrainingJob
        Hyperparameters and data.
    workers : Workers
        The data-parallel workers.
    on_history : callable
        Called by rank 0 with all metrics so far, after each validation.
    """

    def __init__(
        self,
        model: Reconstruction,
        job: TrainingJob,
        workers: Workers,
        on_history: Callable[[list[Metrics]], None] = lambda history: None,
    ) -> None:
        self.job = job
        self._on_history = on_history
        self.workers = workers
        self.device = best_device()
        prepare_device(self.device, same_shapes=True)
        self.model = model.to(self.device)
        self.network = self.model.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.average = {
            name: value.detach().clone() for name, value in self.network.state_dict().items()
        }
        self.optimiser = Optimiser(self.network, job.config)
        self.step = 0
        self.history: list[Metrics] = []
        # Losses since the last report. Checkpoints include them, so that a resumed run reports
        # the same values as an uninterrupted one.
        self.losses: list[float] = []
        self.best: Best | None = None
        self._recent = deque[float](maxlen=SMOOTHED)
        self._noted = time.monotonic()

    def restore(self, content: bytes) -> None:
        """Continue from a checkpoint.

        Raises
        ------
        DataError
            The checkpoint belongs to another training, or its weights are not finite.
        """
        try:
            state = torch.load(io.BytesIO(content), map_location=self.device, weights_only=True)
            check_weights(state["network"], "the newest checkpoint, network")
            check_weights(state["average"], "the newest checkpoint, average")
            self.network.load_state_dict(state["network"])
            self.average = state["average"]
            self.optimiser.load_state_dict(state["optimiser"])
            self.step = state["step"]
            self.history = state["history"]
            self.losses = state["losses"]
            self.best = None if state["best"] is None else Best(**state["best"])
        except _UNREADABLE as error:
            raise DataError(
                "the newest checkpoint does not belong to this training",
                value=str(error).partition("\n")[0],
                remedy="delete the last file in the model's folder checkpoints, so that --resume "
                "continues from the one before; or train with --overwrite",
            ) from error

    def checkpoint(self) -> bytes:
        """Return the state for :meth:`restore`."""
        buffer = io.BytesIO()
        torch.save(
            {
                "network": self.network.state_dict(),
                "average": self.average,
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "history": self.history,
                "losses": self.losses,
                "best": None if self.best is None else vars(self.best),
            },
            buffer,
        )
        return buffer.getvalue()

    @property
    def keeps_best(self) -> bool:
        """Whether the weights that validated best are kept, and not the last ones.

        A model to start from is good already: steps may make it worse.
        """
        return self.job.config.start is not None or self.job.config.patience is not None

    @property
    def finished(self) -> bool:
        """Whether the last step is done, or validation stopped improving for too long."""
        config = self.job.config
        stale = self.best is not None and self.best.stale >= (config.patience or math.inf)
        return self.step >= config.steps or stale

    def run(self, checkpoints: Checkpoints) -> None:
        """Train until finished.

        Raises
        ------
        DataError
            The loss is no longer finite; the newest checkpoint remains valid.
        """
        config = self.job.config
        content = checkpoints.newest()
        if content is not None:
            self.restore(content)
        parallel: nn.Module = self.workers.wrap(self.network)
        if config.compile:
            parallel = torch.compile(parallel)  # type: ignore[assignment]
        if config.start is not None and not self.step:
            self._publish({"step": 0.0, "validation_rms": self._validate_and_keep()})
        clock = _Clock(self.step)
        with Prefetcher(self._draw, self.step, config.steps, config.prefetch) as batches:
            while not self.finished:
                with clock.waiting():
                    batch = next(batches)
                self.losses.append(self._advance(parallel, batch))
                self._recent.append(self.losses[-1])
                self.step += 1
                last = self.step == config.steps
                if self.step % config.validate_every == 0 or last:
                    self._report(clock)
                else:
                    self._note()
                if self.step % config.checkpoint_every == 0 or self.finished:
                    self._share_losses()
                    if self.workers.rank == 0:
                        checkpoints.save(self.step, self.checkpoint())

    def _note(self) -> None:
        """Tell the driver the step and the smoothed loss, once in a while."""
        if time.monotonic() - self._noted >= NOTE_SECONDS:
            self._noted = time.monotonic()
            loss = sum(self._recent) / len(self._recent)
            self.workers.note({"step": float(self.step), "loss": loss})

    def _share_losses(self) -> None:
        """Replace the losses by their mean over workers, as only one worker writes checkpoints."""
        if self.workers.world_size > 1:
            count = len(self.losses)
            mean = self.workers.total(sum(self.losses)) / (self.workers.world_size * max(1, count))
            self.losses = [mean] * count

    def _report(self, clock: _Clock) -> None:
        """Validate and report metrics."""
        config, total = self.job.config, self.workers.total
        rate = config.learning_rate * self.optimiser.schedule(self.step - 1)
        speed, waited = clock.read(self.step)
        rms = self._validate_and_keep()
        metrics = {
            "step": float(self.step),
            "loss": total(sum(self.losses)) / total(float(len(self.losses))),
            "validation_rms": rms,
            "learning_rate": rate,
            "samples_per_second": speed * config.batch,
            "waiting": waited,
        }
        self.losses = []
        self._publish(metrics)
        clock.restart(self.step)

    def _validate_and_keep(self) -> float:
        """Return the validation residual, and keep the weights if it is the smallest so far."""
        rms = self.validate()
        if self.keeps_best:
            if self.best is None or rms < self.best.rms:
                kept = {name: value.clone() for name, value in self.average.items()}
                self.best = Best(rms, kept)
            else:
                self.best.stale += 1
        return rms

    def _publish(self, metrics: Metrics) -> None:
        """Add metrics to the history and report them."""
        self.history.append(metrics)
        if self.workers.rank == 0:
            self._on_history(self.history)
        self.workers.report(metrics)

    def _draw(self, step: int) -> Sample:
        """Draw this worker's share of a batch."""
        share = self.job.config.batch // self.workers.world_size
        first = share * self.workers.rank
        return self.job.draw(step, range(first, first + share), self.model.geometry)

    def _advance(self, parallel: nn.Module, batch: Sample) -> float:
        """Take one optimiser step and return its loss."""
        config = self.job.config
        sample = Sample(*(part.to(self.device, non_blocking=True) for part in batch))
        density, flows, target, frames = sample
        parallel.train()
        inputs, *rest = self.model.network_inputs(density, flows, frames)
        with autocast(config.precision, self.device):
            output = parallel(inputs, *rest)
        wanted = self.model.wanted(target, density, flows, frames)
        loss = mean_square(
            output.float() - wanted, self.model.inner(density), config.density_weight
        )
        value = loss.item()
        if not math.isfinite(value):
            raise DataError(
                "the loss is no longer finite",
                where=f"step {self.step + 1}",
                value=value,
                remedy="earlier checkpoints are kept; train with --overwrite and a smaller "
                "train.learning_rate, or with train.precision=float32",
            )
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step(self.step)
        self._update_average()
        return value

    def _update_average(self) -> None:
        """Update the running average; a faster decay at first discards the random start."""
        decay = min(self.job.config.average, (1 + self.step) / (10 + self.step))
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value.detach(), 1.0 - decay)
            else:
                self.average[name].copy_(value)

    def averaged_model(self) -> Reconstruction:
        """Return a copy of the model with the averaged weights."""
        model = self.model.blank().to(self.device)
        model.network.load_state_dict(self.average)
        return model.eval()

    def best_model(self) -> Reconstruction:
        """Return the averaged model: the last one, or the best if that is kept."""
        model = self.averaged_model()
        if self.best is not None:
            model.network.load_state_dict(self.best.average)
        return model

    def validate(self) -> float:
        """Return the rms of the 3-D residual over the validation blocks, km/s.

        The workers share the blocks.
        """
        job, workers = self.job, self.workers
        squares, cells = sum_squares(
            self.averaged_model(),
            job.validation[workers.rank :: workers.world_size],
            job.config.precision,
            self.device,
        )
        return math.sqrt(workers.total(squares) / workers.total(cells))


@torch.inference_mode()
def sum_squares(
    model: Reconstruction,
    blocks: Sequence[tuple[TrainingBox, Block]],
    precision: str,
    device: torch.device,
) -> tuple[float, float]:
    """Return the sum of a model's squared 3-D residuals over blocks, and the number of cells."""
    total, cells = 0.0, 0
    for box, block in blocks:
        sample = stack([read_sample(box, model.target, block, model.geometry.halo)])
        density, flows, target, frames = (part.to(device) for part in sample)
        with autocast(precision, device):
            predicted = model.predict(density, flows, frames)
        residual = predicted - target
        total += float(residual.double().square().sum())
        cells += residual[0, 0].numel()
    return total, float(cells)


def make_loop(
    make_model: Callable[[], Reconstruction],
    make_job: Callable[[], TrainingJob],
    checkpoints: Checkpoints,
    on_history: Callable[[list[Metrics]], None],
    on_finished: Callable[[Reconstruction, TrainingJob, Callable[[Metrics], None]], None],
) -> Callable[[Workers], None]:
    """Return the function that every worker runs.

    Parameters
    ----------
    make_model, make_job : callable
        Called in each worker, so that only the names of stores are sent.
    checkpoints : Checkpoints
        Shared by the workers.
    on_history : callable
        Called by rank 0 with all metrics so far, after each validation and at the end.
    on_finished : callable
        Called by rank 0 with the best averaged model, the job, and a function that tells the
        driver how far the work after the steps is.
    """

    def loop(workers: Workers) -> None:
        job = make_job()
        torch.manual_seed(job.seed)
        fitting = Fitting(make_model(), job, workers, on_history)
        fitting.run(checkpoints)
        if workers.rank == 0:
            on_history(fitting.history)
            workers.note({**fitting.history[-1], FINISHED: 1.0})
            on_finished(fitting.best_model(), job, workers.note)

    return loop
