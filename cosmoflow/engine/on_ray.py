"""The engine on Ray: tasks, actors and Ray Train, on this machine or on a cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from cosmoflow.engine import dask_on_ray
from cosmoflow.engine.actors import ActorPool
from cosmoflow.engine.base import ONE_CORE, USEFUL_CORES, Resources, TrainingContext
from cosmoflow.engine.channel import open_channel
from cosmoflow.engine.graph import Key, TaskGraph
from cosmoflow.engine.pipeline import Pipeline
from cosmoflow.errors import ConfigError, IncompleteError, StorageError
from cosmoflow.units import format_bytes

T = TypeVar("T")
R = TypeVar("R")

LEAST_STORE = 80 << 20
"""Bytes below which Ray starts no object store."""


@contextmanager
def _cluster_errors() -> Iterator[None]:
    """Turn what Ray itself raises, a lost cluster say, into an error that says how to go on."""
    try:
        yield
    except RayTaskError:
        # Raised by our code in a worker: a bug, to be seen with its traceback.
        raise
    except RayError as error:
        raise IncompleteError(
            "the Ray cluster was lost, or cannot run the job",
            value=str(error).strip().splitlines()[0],
            remedy="see `ray status`; then run the same command again with --resume",
        ) from error


class RayEngine:
    """Runs on a Ray cluster.

    Parameters
    ----------
    address : str, optional
        Of a running cluster; none starts an instance on this machine, which ends with the engine.
    memory : int, optional
        Most that a worker may have, bytes. An instance of its own gets an object store of that
        size too, and keeps the rest of what tasks hand on on disk.

    Raises
    ------
    StorageError
        The cluster cannot be reached.
    """

    name = "ray"

    def __init__(self, address: str | None = None, memory: int | None = None) -> None:
        self._owner = not ray.is_initialized()
        if self._owner:
            try:
                ray.init(
                    address=address or "local",
                    include_dashboard=None if address else False,
                    object_store_memory=_store_memory(memory) if not address else None,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise StorageError(
                    f"cannot reach the Ray cluster: {str(error).splitlines()[0]}",
                    where=address,
                    remedy="check the address, that the cluster is up, and the token "
                    "(RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH)",
                ) from error

    @property
    def cpus(self) -> int:
        """CPUs of the cluster."""
        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    @property
    def gpus(self) -> int:
        """GPUs of the cluster."""
        return int(ray.cluster_resources().get("GPU", 0))

    def cpus_for_each(self, workers: int) -> int:
        """Return the CPUs that each of some equal workers can have.

        A worker lives on one node: asking for more CPUs than the smallest node has would leave some
        of them waiting for a node that never comes.
        """
        smallest = min(int(node["CPU"]) for node in _nodes_with())
        return max(1, min(self.cpus // workers, smallest))

    @property
    def memory(self) -> int:
        """Bytes that one worker can have: those of the largest node beside its object store."""
        return max(int(node.get("memory", 0)) for node in _nodes_with())

    @property
    def memory_per_core(self) -> int:
        """Bytes of a worker of one core, on the node that has least for each of its cores."""
        return min(int(node.get("memory", 0)) // int(node["CPU"]) for node in _nodes_with())

    def share(self, tasks: int, *, most: int, memory: int) -> Resources:
        """Return what each of some equal tasks should ask for.

        Where there are nodes with GPUs a task gets one, and its share of the cores beside it.
        Elsewhere a node takes as many tasks as it has places of ``most`` cores and room in memory;
        with few tasks each gets more cores, up to a whole node.
        """
        nodes = _nodes_with(memory)
        if with_gpus := [node for node in nodes if node.get("GPU", 0) >= 1]:
            cores = min(int(node["CPU"]) // int(node["GPU"]) for node in with_gpus)
            return Resources(max(1, cores), 1, memory)
        cores = min(int(node["CPU"]) for node in nodes)
        room = min(int(node.get("memory", 0)) for node in nodes) // max(memory, 1)
        places = max(1, min(-(-cores // most), room, -(-tasks // len(nodes))))
        return Resources(max(1, cores // places), 0, memory)

    def channel(
        self, on_message: Callable[[Any], None]
    ) -> AbstractContextManager[Callable[[Any], None]]:
        """Carry messages through an actor; ``on_message`` is called in a thread of this process."""
        return open_channel(on_message)

    def close(self) -> None:
        """Leave the cluster, and stop it when this engine started it."""
        if self._owner and ray.is_initialized():
            ray.shutdown()

    def run(
        self,
        graph: TaskGraph,
        on_done: Callable[[Key, Any], None] | None = None,
        *,
        needs: Resources = ONE_CORE,
    ) -> dict[Key, Any]:
        """Run a graph with one Ray task a node."""
        with _cluster_errors():
            return dask_on_ray.run(
                graph.tasks, graph.outputs, on_done, parts=graph.parts, needs=needs
            )

    def map(
        self,
        make_worker: Callable[[], Callable[[T], R] | Pipeline[T, R]],
        tasks: Sequence[T],
        on_done: Callable[[T, R], None],
        *,
        workers: int | None = None,
        memory: int = 0,
    ) -> None:
        """Send tasks to a pool of actors: one a GPU, or one a node or group of cores."""
        if not tasks:
            return
        needs = self.worker_share(len(tasks), workers, memory)

        def places() -> int:
            return min(_places(needs), workers or len(tasks))

        with _cluster_errors():
            ActorPool(make_worker, needs, places).run(tasks, on_done)

    def worker_share(self, tasks: int, workers: int | None = None, memory: int = 0) -> Resources:
        """Return what each worker of :meth:`map` gets."""
        if workers is None or self.gpus:
            return self.share(tasks, most=USEFUL_CORES, memory=memory)
        return Resources(self.cpus_for_each(min(workers, tasks)), 0, memory)

    def train(
        self,
        loop: Callable[[TrainingContext], None],
        *,
        workers: int,
        on_report: Callable[[dict[str, float]], None],
    ) -> None:
        """Run a training loop under Ray Train's ``TorchTrainer``."""
        from cosmoflow.engine.training import run_torch_trainer

        if workers > self.cpus:
            raise ConfigError(
                "there are fewer CPUs than training workers",
                where="train.workers",
                value=workers,
                limit=self.cpus,
                remedy="fewer workers, or a larger cluster",
            )
        cpus = self.cpus_for_each(workers)
        use_gpu = self.gpus >= workers
        with _cluster_errors():
            run_torch_trainer(
                loop, workers=workers, cpus=cpus, use_gpu=use_gpu, on_report=on_report
            )


