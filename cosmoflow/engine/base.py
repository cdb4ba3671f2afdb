"""What an engine does for a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from cosmoflow.engine.graph import Key, TaskGraph
from cosmoflow.engine.pipeline import Pipeline

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Resources:
    """What one task needs of the node that it runs on.

    Parameters
    ----------
    cpus, gpus : int
        Cores, and GPUs.
    memory : int
        Bytes beyond the interpreter; 0 leaves them uncounted.
    """

    cpus: int = 1
    gpus: int = 0
    memory: int = 0


ONE_CORE = Resources()
"""What a task needs that says nothing."""

USEFUL_CORES = 8
"""Cores that one task or worker makes good use of; a larger node has several side by side."""


class TrainingContext(Protocol):
    """What a data-parallel training loop knows of the workers beside it."""

    rank: int
    world_size: int

    def wrap(self, module: Any) -> Any:
        """Return the module with its gradients averaged over the workers."""

    def total(self, value: float) -> float:
        """Return the sum of a value over the workers. Every worker must call it."""

    def report(self, metrics: dict[str, float]) -> None:
        """Tell the driver how the training goes. Every worker must call it."""


class Engine(Protocol):
    """Runs graphs of tasks, pools of actors and training loops."""

    name: str

    @property
    def cpus(self) -> int:
        """CPUs at hand."""

    @property
    def gpus(self) -> int:
        """GPUs at hand for tasks that ask for them."""

    @property
    def memory(self) -> int:
        """Bytes that one worker can have."""

    @property
    def memory_per_core(self) -> int:
        """Bytes that each of as many workers as there are cores can have."""

    def share(self, tasks: int, *, most: int, memory: int, accelerated: bool = False) -> Resources:
        """Return what each of some equal tasks should ask for so that the nodes are used well.

        ``most`` is how many cores a task can make good use of, ``memory`` the bytes it needs; an
        ``accelerated`` one runs faster on a GPU, where there are any.
        """

    def channel(
        self, on_message: Callable[[Any], None]
    ) -> AbstractContextManager[Callable[[Any], None]]:
        """Open a way for running tasks to tell the driver something.

        Its value is picklable and goes to the tasks as an argument; what they call it with reaches
        ``on_message``, perhaps in another thread.
        """

    def run(
        self,
        graph: TaskGraph,
        on_done: Callable[[Key, Any], None] | None = None,
        *,
        needs: Resources = ONE_CORE,
    ) -> dict[Key, Any]:
        """Run a graph and return the results of its outputs.

        ``on_done`` hears of every output as soon as it is there, in any order. Every task has what
        it ``needs``, where the engine counts it.
        """

    def map(
        self,
        make_worker: Callable[[], Callable[[T], R] | Pipeline[T, R]],
        tasks: Sequence[T],
        on_done: Callable[[T, R], None],
        *,
        name: str = "map",
        workers: int | None = None,
        memory: int = 0,
        accelerated: bool = False,
    ) -> None:
        """Send tasks to a pool of long-lived workers.

        ``make_worker`` is called once in every worker and returns what handles a task there, at
        once or in overlapping steps; ``name`` is what logs call it. Tasks must be idempotent: those
        of a worker that dies go to another one. ``workers`` limits their number, and each has
        ``memory`` bytes where the engine counts it, and a GPU if it is ``accelerated`` and there
        are any.
        """

    def train(
        self,
        loop: Callable[[TrainingContext], None],
        *,
        workers: int,
        on_report: Callable[[dict[str, float]], None],
    ) -> None:
        """Run a training loop on ``workers`` data-parallel workers."""
