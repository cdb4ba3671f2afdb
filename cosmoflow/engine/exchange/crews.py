"""Crews: they submit tasks to Ray and collect their results, a crew for each node or some nodes.

If the driver submitted every task by itself, it would ask Ray for a worker for each place in the
cluster, and hear of the end of each task. An actor on a node does both for its node. One call of it
hands in tasks and returns the tasks that have ended, as many of both as can wait for each other. A
call takes about as much of the driver's time however many tasks it is about. In a cluster of many
nodes a crew also has some of the others. On this machine the crew is an object of the driver.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, NamedTuple

import ray
from ray.exceptions import NodeDiedError, RayError, RayTaskError, TaskUnschedulableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cosmoflow.engine.base import Resources
from cosmoflow.engine.graph import Key
from cosmoflow.engine.stopping import PATIENCE

RETRIES: Final = 5
"""How often a task is run again if its worker or node dies, or if its parcel is lost."""
MOMENT: Final = 0.5
"""Seconds that a crew waits for more tasks to end, so that its answer is about several."""
_ANSWER_SECONDS: Final = 30.0
"""Longest time that a crew waits for the end of a task before it answers the driver."""


class Rooms(NamedTuple):
    """The nodes of a crew.

    Parameters
    ----------
    version : int
        It grows with each change: messages to a crew may overtake one another.
    nodes : mapping of str to int
        Ray's ids of the nodes, and how many tasks run side by side on each.
    """

    version: int
    nodes: Mapping[str, int]

    @property
    def total(self) -> int:
        """How many tasks run side by side on all nodes."""
        return sum(self.nodes.values())


class Order(NamedTuple):
    """A task to run.

    Parameters
    ----------
    key : Key
        The task.
    hands_on : bool
        Whether it hands on parts.
    reads : list of (int or None, bool)
        Part of each source, None if the source has the values themselves; whether to stream it.
    sources : list
        Values of other tasks, or directories of their parcels, or references to those.
    """

    key: Key
    hands_on: bool
    reads: list[tuple[int | None, bool]]
    sources: list[Any]


class End(NamedTuple):
    """The end of a task.

    Parameters
    ----------
    key : Key
        The task.
    value : object
        Its result.
    error : Exception or None
        Its error instead.
    traceback : str
        Where the error was raised.
    left : bool
        Whether the node of the task has left, so that it must run on another.
    """

    key: Key
    value: Any
    error: Exception | None = None
    traceback: str = ""
    left: bool = False


class Crew:
    """Submits tasks to Ray and collects their results.

    Parameters
    ----------
    run : callable
        Runs a task in a worker; called with its function, and the fields of its :class:`Order`, the
        sources one by one.
    functions : dict of str to ObjectRef
        Function of each family. The crew has them from the start: references that come with orders
        would take several times as long to send as the rest.
    needs : Resources
        Resources of each task.
    rooms : Rooms, optional
        The nodes on which the tasks run; by default any.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        functions: dict[str, ray.ObjectRef],
        needs: Resources,
        rooms: Rooms | None = None,
    ) -> None:
        self._functions = functions
        self._remote = ray.remote(
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            memory=needs.memory or None,
            max_retries=RETRIES,
        )(run)
        self._named: dict[tuple[str, str | None], Any] = {}
        """The remote function under the name of each family, on each node."""
        self._lock = threading.Lock()
        """Calls of the driver run in threads: some submit while one waits for ends."""
        self._rooms = rooms
        self._left: set[str | None] = set()
        """Nodes that have left, though the driver may not know it yet."""
        self._loads: Counter[str | None] = Counter()
        """Tasks that each node has."""
        self._running: dict[Key, tuple[ray.ObjectRef, str | None]] = {}
        self._ended: queue.SimpleQueue[tuple[Key, Future[Any]]] = queue.SimpleQueue()
        self._enough = 1

    def submit(self, orders: Sequence[Order], enough: int = 1, rooms: Rooms | None = None) -> None:
        """Submit some tasks; from now on :meth:`ended` waits for ``enough`` of all to end.

        Parameters
        ----------
        orders : sequence of Order
            The tasks.
        enough : int
            Number of tasks.
        rooms : Rooms, optional
            The nodes, if they have changed.
        """
        self._enough = enough
        with self._lock:
            if rooms and self._rooms and rooms.version > self._rooms.version:
                self._rooms = rooms
            for key, hands_on, reads, sources in orders:
                node = self._choose_node()
                function = self._functions[key[0]]
                ref = self._remote_on(node, key[0]).remote(function, key, hands_on, reads, *sources)
                self._loads[node] += 1
                self._running[key] = ref, node
                ref.future().add_done_callback(
                    lambda future, key=key: self._ended.put((key, future))
                )

    def _choose_node(self) -> str | None:
        """Return the node with the most room left; None for any."""
        if self._rooms is None:
            return None
        nodes = self._rooms.nodes
        # The node of the crew itself is there, whatever Ray says of it.
        up = [node for node in nodes if node not in self._left] or list(nodes)[:1]
        return max(up, key=lambda node: nodes[node] - self._loads[node])

    def _remote_on(self, node: str | None, family: str) -> Any:
        if (family, node) not in self._named:
            where = NodeAffinitySchedulingStrategy(node, soft=False) if node else None
            self._named[family, node] = self._remote.options(
                name=str((family,)), scheduling_strategy=where
            )
        return self._named[family, node]

    def work(
        self, orders: Sequence[Order], enough: int, moment: float, rooms: Rooms | None = None
    ) -> list[End]:
        """Submit some tasks; wait for these or earlier ones to end, see :meth:`ended`."""
        self.submit(orders, enough, rooms)
        return self.ended(_ANSWER_SECONDS, moment)

    def ended(self, patience: float, moment: float = 0.0) -> list[End]:
        """Wait for enough tasks to end; return the tasks that have ended since the last call.

        It does not wait for more if one of them fails or no other task runs.

        Parameters
        ----------
        patience : float
            Seconds to wait for a first task.
        moment : float
            Seconds to wait for others after the first.
        """
        found = []
        with suppress(queue.Empty):
            key, future = self._ended.get(timeout=patience)
            until = time.monotonic() + moment
            while True:
                found.append(self._end(key, future))
                more = len(found) < self._enough and self._running and found[-1].error is None
                left = max(until - time.monotonic(), 0.0) if more else 0.0
                key, future = self._ended.get(left > 0.0, left)
        return found

    def _end(self, key: Key, future: Future[Any]) -> End:
        with self._lock:
            _, node = self._running.pop(key, (None, None))
            self._loads[node] -= 1
        try:
            return End(key, future.result())
        except (NodeDiedError, TaskUnschedulableError):
            with self._lock:
                self._left.add(node)
            return End(key, None, left=True)
        except RayTaskError as error:
            cause = error.cause
            return End(key, None, cause if isinstance(cause, Exception) else error, str(error))
        except RayError as error:
            # Some errors of Ray cannot be pickled.
            return End(key, None, RayError(f"{type(error).__name__}: {error}"))

    def finish(self) -> None:
        """Wait a while for the tasks that run to end."""
        with self._lock:
            refs = [ref for ref, _ in self._running.values()]
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=PATIENCE, fetch_local=False)

    def close(self) -> None:
        """Leave the tasks to themselves."""


