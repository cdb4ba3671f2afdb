"""What a training shows while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from cosmoflow.config.networks import TrainConfig
from cosmoflow.events import Listener, Message
from cosmoflow.model.training_job import FINISHED, NOTE_SECONDS, Metrics
from cosmoflow.stages.run import Progress, Run
from cosmoflow.stages.train.gains import measures_gain
from cosmoflow.stages.train.tensorboard import open_board

ERROR_SIZES: Final = "error sizes"
COMPARING: Final = "comparison"
GAIN: Final = "gain"
"""Names of work that may follow the steps."""

_UNITS: Final = {ERROR_SIZES: "steps", COMPARING: "models", GAIN: "boxes"}

_TOTAL: Final = "total"


class TrainingProgress:
    """Shows the step of a training, its loss, the last validation, and the work that follows.

    Notes of steps come from a worker, and validations on Ray from its controller: an older step may
    come later. The last metrics come in a note too, so that they are shown before what follows.

    Parameters
    ----------
    out : str
        URL of the model's folder, for the files of TensorBoard.
    config : TrainConfig
        Hyperparameters.
    boxes : int
        Validation boxes; 0 for a slab.
    run : Run
        Its listener receives progress.
    """

    def __init__(self, out: str, config: TrainConfig, boxes: int, run: Run) -> None:
        self._following, self._listener = _describe_work(config, boxes), run.listener
        self._progress = Progress(run.listener, "train", config.steps, "steps")
        self._board = open_board(out, config.tensorboard)
        self._step, self._residual, self._finished = 0, "", False
        self._values = dict[str, float]()
        self._work = WorkProgress(run.listener)

    def __call__(self, metrics: Metrics) -> None:
        """Show the metrics of a step, or how far the work after the steps is."""
        if _TOTAL in metrics:
            self._work(metrics)
            return
        step, finished = int(metrics["step"]), FINISHED in metrics
        if "validation_rms" in metrics and not finished:
            self._board(metrics)
        if self._finished:
            return
        self._finished, before = finished, (self._step, self._residual)
        if "validation_rms" in metrics:
            self._residual = f"residual {metrics['validation_rms']:.1f} km/s at step {step:,}"
        if "loss" in metrics and step >= self._step:
            self._values = {"loss": metrics["loss"]}
        self._step = max(self._step, step)
        if not finished or before != (self._step, self._residual):
            self._progress.reach(self._step, self._residual, **self._values)
        if finished and self._following:
            self._listener(Message(f"the steps are done; next: {self._following}"))


class WorkProgress:
    """Shows how far the work after the steps is, as :class:`WorkNotes` tells it."""

    def __init__(self, listener: Listener) -> None:
        self._listener, self._shown = listener, dict[str, Progress]()

    def __call__(self, metrics: Metrics) -> None:
        """Show how much of a work is done."""
        name = next(one for one in _UNITS if one in metrics)
        if name not in self._shown:
            total = int(metrics[_TOTAL])
            self._shown[name] = Progress(self._listener, name, total, _UNITS[name])
        self._shown[name].reach(int(metrics[name]))


class WorkNotes:
    """Tells :class:`WorkProgress` how much of a work is done: its begin, its end, in between.

    Parameters
    ----------
    name : {"error sizes", "comparison", "gain"}
        The work.
    total : int
        How many steps, models or boxes it has.
    note : callable
        Sends metrics from the worker to the driver.
    """

    def __init__(self, name: str, total: int, note: Callable[[Metrics], None]) -> None:
        self._name, self._total, self._note = name, total, note
        self._noted = -math.inf
        self(0)

    def __call__(self, done: int) -> None:
        """Tell how much is done, once in a while."""
        now = time.monotonic()
        if done == self._total or now - self._noted >= NOTE_SECONDS:
            self._noted = now
            self._note({self._name: float(done), _TOTAL: float(self._total)})


def _describe_work(config: TrainConfig, boxes: int) -> str:
    """Return in words what ``command._finish`` does besides saving, in its order."""
    parts = {
        f"{config.error_steps:,} steps that teach the size of its errors": config.error_steps,
        "comparing it with other models": config.compare,
        "measuring its gain": measures_gain(config, boxes),
    }
    return ", ".join(part for part, due in parts.items() if due)
