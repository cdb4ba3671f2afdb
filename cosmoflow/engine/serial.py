"""The engine without Ray. It runs everything in this process, and is the reference in tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from cosmoflow.engine.base import (
    NO_EXCHANGE,
    ONE_CORE,
    Exchange,
    Resources,
    TrainingContext,
)
from cosmoflow.engine.buffers import keeping_freed_buffers, trim
from cosmoflow.engine.graph import Key, TaskGraph
from cosmoflow.engine.memory import available_memory
from cosmoflow.engine.pipeline import Pipeline, run_pipeline
from cosmoflow.errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")


class SerialEngine:
    """Runs one task after the other; numerical libraries may still use every core."""

    name = "serial"

    @property
    def cpus(self) -> int:
        """Number of CPUs of this process."""
        return len(os.sched_getaffinity(0))

    @property
    def gpus(self) -> int:
        """0: tasks need not ask for a GPU, because this process uses the one that it finds."""
        return 0

    @property
    def memory(self) -> int:
        """Bytes that this process can still have."""
        return available_memory()

    @property
    def memory_per_core(self) -> int:
        """Available bytes for each CPU."""
        return self.memory // self.cpus

    def share(self, tasks: int, *, most: int, memory: int, accelerated: bool = False) -> Resources:
        """Return all resources, because tasks run one after the other."""
        return Resources(self.cpus, 0, memory)

    def channel(
        self, on_message: Callable[[Any], None]
    ) -> AbstractContextManager[Callable[[Any], None]]:
        """Return ``on_message`` as the channel."""
        return nullcontext(on_message)

    def run(
        self,
        graph: TaskGraph,
        on_done: Callable[[Key, Any], None] | None = None,
        *,
        on_task: Callable[[Key], None] | None = None,
        needs: Resources = ONE_CORE,
        exchange: Exchange = NO_EXCHANGE,
    ) -> dict[Key, Any]:
        """Run a graph with Dask's synchronous scheduler; parts stay in memory."""
        outputs = graph.outputs

        def finished(key: Any, result: Any, dsk: Any, state: Any, worker: Any) -> None:
            family = graph.families.get(key[0])
            if family is None:
                return
            if on_done is not None and family.output:
                on_done(key, result)
            if on_task is not None:
                on_task(key)

        # Imported here: `infer` uses an engine without graphs, and Dask takes long to load.
        from dask.callbacks import Callback
        from dask.local import get_sync

        with Callback(posttask=finished):
            results = get_sync(graph.to_dask(), outputs)
        # A task that kept freed buffers has left its parts among them.
        trim()
        return dict(zip(outputs, results, strict=True))

    def map(
        self,
        make_worker: Callable[[], Callable[[T], R] | Pipeline[T, R]],
        tasks: Sequence[T],
        on_done: Callable[[T, R], None],
        *,
        run_of: Callable[[T], Hashable] | None = None,
        name: str = "map",
        workers: int | None = None,
        memory: int = 0,
        accelerated: bool = False,
    ) -> None:
        """Handle the tasks in order with one worker."""
        if not tasks:
            return
        with keeping_freed_buffers():
            worker = make_worker()
            if isinstance(worker, Pipeline):
                run_pipeline(worker, tasks, on_done)
                return
            for task in tasks:
                on_done(task, worker(task))

    def train(
        self,
        loop: Callable[[TrainingContext], None],
        *,
        workers: int,
        on_report: Callable[[dict[str, float]], None],
    ) -> None:
        """Run the loop in this process.

        Raises
        ------
        ConfigError
            More than one worker is requested.
        """
        if workers > 1:
            raise ConfigError(
                "several training workers need Ray",
                where="train.workers with --engine serial",
                value=workers,
                limit=1,
                remedy="--engine ray, or one worker with a larger train.batch",
            )
        with keeping_freed_buffers():
            loop(_Alone(on_report))


class _Alone:
    """The training context of a single process."""

    rank = 0
    world_size = 1

    def __init__(self, on_report: Callable[[dict[str, float]], None]) -> None:
        self._on_report = on_report

    def wrap(self, module: Any) -> Any:
        return module

    def total(self, value: float) -> float:
        return value

    def report(self, metrics: dict[str, float]) -> None:
        self._on_report(metrics)

    def note(self, metrics: dict[str, float]) -> None:
        self._on_report(metrics)