class RemoteCrew:
    """The driver's side of a crew on another node.

    Parameters
    ----------
    run, functions, needs
        See :class:`Crew`.
    node : str
        Ray's id of the node of the crew.
    rooms : Rooms
        The nodes on which the tasks run.
    on_ended : callable
        Called with the crew and a future of a list of ends; in another thread.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        functions: dict[str, ray.ObjectRef],
        needs: Resources,
        node: str,
        rooms: Rooms,
        on_ended: Callable[[RemoteCrew, Future[list[End]]], None],
    ) -> None:
        self.node, self._on_ended, self._listening = node, on_ended, False
        self._actor = (
            ray.remote(Crew)
            .options(
                num_cpus=0,
                max_restarts=0,
                # One call waits for ends, one submits meanwhile, one finishes.
                max_concurrency=3,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(run, functions, needs, rooms)
        )

    def work(
        self, orders: Sequence[Order], enough: int, moment: float, rooms: Rooms | None = None
    ) -> None:
        """Submit some tasks, and ask for those that have ended, unless that has been asked.

        The answer is about ``enough`` tasks, if they end within a moment, see :meth:`Crew.ended`.
        """
        if not self._listening:
            self._listening = True
            answer = self._actor.work.remote(orders, enough, moment, rooms)
            answer.future().add_done_callback(self._hear)
        elif orders or rooms:
            self._actor.submit.remote(orders, enough, rooms)

    def _hear(self, future: Future[list[End]]) -> None:
        self._listening = False
        self._on_ended(self, future)

    def finish(self) -> Any:
        """Ask the crew to wait for its tasks; return a reference to the answer."""
        return self._actor.finish.remote()

    def close(self) -> None:
        """End the actor, and with it the tasks that it has submitted."""
        ray.kill(self._actor)
