"""A pool of Ray actors that grows and shrinks, and survives the death of any actor."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from cosmoflow.engine import telemetry
from cosmoflow.engine.base import Resources
from cosmoflow.engine.buffers import keep_freed_buffers
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


@dataclass(slots=True, eq=False)
class _Member:
    """An actor of a pool, and the tasks that it has in hand, by the numbers of their calls."""

    actor: Any
    up: bool = False
    tasks: dict[int, Any] = field(default_factory=dict)


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
        self._members: dict[_Member, None] = {}
        self._up = self._in_hand = 0
        """Actors that are up, and tasks that they have in hand."""
        self._heard: queue.SimpleQueue[tuple[_Member, int, Future[Any]]] = queue.SimpleQueue()
        """Calls that have ended, as Ray tells of each. With a thousand actors, a look at all calls
        whenever one ends would take the driver most of its time."""
        self._calls = itertools.count()
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
            while waiting or self._in_hand:
                if (ended := self._next()) is not None:
                    self._hear(*ended, waiting, on_done)
                now = time.monotonic()
                if now - looked > _LOOK:
                    self._grow(len(waiting) + self._in_hand)
                    looked = now
                if self._up or not waiting:
                    idle_since = now
                elif now - idle_since > self._patience:
                    raise IncompleteError(
                        "no worker came up",
                        value=f"{len(self._members)} asked for, none up for {self._patience:g} s",
                        limit=f"{self._needs.cpus} CPUs and {self._needs.gpus} GPUs on one node",
                        remedy="see `ray status`; then run again with --resume",
                    )
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from error
        finally:
            for member in self._members:
                ray.kill(member.actor)

    def _grow(self, unfinished: int) -> None:
        """Start actors: as many as the cluster has room for, but no more than unfinished tasks."""
        for _ in range(min(self._places(), unfinished) - len(self._members)):
            self._start()

    def _start(self) -> None:
        # Ray restarts no actor: the pool replaces a dead one, because it knows its tasks.
        actor = (
            ray.remote(_Worker)
            .options(max_restarts=0, max_concurrency=STEPS, **placement(self._needs))
            .remote(self._name, self._make, self._needs)
        )
        member = _Member(actor)
        self._members[member] = None
        self._listen(member, next(self._calls), actor.ready.remote())

    def _next(self) -> tuple[_Member, int, Future[Any]] | None:
        """Return a call that has ended, if one ends soon."""
        with suppress(queue.Empty):
            return self._heard.get(timeout=_LOOK)
        return None

    def _listen(self, member: _Member, call: int, answer: ray.ObjectRef) -> None:
        """Hear of the end of a call of an actor."""
        answer.future().add_done_callback(lambda future: self._heard.put((member, call, future)))

    def _hear(
        self,
        member: _Member,
        call: int,
        future: Future[Any],
        waiting: Runs[T],
        on_done: Callable[[T, Any], None],
    ) -> None:
        """Handle the end of a call: an actor has come up, has done a task, or has died."""
        if member not in self._members:
            # It has died, and others have its tasks.
            return
        try:
            result = future.result()
        except RayActorError as error:
            self._bury(member, waiting, error)
            return
        if not member.up:
            member.up = True
            self._up += 1
            self._most = max(self._most, self._up)
        else:
            self._fruitless = 0
            self._in_hand -= 1
            on_done(member.tasks.pop(call), result)
        self._feed(member, waiting)

    def _feed(self, member: _Member, waiting: Runs[T]) -> None:
        """Give an actor enough tasks, but none that an idle actor could begin at once."""
        while waiting and len(member.tasks) < STEPS:
            if member.tasks and len(waiting) < len(self._members):
                return
            call, task = next(self._calls), waiting.take(member)
            member.tasks[call] = task
            self._in_hand += 1
            self._listen(member, call, member.actor.handle.remote(task))

    def _bury(self, member: _Member, waiting: Runs[T], error: RayActorError) -> None:
        """Take back the tasks of a dead actor, start another one, and feed the others."""
        del self._members[member]
        self._up -= member.up
        self._in_hand -= len(member.tasks)
        waiting.give_back(member, list(member.tasks.values()))
        # An actor that is only unreachable might go on writing.
        ray.kill(member.actor)
        self._fruitless += 1
        limit = max(FRUITLESS_DEATHS, DEATHS_OF_EACH * self._most)
        if self._fruitless > limit:
            raise IncompleteError(
                "workers keep dying",
                value=str(error).strip().splitlines()[0],
                limit=f"{limit} in a row, with no task finished between them",
                remedy="look at the workers' memory and logs, then run again with --resume",
            ) from error
        self._grow(len(waiting) + self._in_hand)
        for other in self._members:
            if other.up:
                self._feed(other, waiting)
