"""What a training shows while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cosmoflow.config.networks import TrainConfig
from cosmoflow.events import Message
from cosmoflow.model.training_job import FINISHED, Metrics
from cosmoflow.stages.run import Progress, Run
from cosmoflow.stages.train.tensorboard import open_board

ERRORS: Final = "errors"
GAINS: Final = "gains"

_UNITS: Final = {ERRORS: "steps", GAINS: "boxes"}
"""Work that may follow the steps, and what it consists of."""

_TOTAL: Final = "total"


class Steps:
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
        self._work = dict[str, Progress]()

    def __call__(self, metrics: Metrics) -> None:
        """Show the metrics of a step, or how far the work after the steps is."""
        if _TOTAL in metrics:
            self._show_work(metrics)
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

    def _show_work(self, metrics: Metrics) -> None:
        ((name, unit),) = ((name, unit) for name, unit in _UNITS.items() if name in metrics)
        if name not in self._work:
            total = int(metrics[_TOTAL])
            self._work[name] = Progress(self._listener, name, total, unit)
        self._work[name].reach(int(metrics[name]))


def noting_work(name: str, total: int, note: Callable[[Metrics], None]) -> Callable[[int], None]:
    """Return a function that tells :class:`Steps` how much of a work is done.

    Parameters
    ----------
    name : {"errors", "gains"}
        The work.
    total : int
        How many steps or boxes it has.
    note : callable
        Sends metrics to the driver.
    """
    return lambda done: note({name: float(done), _TOTAL: float(total)})


def _describe_work(config: TrainConfig, boxes: int) -> str:
    """Return in words what follows the steps, besides saving the model."""
    parts = {
        f"{config.error_steps:,} steps that teach the size of its errors": config.error_steps,
        "comparing it with other models": config.compare,
        "measuring its gain": config.measure_gain and boxes and config.target == "velocity",
    }
    return ", ".join(part for part, due in parts.items() if due)