def _store_memory(memory: int | None) -> int | None:
    """Return the size of an object store beside workers of some memory; None leaves it to Ray."""
    return None if memory is None else max(memory, LEAST_STORE)


def _worker_nodes() -> list[dict[str, float]]:
    """Return the resources of the nodes that are up and have a core to give."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [node for node in nodes if node.get("CPU", 0) >= 1]


def _nodes_with(memory: int = 0) -> list[dict[str, float]]:
    """Return the worker nodes with so many bytes.

    Raises
    ------
    IncompleteError
        There is none: they have not joined yet, or are gone.
    """
    nodes = _worker_nodes()
    if fitting := [node for node in nodes if node.get("memory", 0) >= memory]:
        return fitting
    largest = max((int(node.get("memory", 0)) for node in nodes), default=0)
    raise IncompleteError(
        f"no node is up with {f'{format_bytes(memory)} for a worker' if memory else 'a CPU'}",
        where="the Ray cluster",
        value=f"{len(nodes)} nodes with CPUs"
        + (f", the largest with {format_bytes(largest)}" if nodes else ""),
        remedy="see `ray status`; when nodes have joined, run the same command again (--resume "
        "continues what was begun)",
    )


def _places(needs: Resources) -> int:
    """Return how many workers the nodes that are up have room for."""
    places = 0
    for node in _worker_nodes():
        room = [int(node["CPU"]) // needs.cpus]
        if needs.gpus:
            room.append(int(node.get("GPU", 0)) // needs.gpus)
        if needs.memory:
            room.append(int(node.get("memory", 0)) // needs.memory)
        places += min(room)
    return places
