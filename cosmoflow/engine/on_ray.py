"""The engine on Ray: tasks, actors and Ray Train, on this machine or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from cosmoflow.config.settings import EngineConfig
from cosmoflow.engine import cluster
from cosmoflow.engine.actors import ActorPool
from cosmoflow.engine.base import (
    NO_EXCHANGE,
    ONE_CORE,
    USEFUL_CORES,
    Exchange,
    Resources,
    TrainingContext,
)
from cosmoflow.engine.channel import open_channel
from cosmoflow.engine.exchange.bucket import BucketScratch
from cosmoflow.engine.exchange.runner import Runner
from cosmoflow.engine.exchange.scratch import Scratch, nameless, require_room
from cosmoflow.engine.graph import Key, TaskGraph
from cosmoflow.engine.nodes import (
    ask_for,
    ask_for_nothing,
    count_places,
    cpu_pool,
    nodes_with,
    total,
    wait_for,
    worker_nodes,
)
from cosmoflow.engine.pipeline import STEPS, Pipeline
from cosmoflow.engine.versions import Mismatch, check_nodes, guarded, make_comparison
from cosmoflow.errors import ConfigError, CosmoflowError, IncompleteError

LEAST_PATIENCE = 60.0
"""Shortest time to wait for a first worker, seconds, even if ``engine.patience`` is shorter."""

T = TypeVar("T")
R = TypeVar("R")


class RayEngine:
    """Runs on a Ray cluster.

    Parameters
    ----------
    config : EngineConfig, optional
        ``address`` is that of a running cluster; without one, Ray is started on this machine and
        stops with the engine. ``memory`` is the most that a worker may have. Ray on this machine
        also gets an object store of that size, and spills what exceeds it to disk.
    notify : callable
        Called with messages for the user: which cluster is used, and what is waited for.
    explain : callable
        Called with details for the user who asks for more: where the token of Ray is.

    Raises
    ------
    ConfigError
        The cluster does not accept the token, or its nodes have other versions.
    StorageError
        The cluster cannot be reached.
    IncompleteError
        No node with a core came up.
    """

    name = "ray"

    def __init__(
        self,
        config: EngineConfig | None = None,
        notify: Callable[[str], None] = lambda text: None,
        explain: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._config = config or EngineConfig()
        self._notify = notify
        self._owner = not ray.is_initialized()
        if not self._owner:
            return
        if self._config.address is None:
            cluster.start_instance(self._config.memory, explain)
            return
        cluster.join(self._config.address, ship_code=self._config.ship_code)
        try:
            notify(cluster.describe())
            # The nodes that a killed driver has requested would be rented for ever.
            ask_for_nothing()
            self._wait_for(Resources(), 1)
            nodes_with()
            self.check_versions()
        except BaseException:
            self.close()
            raise

    @cached_property
    def _compare(self) -> Callable[[], Mismatch] | None:
        """Compares versions in a worker; None on this machine, where all workers have ours."""
        return make_comparison() if self._config.address else None

    def check_versions(self) -> None:
        """Make sure that the nodes that are up have the versions of this process.

        Raises
        ------
        ConfigError
            A node has another version.
        """
        if self._compare is not None:
            check_nodes(worker_nodes(), self._compare)

    def _guard(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function if self._compare is None else guarded(function, self._compare)

    def _wait_for(self, needs: Resources, tasks: int) -> None:
        """On a cluster, request room for some tasks side by side and wait for it."""
        if self._config.address is not None:
            with self._errors():
                wait_for(needs, tasks, self._config.patience, self._notify)

    def _wait_for_gpus(self, workers: int, memory: int = 0) -> None:
        """Wait for GPUs if the configuration requires them."""
        if not self._config.gpus:
            return
        needs = Resources(gpus=1, memory=memory)
        self._wait_for(needs, workers)
        if (found := count_places(needs)) < workers:
            raise IncompleteError(
                "there are too few GPUs",
                where="engine.gpus=true",
                value=f"room for {found} workers with a GPU",
                limit=workers,
                remedy="see `ray status`; more patience (engine.patience), or engine.gpus=null",
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn exceptions of Ray into errors with a remedy.

        A worker with other versions may raise anything, or die at once: before an error of ours or
        of Python is raised again, the versions of all nodes are checked.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, RayError) and not isinstance(error, RayTaskError):
                raise IncompleteError(
                    "the Ray cluster was lost, or cannot run the job",
                    value=str(error).strip().splitlines()[0],
                    remedy="see `ray status`; then run the same command again with --resume",
                ) from error
            if isinstance(error, IncompleteError) or not isinstance(error, CosmoflowError):
                with suppress(RayError):
                    self.check_versions()
            raise

    @property
    def cpus(self) -> int:
        """CPUs of the cluster."""
        return max(1, total("CPU"))

    @property
    def gpus(self) -> int:
        """GPUs of the cluster that may be used."""
        return 0 if self._config.gpus is False else total("GPU")

    def cpus_for_each(self, workers: int, gpus: int = 0) -> int:
        """Return the CPUs that each of some equal workers can have, beside its GPUs.

        A worker runs on one node: two nodes of 16 CPUs have room for three workers of 8, not of 10.
        """
        nodes = [node for node in nodes_with() if node.gpus >= gpus]
        nodes = nodes if gpus else cpu_pool(nodes)
        most = max((node.cpus for node in nodes), default=1)
        for cpus in range(most, 1, -1):
            if sum(node.places(Resources(cpus, gpus)) for node in nodes) >= workers:
                return cpus
        return 1

    @property
    def memory(self) -> int:
        """Bytes that one worker can have: those of the largest node without its object store."""
        return max(node.memory for node in nodes_with())

    @property
    def memory_per_core(self) -> int:
        """Bytes of a worker with one core, on the node with the least memory per core."""
        return min(node.memory // node.cpus for node in cpu_pool(nodes_with()))

    def share(self, tasks: int, *, most: int, memory: int, accelerated: bool = False) -> Resources:
        """Return the resources that each of some equal tasks should ask for.

        If there are nodes with GPUs, an accelerated task gets one, with its share of the cores.
        Otherwise a node runs as many tasks as fit, by their memory and with ``most`` cores each. If
        there are fewer tasks than that, each gets more cores, up to a whole node.
        """
        if accelerated:
            self._wait_for_gpus(1, memory)
        nodes = nodes_with(memory)
        with_gpus = [node for node in nodes if node.gpus] if accelerated and self.gpus else []
        if with_gpus:
            cores = min(node.cpus // node.gpus for node in with_gpus)
            return Resources(max(1, cores), 1, memory)
        nodes = cpu_pool(nodes)
        cores = min(node.cpus for node in nodes)
        room = min(node.memory for node in nodes) // max(memory, 1)
        places = max(1, min(-(-cores // most), room, -(-tasks // len(nodes))))
        return Resources(max(1, cores // places), 0, memory)

    def channel(
        self, on_message: Callable[[Any], None]
    ) -> AbstractContextManager[Callable[[Any], None]]:
        """Open a channel through an actor; ``on_message`` is called in a thread of this process."""
        return open_channel(on_message)

    def close(self) -> None:
        """Leave the cluster, and stop it if this engine has started it."""
        if self._owner and ray.is_initialized():
            ray.shutdown()

    def run(
        self,
        graph: TaskGraph,
        on_done: Callable[[Key, Any], None] | None = None,
        *,
        on_task: Callable[[Key], None] | None = None,
        needs: Resources = ONE_CORE,
        exchange: Exchange = NO_EXCHANGE,
    ) -> dict[Key, Any]:
        """Run a graph with a Ray task for each of its tasks, which exchange parcels.

        Raises
        ------
        StorageError
            The disk for parcels is full, or the disk or the bucket fails.
        ConfigError
            The disk has less room than the exchange needs.
        """
        name = exchange.run or nameless()
        scratch: Scratch | BucketScratch
        if exchange.objects is not None:
            scratch = BucketScratch(name, exchange.objects)
        else:
            scratch = Scratch(name, self._config.scratch)
            if self._config.address is None and exchange.size:
                require_room(scratch, exchange.size)
        runner = Runner(
            graph,
            needs=needs,
            scratch=scratch,
            size=exchange.size,
            keep=exchange.resume,
            cluster=self._config.address is not None,
            guard=self._guard,
            notify=self._notify,
        )
        with self._errors(), self._asking(needs, graph.width):
            return runner.run(on_done, on_task)

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
        """Send tasks to a pool of actors: one for each GPU, node or group of cores."""
        if not tasks:
            return
        needs = self._worker_share(len(tasks), workers, memory, accelerated)
        most = workers or -(-len(tasks) // STEPS)

        def places() -> int:
            return min(count_places(needs), workers or len(tasks))

        with self._errors(), self._asking(needs, most):
            patience = max(self._config.patience, LEAST_PATIENCE)
            pool = ActorPool(self._guard(make_worker), needs, places, name=name, patience=patience)
            pool.run(tasks, on_done, run_of)

    @contextmanager
    def _asking(self, needs: Resources, tasks: int) -> Iterator[None]:
        """Request room for some tasks from a cluster's autoscaler while they run."""
        if self._config.address is None:
            yield
            return
        ask_for(needs, tasks)
        try:
            yield
        finally:
            with suppress(RayError):
                ask_for_nothing()

    def _worker_share(
        self, tasks: int, workers: int | None, memory: int, accelerated: bool
    ) -> Resources:
        """Return the resources of each worker of :meth:`map`."""
        if workers is None or (accelerated and self.gpus):
            return self.share(tasks, most=USEFUL_CORES, memory=memory, accelerated=accelerated)
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

        self._wait_for_gpus(workers)
        self._wait_for(Resources(), workers)
        if workers > self.cpus:
            raise ConfigError(
                "there are fewer CPUs than training workers",
                where="train.workers",
                value=workers,
                limit=self.cpus,
                remedy="fewer workers, or a larger cluster",
            )
        use_gpu = self.gpus >= workers
        cpus = self.cpus_for_each(workers, gpus=int(use_gpu))
        with self._errors():
            run_torch_trainer(
                self._guard(loop), workers=workers, cpus=cpus, use_gpu=use_gpu, on_report=on_report
            )
