"""What an engine does for a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from cosmoflow.engine.graph import Key, TaskGraph

T = TypeVar("T")
R = TypeVar("R")


class TrainingContext(Protocol):
    """What a data-parallel training loop knows of the workers beside it."""

    rank: int
    world_size: int

    def wrap(self, module: Any) -> Any:
        """Return the module with its gradients averaged over the workers."""

    def report(self, metrics: dict[str, float]) -> None:
        """Tell the driver how the training goes. Every worker must call it."""


class Engine(Protocol):
    """Runs graphs of tasks, pools of actors and training loops."""

    name: str

    @property
    def cpus(self) -> int:
        """CPUs at hand."""

    def run(
        self,
        graph: TaskGraph,
        on_done: Callable[[Key, Any], None] | None = None,
        *,
        cpus: int = 1,
    ) -> dict[Key, Any]:
        """Run a graph and return the results of its outputs.

        ``on_done`` hears of every output as soon as it is there, in any order. Every task has
        ``cpus`` cores, where the engine counts them.
        """

    def map(
        self,
        make_worker: Callable[[], Callable[[T], R]],
        tasks: Sequence[T],
        on_done: Callable[[T, R], None],
        *,
        workers: int | None = None,
    ) -> None:
        """Send tasks to a pool of long-lived workers.

        ``make_worker`` is called once in every worker and returns what handles a task there. Tasks
        must be idempotent: the tasks of a worker that dies go to another one.
        """

    def train(
        self,
        loop: Callable[[TrainingContext], None],
        *,
        workers: int,
        on_report: Callable[[dict[str, float]], None],
    ) -> None:
        """Run a training loop on ``workers`` data-parallel workers."""
