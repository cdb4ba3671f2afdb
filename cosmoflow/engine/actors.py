"""A pool of Ray actors that grows and shrinks, and survives the death of any actor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from cosmoflow.engine import telemetry
from cosmoflow.engine.base import Resources
from cosmoflow.engine.memory import keep_freed_buffers
from cosmoflow.engine.nodes import placement
from cosmoflow.engine.pipeline import STEPS, Pipeline, PipelineThreads
from cosmoflow.engine.runs import Runs
from cosmoflow.engine.threads import use_share
from cosmoflow.errors import IncompleteError

T = TypeVar("T")

FRUITLESS_DEATHS = 20
"""Deaths of workers, with no task finished between them, after which the pool gives up."""

DEATHS_OF_EACH = 3
"""The same, for each of the workers that were up at the same time: a cluster may take back many
nodes together, and more than once during a long task."""

_LOOK = 1.0
"""Seconds between two checks of how many actors the cluster has room for."""


class _Worker:
    """The actor: it keeps what ``make_worker`` returns for as long as the pool lives."""

    def __init__(self, name: str, make_worker: Callable[[], Any], needs: Resources) -> None:
        self._name = name
        telemetry.prepare()
        # Called before make_worker, because libraries read the environment when they are loaded,
        # and again after it, for the libraries that it has loaded.
        use_share(needs)
        keep_freed_buffers()
        self._lock = threading.Lock()
        # An actor whose constructor raises counts as dead and would be replaced for ever. So the
        # error is kept and raised by the first task.
        self._failure: Exception | None = None
        try:
            handler = make_worker()
            use_share(needs)
        except Exception as error:
            self._failure = error
            return
        self._handle: Callable[[Any], Any] = (
            PipelineThreads(handler, partial(use_share, needs))
            if isinstance(handler, Pipeline)
            else partial(self._one_by_one, handler)
        )

    def _one_by_one(self, handler: Callable[[Any], Any], task: Any) -> Any:
        with self._lock:
            return handler(task)

    def ready(self) -> None:
        """Return as soon as the actor is up."""

    def handle(self, task: Any) -> Any:
        if self._failure is not None:
            raise self._failure
        with telemetry.watched(self._name, self._name):
            return self._handle(task)


class ActorPool:
    """A pool of actors that work on tasks.

    Only actors that are up get tasks. An actor for which the cluster has no room yet delays nothing
    and joins later. If an actor dies, alone or with its node, its tasks go to the others, and a new
    actor is started.

    Parameters
    ----------
    make_worker : callable
        Called once in every actor; see :meth:`cosmoflow.engine.base.Engine.map`.
    needs : Resources
        Resources that Ray reserves for each actor.
    places : callable
        Returns how many actors the cluster has room for now.
    name : str
        Name of the work, for logs and metrics.
    patience : float
        Seconds to wait for an actor to come up while none is up.
    """

    def __init__(
        self,
        make_worker: Callable[[], Any],
        needs: Resources,
        places: Callable[[], int],
        *,
        name: str = "map",
        patience: float = 600.0,
    ) -> None:
        self._name = name
        self._make = ray.put(make_worker)
        self._needs = needs
        self._places = places
        self._patience = patience
        self._starting: dict[Any, Any] = {}
        self._running: dict[Any, tuple[Any, Any]] = {}
        self._actors: list[Any] = []
        self._fruitless = 0
        self._most = 0

    def run(
        self,
        tasks: Sequence[T],
        on_done: Callable[[T, Any], None],
        run_of: Callable[[T], Hashable] | None = None,
    ) -> None:
        """Work on all tasks. Every actor has a few at a time, so it never waits for the driver.

        Tasks of the same run go to one actor, one after the other, as far as others are not idle.

        Raises
        ------
        IncompleteError
            Actors die one after the other, or none comes up.
        """
        waiting = Runs(tasks, run_of)
        idle_since = looked = time.monotonic()
        self._grow(len(waiting))
        try:
            while waiting or self._running:
                if refs := [*self._running, *self._starting]:
                    ready, _ = ray.wait(refs, num_returns=1, timeout=_LOOK)
                    for ref in ready:
                        self._hear(ref, waiting, on_done)
                else:
                    # No node has room. ray.wait does not accept an empty list.
                    time.sleep(_LOOK)
                now = time.monotonic()
                if now - looked > _LOOK:
                    self._grow(len(waiting) + len(self._running))
                    looked = now
                if self._actors or not waiting:
                    idle_since = now
                elif now - idle_since > self._patience:
                    raise IncompleteError(
                        "no worker came up",
                        value=f"{len(self._starting)} asked for, none up for {self._patience:g} s",
                        limit=f"{self._needs.cpus} CPUs and {self._needs.gpus} GPUs on one node",
                        remedy="see `ray status`; then run again with --resume",
                    )
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from error
        finally:
            for actor in (*self._actors, *self._starting.values()):
                ray.kill(actor)

    def _grow(self, unfinished: int) -> None:
        """Start actors: as many as the cluster has room for, but no more than unfinished tasks."""
        missing = min(self._places(), unfinished) - len(self._actors) - len(self._starting)
        for _ in range(missing):
            self._start()

    def _start(self) -> None:
        # Ray restarts no actor: the pool replaces a dead one, because it knows its tasks.
        actor = (
            ray.remote(_Worker)
            .options(max_restarts=0, max_concurrency=STEPS, **placement(self._needs))
            .remote(self._name, self._make, self._needs)
        )
        self._starting[actor.ready.remote()] = actor

    def _hear(self, ref: Any, waiting: Runs[T], on_done: Callable[[T, Any], None]) -> None:
        """Handle a finished reference: an actor that has come up, a result, or a death."""
        actor, task = self._running.pop(ref, (self._starting.pop(ref, None), None))
        up = actor not in self._actors
        try:
            result = ray.get(ref)
        except RayActorError as error:
            self._bury(actor, [] if task is None else [task], waiting, error)
            return
        if up:
            self._actors.append(actor)
            self._most = max(self._most, len(self._actors))
        else:
            self._fruitless = 0
            on_done(task, result)
        self._feed(actor, waiting)

    def _feed(self, actor: Any, waiting: Runs[T]) -> None:
        """Give an actor enough tasks, but none that an idle actor could begin at once."""
        in_hand = sum(1 for busy, _ in self._running.values() if busy is actor)
        idle = len(self._actors) + len(self._starting)
        while waiting and in_hand < STEPS and (in_hand == 0 or len(waiting) >= idle):
            task = waiting.take(actor)
            self._running[actor.handle.remote(task)] = (actor, task)
            in_hand += 1

    def _bury(self, actor: Any, lost: Sequence[T], waiting: Runs[T], error: RayActorError) -> None:
        """Take back the tasks of a dead actor, start another one, and feed the others."""
        others = [ref for ref, (busy, _) in self._running.items() if busy is actor]
        waiting.give_back(actor, [*lost, *(self._running.pop(ref)[1] for ref in others)])
        if actor in self._actors:
            self._actors.remove(actor)
        # An actor that is only unreachable might go on writing.
        ray.kill(actor)
        self._fruitless += 1
        limit = max(FRUITLESS_DEATHS, DEATHS_OF_EACH * self._most)
        if self._fruitless > limit:
            raise IncompleteError(
                "workers keep dying",
                value=str(error).strip().splitlines()[0],
                limit=f"{limit} in a row, with no task finished between them",
                remedy="look at the workers' memory and logs, then run again with --resume",
            ) from error
        self._grow(len(waiting) + len(self._running))
        for other in self._actors:
            self._feed(other, waiting)
