"""The interface of the engines."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar

from cosmoflow.engine.graph import Key, TaskGraph
from cosmoflow.engine.pipeline import Pipeline

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources that a task needs on its node.

    Parameters
    ----------
    cpus, gpus : int
        Number of cores and of GPUs.
    memory : int
        Bytes beyond the interpreter; 0 means that memory is not counted.
    """

    cpus: int = 1
    gpus: int = 0
    memory: int = 0


class Objects(Protocol):
    """The objects below a place in a bucket. Can be pickled; all methods may raise StorageError."""

    def put(self, name: str, content: Callable[[], Iterator[Any]]) -> None:
        """Write an object, whose bytes ``content`` returns in blocks each time it is called."""

    def read(self, name: str, start: int, stop: int) -> Any:
        """Return some bytes: fewer if the object ends before. FileNotFoundError if it is missing.

        Any object with the buffer protocol may be returned.
        """

    def read_end(self, name: str, size: int) -> tuple[bytes, int]:
        """Return the last bytes of an object, and its size. FileNotFoundError if it is missing."""

    def list(self, prefix: str = "") -> Iterator[tuple[str, datetime]]:
        """Yield name and time of last change, by the bucket's clock, of objects below a prefix."""

    def delete(self, names: Sequence[str]) -> None:
        """Delete the objects that exist among those named."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """What the tasks of a graph hand to one another, if an engine writes it to scratch.

    Parameters
    ----------
    size : int
        Bytes in all.
    run : str, optional
        Name of the run, which stands for all that its tasks' results depend on; by default no
        other run is the same.
    resume : bool
        Use what a killed run of this name has left.
    objects : Objects, optional
        Place in a bucket for it; by default it goes to the disks of the nodes.
    """

    size: int = 0
    run: str | None = None
    resume: bool = False
    objects: Objects | None = None


NO_EXCHANGE = Exchange()
"""The exchange of tasks that hand on little."""

ONE_CORE = Resources()
"""Resources of a task by default."""

USEFUL_CORES = 8
"""Cores that a task or worker uses well; a node with more cores runs several side by side."""


class TrainingContext(Protocol):
    """The workers of a data-parallel training loop, as one of them sees them."""

    rank: int
    world_size: int

    def wrap(self, module: Any) -> Any:
        """Return the module with its gradients averaged over the workers."""

    def total(self, value: float) -> float:
        """Return the sum of a value over the workers. Every worker must call it."""

    def report(self, metrics: dict[str, float]) -> None:
        """Send metrics to the driver. Every worker must call it."""

    def note(self, metrics: dict[str, float]) -> None:
        """Send metrics of rank 0 to the driver at once. Workers need not call it together."""


class Engine(Protocol):
    """Runs graphs of tasks, pools of actors and training loops."""

    name: str

    @property
    def cpus(self) -> int:
        """Number of CPUs."""

    @property
    def gpus(self) -> int:
        """Number of GPUs for tasks that ask for them."""

    @property
    def memory(self) -> int:
        """Bytes that one worker can have."""

    @property
    def memory_per_core(self) -> int:
        """Bytes that each worker can have if there is one worker for each core."""

    def share(self, tasks: int, *, most: int, memory: int, accelerated: bool = False) -> Resources:
        """Return the resources that each of some equal tasks should ask for.

        ``most`` is the number of cores that a task can use well, and ``memory`` the bytes that it
        needs. An ``accelerated`` task runs on a GPU if there is one.
        """

    def channel(
        self, on_message: Callable[[Any], None]
    ) -> AbstractContextManager[Callable[[Any], None]]:
        """Open a channel for messages from running tasks to the driver.

        The channel is a picklable function that is passed to the tasks. Whatever a task calls it
        with is passed to ``on_message``, possibly in another thread.
        """

    def run(
        self,
        graph: TaskGraph,
        on_done: Callable[[Key, Any], None] | None = None,
        *,
        on_task: Callable[[Key], None] | None = None,
        needs: Resources = ONE_CORE,
        exchange: Exchange = NO_EXCHANGE,
    ) -> dict[Key, Any]:
        """Run a graph and return the values of its outputs.

        ``on_done`` is called with the key and the value of each output as soon as it is ready, in
        any order; ``on_task`` with the key of each task that is done, or done again. ``needs`` are
        the resources of each task, if the engine counts them. ``exchange`` says how much the tasks
        hand to one another, if the engine writes it to disk.
        """

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
        """Send tasks to a pool of long-lived workers.

        ``make_worker`` is called once in every worker. It returns the function that handles a task,
        or a pipeline that handles it in overlapping steps. ``run_of`` names the run of a task: one
        worker takes the tasks of a run one after the other, as far as no other is idle; without it
        tasks go to any worker in their order. ``name`` is used in logs. Tasks must be
        idempotent, since the tasks of a worker that dies go to another one. ``workers`` limits the
        number of workers. Each has ``memory`` bytes, if the engine counts memory, and a GPU if it
        is ``accelerated`` and there is one.
        """

    def train(
        self,
        loop: Callable[[TrainingContext], None],
        *,
        workers: int,
        on_report: Callable[[dict[str, float]], None],
    ) -> None:
        """Run a training loop on ``workers`` data-parallel workers."""
