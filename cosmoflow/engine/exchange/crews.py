"""Crews: they submit tasks to Ray and collect their results, a crew for each node.

If the driver submitted every task by itself, it would ask Ray for a worker for each place in the
cluster, and hear of the end of each task. An actor on every node does both for its node, and each
message between it and the driver is about many tasks. On this machine the crew is an object of the
driver.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cosmoflow.engine.base import Resources
from cosmoflow.engine.graph import Key
from cosmoflow.engine.stopping import PATIENCE

RETRIES: Final = 5
"""How often a task is run again if its worker or node dies, or if its parcel is lost."""
_MOMENT: Final = 0.2
"""Seconds that a crew waits for more tasks to end, so that its answer is about several."""
_ANSWER_SECONDS: Final = 30.0
"""Longest time that a crew waits for the end of a task before it answers the driver."""


class Order(NamedTuple):
    """A task to run.

    Parameters
    ----------
    key : Key
        The task.
    function : ObjectRef
        Its function.
    hands_on : bool
        Whether it hands on parts.
    reads : list of (int or None, bool)
        Part of each source, None if the source has the values themselves; whether to stream it.
    sources : list
        Values of other tasks, or directories of their parcels, or references to those.
    """

    key: Key
    function: Any
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
    """

    key: Key
    value: Any
    error: Exception | None = None
    traceback: str = ""


class Crew:
    """Submits tasks to Ray and collects their results.

    Parameters
    ----------
    run : callable
        Runs a task in a worker; called with the fields of an :class:`Order`, and then its sources.
    needs : Resources
        Resources of each task.
    node : str, optional
        Ray's id of the node on which the tasks run; by default any.
    """

    def __init__(self, run: Callable[..., Any], needs: Resources, node: str | None = None) -> None:
        self._remote = ray.remote(
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            memory=needs.memory or None,
            max_retries=RETRIES,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False) if node else None,
        )(run)
        self._named: dict[str, Any] = {}
        """The remote function under the name of each family."""
        self._running: dict[Key, ray.ObjectRef] = {}
        self._ended: queue.SimpleQueue[tuple[Key, Future[Any]]] = queue.SimpleQueue()

    def submit(self, orders: Sequence[Order]) -> None:
        """Submit some tasks."""
        for key, function, hands_on, reads, sources in orders:
            if key[0] not in self._named:
                self._named[key[0]] = self._remote.options(name=str(key[:1]))
            ref = self._named[key[0]].remote(key, function, hands_on, reads, *sources)
            self._running[key] = ref
            ref.future().add_done_callback(lambda future, key=key: self._ended.put((key, future)))

    def ended(self, patience: float = _ANSWER_SECONDS, enough: int = 1) -> list[End]:
        """Wait for tasks to end; return the tasks that have ended since the last call.

        Parameters
        ----------
        patience : float
            Seconds to wait for a first task.
        enough : int
            Tasks to wait for, unless the others take more than a moment longer.
        """
        found = []
        with suppress(queue.Empty):
            key, future = self._ended.get(timeout=patience)
            until = time.monotonic() + _MOMENT
            while True:
                found.append(self._end(key, future))
                left = until - time.monotonic() if len(found) < enough else 0.0
                key, future = self._ended.get(left > 0.0, max(left, 0.0))
        return found

    def _end(self, key: Key, future: Future[Any]) -> End:
        self._running.pop(key, None)
        try:
            return End(key, future.result())
        except RayTaskError as error:
            cause = error.cause
            return End(key, None, cause if isinstance(cause, Exception) else error, str(error))
        except RayError as error:
            # Some errors of Ray cannot be pickled.
            return End(key, None, RayError(f"{type(error).__name__}: {error}"))

    def finish(self) -> None:
        """Wait a while for the tasks that run to end."""
        if refs := list(self._running.values()):
            ray.wait(refs, num_returns=len(refs), timeout=PATIENCE, fetch_local=False)

    def close(self) -> None:
        """Leave the tasks to themselves."""


class RemoteCrew:
    """The driver's side of a crew on another node.

    Parameters
    ----------
    run, needs, node
        See :class:`Crew`.
    enough : int
        Tasks that an answer of the crew is about, if they end within a moment.
    on_ended : callable
        Called with the crew and a future of a list of ends; in another thread.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        needs: Resources,
        node: str,
        enough: int,
        on_ended: Callable[[RemoteCrew, Future[list[End]]], None],
    ) -> None:
        self.node, self._on_ended, self._listening = node, on_ended, False
        self._enough = enough
        self._actor = (
            ray.remote(Crew)
            .options(
                num_cpus=0,
                max_restarts=0,
                # One call submits, one waits for ends, one finishes.
                max_concurrency=3,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(run, needs, node)
        )

    def submit(self, orders: Sequence[Order]) -> None:
        """Submit some tasks, and ask for those that have ended."""
        self._actor.submit.remote(orders)
        self.listen()

    def listen(self) -> None:
        """Ask for the tasks that have ended, unless the crew has yet to answer."""
        if not self._listening:
            self._listening = True
            answer = self._actor.ended.remote(enough=self._enough)
            answer.future().add_done_callback(self._hear)

    def _hear(self, future: Future[list[End]]) -> None:
        self._listening = False
        self._on_ended(self, future)

    def finish(self) -> Any:
        """Ask the crew to wait for its tasks; return a reference to the answer."""
        return self._actor.finish.remote()

    def close(self) -> None:
        """End the actor, and with it the tasks that it has submitted."""
        ray.kill(self._actor)
