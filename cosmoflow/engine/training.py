"""Data-parallel training under Ray Train."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context, report
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model
from ray.train.torch.config import _TorchBackend
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.exceptions import TrainingFailedError

from cosmoflow.engine.base import Resources, TrainingContext
from cosmoflow.engine.buffers import keeping_freed_buffers
from cosmoflow.engine.channel import beside_driver, open_channel
from cosmoflow.engine.threads import use_share
from cosmoflow.errors import CosmoflowError, IncompleteError

FAILURES = 3
"""How often Ray Train restarts the workers after one of them has died."""


class _RayContext:
    """The training context of one Ray Train worker."""

    def __init__(self, send: Callable[[dict[str, float]], None]) -> None:
        self._send = send
        context = get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()

    def wrap(self, module: Any) -> Any:
        return prepare_model(module) if self.world_size > 1 else module

    def total(self, value: float) -> float:
        if self.world_size == 1:
            return value
        # nccl adds tensors on GPUs only, gloo on CPUs.
        total = torch.tensor(value, dtype=torch.float64, device=get_device())
        torch.distributed.all_reduce(total)
        return float(total)

    def report(self, metrics: dict[str, float]) -> None:
        report(metrics)

    def note(self, metrics: dict[str, float]) -> None:
        # A report of Ray Train makes the workers wait for one another and for the controller.
        if self.rank == 0:
            self._send(metrics)


class _Verdict:
    """Keeps the error that ends a training for good, despite restarts."""

    def __init__(self) -> None:
        self._error: CosmoflowError | None = None

    def fail(self, error: CosmoflowError) -> None:
        self._error = error

    def error(self) -> CosmoflowError | None:
        return self._error


class _Forward(UserCallback):  # type: ignore[misc]
    """Passes the reports of rank 0 to the driver. It runs in the controller of the trainer."""

    def __init__(self, send: Callable[[dict[str, float]], None]) -> None:
        self._send = send

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        self._send(metrics[0])


def _use_own_interface() -> None:
    """Make gloo listen on the address that this node has in the cluster.

    By default gloo looks up the host name, which many systems resolve to the loopback address.
    """
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_use_own_interface)
        super().on_start(worker_group, backend_config)


@dataclass
class _Torch(TorchConfig):  # type: ignore[misc]
    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


def run_torch_trainer(
    loop: Callable[[TrainingContext], None],
    *,
    workers: int,
    cpus: int,
    use_gpu: bool,
    on_report: Callable[[dict[str, float]], None],
) -> None:
    """Run a loop on data-parallel workers.

    The loop writes its own checkpoints and starts from the newest one, so a restart by Ray Train is
    the same as a restart by the user.

    Raises
    ------
    CosmoflowError
        The error that the loop has raised. It is final: only deaths of workers are retried.
    IncompleteError
        Workers kept dying.
    """
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    verdict = beside_driver(_Verdict)

    def run_worker(send: Callable[[dict[str, float]], None]) -> None:
        if not use_gpu:
            use_share(Resources(cpus))
        if ray.get(verdict.error.remote()) is not None:
            # An earlier attempt failed with an error that a restart does not fix. The driver
            # raises it.
            return
        try:
            with keeping_freed_buffers():
                loop(_RayContext(send))
        except CosmoflowError as error:
            ray.get(verdict.fail.remote(error))
            # The other workers would wait for this one for ever, so it fails. All are restarted
            # once, find the error and end.
            raise

    scratch = tempfile.mkdtemp(prefix="cosmoflow-train-")
    try:
        with open_channel(on_report) as send:
            TorchTrainer(
                partial(run_worker, send),
                torch_config=_Torch(),
                scaling_config=ScalingConfig(
                    num_workers=workers,
                    use_gpu=use_gpu,
                    resources_per_worker={"CPU": cpus, **({"GPU": 1} if use_gpu else {})},
                ),
                run_config=RunConfig(
                    storage_path=scratch,
                    failure_config=FailureConfig(max_failures=FAILURES),
                    callbacks=[_Forward(send)],
                ),
            ).fit()
    except TrainingFailedError as error:
        raise IncompleteError(
            "the training workers keep dying",
            value=str(error).strip().splitlines()[-1],
            limit=f"{FAILURES} restarts",
            remedy="look at the workers' memory, then run again with --resume",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    failure = ray.get(verdict.error.remote())
    if failure is not None:
        raise failure
