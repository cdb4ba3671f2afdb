"""Data-parallel training under Ray Train."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context, report
from ray.train.torch import TorchTrainer, prepare_model
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.exceptions import TrainingFailedError

from cosmoflow.engine.base import TrainingContext
from cosmoflow.errors import CosmoflowError, IncompleteError

FAILURES = 3
"""How often Ray Train starts the workers again after one of them died."""

POLL_SECONDS = 0.5


class _RayContext:
    """The training context of one Ray Train worker."""

    def __init__(self) -> None:
        context = get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()

    def wrap(self, module: Any) -> Any:
        return prepare_model(module) if self.world_size > 1 else module

    def report(self, metrics: dict[str, float]) -> None:
        report(metrics)


class _Relay:
    """Carries reports and errors from the workers' side back to the driver."""

    def __init__(self) -> None:
        self._reports: list[dict[str, float]] = []
        self._error: CosmoflowError | None = None

    def put(self, metrics: dict[str, float]) -> None:
        self._reports.append(metrics)

    def take(self) -> list[dict[str, float]]:
        taken, self._reports = self._reports, []
        return taken

    def fail(self, error: CosmoflowError) -> None:
        self._error = error

    def error(self) -> CosmoflowError | None:
        return self._error


class _Forward(UserCallback):  # type: ignore[misc]
    """Passes the reports of rank 0 to the relay; runs in the trainer's controller."""

    def __init__(self, relay: Any) -> None:
        self._relay = relay

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        self._relay.put.remote(metrics[0])


def run_torch_trainer(
    loop: Callable[[TrainingContext], None],
    *,
    workers: int,
    cpus: int,
    use_gpu: bool,
    on_report: Callable[[dict[str, float]], None],
) -> None:
    """Run a loop on data-parallel workers.

    The loop keeps its own checkpoints and finds the newest one when it starts, so that a restart by
    Ray Train and a restart by a person are the same thing.

    Raises
    ------
    CosmoflowError
        The one that the loop raised. It is final: only deaths of workers are retried.
    IncompleteError
        Workers kept dying.
    """
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    relay = ray.remote(num_cpus=0)(_Relay).remote()

    def run_worker() -> None:
        import torch

        if not use_gpu:
            torch.set_num_threads(cpus)
        if ray.get(relay.error.remote()) is not None:
            return
        if ray.get(relay.error.remote()) is not None:
            # This is the restart after an error that no restart mends: end, and let it be told.
            return
        try:
            loop(_RayContext())
        except CosmoflowError as error:
            ray.get(relay.fail.remote(error))
            # Raised on, it takes down the workers that wait for this one.
            raise
            # The others wait for this worker for ever unless it fails; they are started once more,
            # find the error and end.
            raise

    scratch = tempfile.mkdtemp(prefix="cosmoflow-train-")
    trainer = TorchTrainer(
        run_worker,
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=FAILURES),
            callbacks=[_Forward(relay)],
        ),
    )
    finished = threading.Event()
    listener = threading.Thread(target=_listen, args=(relay, on_report, finished), daemon=True)
    listener.start()
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise IncompleteError(
            "the training workers keep dying",
            value=str(error).strip().splitlines()[-1],
            limit=f"{FAILURES} restarts",
            remedy="look at the workers' memory, then run again with --resume",
        ) from error
    finally:
        finished.set()
        listener.join()
        shutil.rmtree(scratch, ignore_errors=True)
    failure = ray.get(relay.error.remote())
    if failure is not None:
        raise failure


def _listen(
    relay: Any, on_report: Callable[[dict[str, float]], None], finished: threading.Event
) -> None:
    """Hand reports on until the training has ended and the last one is through."""
    last = False
    while not last:
        last = finished.wait(POLL_SECONDS)
        try:
            reports = ray.get(relay.take.remote())
        except RayError:
            # The cluster is gone; the trainer in the main thread says so.
            return
        for metrics in reports:
            on_report(metrics)
