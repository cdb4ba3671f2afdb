"""The driver's loop: gives the tasks of a graph to the nodes, a few more than they have room for.

The driver holds references to one or two objects for each family: its function, and where its
parcels are. Of a finished task it keeps the value and the node of the parcel.
"""

from __future__ import annotations

import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from cosmoflow.engine.base import Resources
from cosmoflow.engine.exchange.agenda import Agenda
from cosmoflow.engine.exchange.bucket import BucketScratch, HeldObjects
from cosmoflow.engine.exchange.crews import RETRIES, Crew, End, Order, RemoteCrew
from cosmoflow.engine.exchange.scratch import Held, Scratch
from cosmoflow.engine.exchange.servers import (
    Directory,
    LostParcelsError,
    Servers,
    this_node,
)
from cosmoflow.engine.exchange.work import Work
from cosmoflow.engine.graph import Column, Family, Key, TaskGraph
from cosmoflow.engine.nodes import Node, nodes_for, worker_nodes
from cosmoflow.engine.stopping import PATIENCE, Stop
from cosmoflow.errors import IncompleteError
from cosmoflow.units import format_bytes

AHEAD: Final = 4
"""A node with room for some tasks has a quarter as many more, at least one, so that no worker waits
for the driver. More would wait there while other nodes are idle."""
_LOOK: Final = 2.0
"""Seconds between two looks at the nodes of a cluster."""


@dataclass(slots=True)
class _Place:
    """A node and its tasks.

    Parameters
    ----------
    crew : Crew or RemoteCrew
        Submits the tasks.
    room : int
        Tasks that run side by side.
    running : set of Key
        Tasks that the crew has.
    waiting : list of Order
        Tasks that the crew gets with the next message.
    """

    crew: Any
    room: int
    running: set[Key] = field(default_factory=set)
    waiting: list[Order] = field(default_factory=list)


class Runner:
    """One run of a graph on Ray.

    Parameters
    ----------
    graph : TaskGraph
        The graph.
    needs : Resources
        Resources of each task.
    scratch : Scratch or BucketScratch
        The folder for parcels, or their place in a bucket.
    size : int
        Projected bytes that tasks hand on.
    keep : bool
        Use the parcels that a killed run has left.
    cluster : bool
        Whether there are other nodes, or may be.
    guard : callable
        Wraps what workers run, to check first whether they have the driver's versions.
    notify : callable
        Called with messages for the user.
    """

    def __init__(
        self,
        graph: TaskGraph,
        *,
        needs: Resources,
        scratch: Scratch | BucketScratch,
        size: int = 0,
        keep: bool = False,
        cluster: bool = False,
        guard: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._graph, self._needs, self._keep, self._notify = graph, needs, keep, notify
        self._scratch, self._size, self._guard = scratch, size, guard
        self._cluster = cluster
        self._hands_on = any(family.parts for family in graph.families.values())
        self._servers: Servers | None = None
        # What is in a bucket needs no server, and is not lost with a node.
        if cluster and self._hands_on and isinstance(scratch, Scratch):
            self._servers = Servers(scratch, keep)
        self._held: Held | HeldObjects | None = None
        self._give_up: Callable[[], None] = lambda: None
        self._stop = Stop()
        self._functions: dict[str, ray.ObjectRef] = {}
        self._directories: dict[str, ray.ObjectRef] = {}
        self._values: dict[Key, Any] = {}
        self._nodes: dict[Key, str] = {}
        """Nodes of parcels."""
        self._places: dict[str, _Place] = {}
        self._heard: queue.SimpleQueue[tuple[RemoteCrew, Future[list[End]]]] = queue.SimpleQueue()
        self._losses: Counter[Key] = Counter()
        self._looked = 0.0

    def run(
        self,
        on_done: Callable[[Key, Any], None] | None,
        on_task: Callable[[Key], None] | None,
    ) -> dict[Key, Any]:
        """Run the graph; return the values of its outputs."""
        results: dict[Key, Any] = {}
        try:
            self._agenda = Agenda(self._graph, self._begin())
            self._look()
            while not self._agenda.finished:
                self._submit_some()
                for key in self._wait():
                    if self._graph.families[key[0]].output:
                        results[key] = self._values[key]
                        if on_done is not None:
                            on_done(key, results[key])
                    if on_task is not None:
                        on_task(key)
                if time.monotonic() - self._looked > _LOOK:
                    self._look()
            return results
        except BaseException as error:
            with suppress(RayError):
                self._stop.set()
                self._finish()
            if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        finally:
            for place in self._places.values():
                place.crew.close()
            self._give_up()

    def _finish(self) -> None:
        """Wait a while for the tasks that run to end."""
        answers = [place.crew.finish() for place in self._places.values() if place.running]
        if refs := [answer for answer in answers if answer is not None]:
            ray.wait(refs, num_returns=len(refs), timeout=PATIENCE, fetch_local=False)

    def _begin(self) -> set[Key]:
        """Take the folders for parcels; return the tasks whose parcels are there already."""
        if not self._hands_on:
            return set()
        if self._servers is None:
            self._held = self._scratch.hold(keep=self._keep)
            self._give_up = self._held.delete
            found = {this_node(): self._scratch.find() if self._keep else {}}
        else:
            self._servers.start([node.name for node in worker_nodes()])
            self._give_up = self._servers.close
            served = self._servers.find()
            found = {name: values for name, (values, _) in served.items()}
            self._check_room(sum(free for _, free in served.values()), len(served))
            self._scratch = self._servers.scratch
        for name, values in found.items():
            for key, value in values.items():
                self._values[key], self._nodes[key] = value, name
        if self._nodes:
            self._notify(f"going on with what {len(self._nodes)} tasks of a killed run handed on")
        return set(self._nodes)

    def _check_room(self, free: int, nodes: int) -> None:
        """Warn if the disks of the nodes are too small; nodes that join bring their own."""
        if free < self._size:
            self._notify(
                f"tasks will hand on {format_bytes(self._size)}, and the disks of {nodes} nodes "
                f"have {format_bytes(free)} free: the run needs more nodes, or larger disks "
                "(COSMOFLOW_SCRATCH on the nodes)"
            )

    def _look(self) -> None:
        """Look how much room there is, and which nodes have joined or are lost."""
        self._looked = time.monotonic()
        nodes = worker_nodes()
        self._start_crews(nodes)
        if self._servers is None:
            return
        up = {node.name for node in nodes}
        for name in set(self._servers.actors) - up:
            self._servers.drop(name)
        if self._nodes or any(place.running for place in self._places.values()):
            self._servers.start(sorted(up))
        if gone := {key: name for key, name in self._nodes.items() if name not in up}:
            self._lose(dict.fromkeys(gone, "its node has left"))
            self._agenda.lose(gone)

    def _lose(self, lost: dict[Key, str]) -> None:
        """Note that parcels are lost."""
        for key, reason in lost.items():
            self._nodes.pop(key, None)
            self._directories.pop(key[0], None)
            self._count_loss(key, reason)
        (name, number), reason = next(iter(lost.items()))
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        self._notify(f"what task {name} {number}{more} handed on is lost ({reason}): running again")

    def _count_loss(self, key: Key, reason: str) -> None:
        self._losses[key] += 1
        if self._losses[key] > RETRIES:
            raise IncompleteError(
                "a task, or what it hands on, is lost again and again",
                where="{} {}".format(*key),
                value=reason,
                limit=f"{RETRIES} times",
                remedy="look at the memory and the disks of the nodes, or at what else deletes "
                "objects in the bucket for scratch; then run again with --resume",
            )

    def _start_crews(self, nodes: list[Node]) -> None:
        """Start a crew on each node that has none and on which tasks may run."""
        fitting = nodes_for(self._needs, nodes)
        if not self._cluster:
            if not self._places:
                room = max(1, sum(node.places(self._needs) for node in fitting))
                self._places[this_node()] = _Place(Crew(self._work(), self._needs), room)
            return
        for node in fitting:
            if node.name not in self._places:
                room = node.places(self._needs)
                # The crew answers when half of the tasks that it has ahead have begun.
                enough = max(1, room // AHEAD // 2)
                crew = RemoteCrew(self._work(), self._needs, node.name, enough, self._on_ended)
                self._places[node.name] = _Place(crew, room)

    def _work(self) -> Callable[..., Any]:
        """Return the function that workers run."""
        run = self._guard(Work(self._stop, self._needs, self._scratch).run)

        def run_task(*order: Any) -> Any:
            # Ray takes functions, and no methods.
            return run(*order)

        return run_task

    def _on_ended(self, crew: RemoteCrew, future: Future[list[End]]) -> None:
        self._heard.put((crew, future))

    def _submit_some(self) -> None:
        """Give tasks to the nodes in turn: first to those that have room, then some more to all."""
        for more in (0, 1):
            rooms = {
                name: place.room + more * max(1, place.room // AHEAD) - len(place.running)
                for name, place in self._places.items()
            }
            turns = deque(name for name, room in rooms.items() if room > 0)
            while turns and (key := self._agenda.next()) is not None:
                name = turns.popleft()
                self._places[name].running.add(key)
                self._places[name].waiting.append(self._order(key))
                rooms[name] -= 1
                if rooms[name]:
                    turns.append(name)
        for place in self._places.values():
            if place.waiting:
                place.crew.submit(place.waiting)
                place.waiting = []

    def _order(self, key: Key) -> Order:
        family = self._graph.families[key[0]]
        columns = family.reads(key[1])
        return Order(
            key,
            self._function(family),
            bool(family.parts),
            [(column.part, column.stream) for column in columns],
            [self._source(column) for column in columns],
        )

    def _function(self, family: Family) -> ray.ObjectRef:
        if family.name not in self._functions:
            self._functions[family.name] = ray.put(family.function)
        return self._functions[family.name]

    def _source(self, column: Column) -> Any:
        """Return the values of other tasks, or where their parcels are."""
        numbers, name = self._graph.numbers_of(column), column.family
        if column.part is None:
            return [self._values[name, number] for number in numbers]
        if column.numbers is not None:
            return self._directory(name, numbers)
        if name not in self._directories:
            self._directories[name] = ray.put(self._directory(name, numbers))
        return self._directories[name]

    def _directory(self, name: str, numbers: Sequence[int]) -> Directory:
        nodes = [self._nodes[name, number] for number in numbers]
        if self._servers is None:
            return Directory(name, numbers, nodes, {})
        # A node may have joined, and done a task, since the last look.
        self._servers.start(sorted(set(nodes)))
        return Directory(name, numbers, nodes, self._servers.actors)

    def _wait(self) -> list[Key]:
        """Wait for tasks to end; return those that have succeeded."""
        # The timeouts keep the interpreter responsive to Ctrl-C.
        if not self._cluster:
            (place,) = self._places.values()
            return self._take(place, place.crew.ended(1.0))
        done = []
        with suppress(queue.Empty):
            crew, future = self._heard.get(timeout=1.0)
            while True:
                done += self._hear(crew, future)
                crew, future = self._heard.get_nowait()
        return done

    def _hear(self, crew: RemoteCrew, future: Future[list[End]]) -> list[Key]:
        """Take the answer of a crew; return the tasks that have succeeded."""
        place = self._places.get(crew.node)
        if place is None or place.crew is not crew:
            return []
        try:
            ends = future.result()
        except RayActorError as error:
            self._dismiss(crew.node, str(error).splitlines()[0])
            return []
        done = self._take(place, ends)
        if place.running:
            crew.listen()
        return done

    def _dismiss(self, name: str, reason: str) -> None:
        """Put back the tasks of a crew that has died, alone or with its node."""
        place = self._places.pop(name)
        place.crew.close()
        for key in place.running:
            self._count_loss(key, reason)
            self._agenda.again(key)
        self._looked = 0.0

    def _take(self, place: _Place, ends: Iterable[End]) -> list[Key]:
        """Take the results of some tasks; return those that have succeeded."""
        done = []
        for end in ends:
            place.running.discard(end.key)
            if end.error is None:
                self._store(end.key, end.value)
                done.append(end.key)
            elif isinstance(end.error, LostParcelsError):
                lost = {key: text for key, text in end.error.lost.items() if key in self._nodes}
                if revived := self._agenda.again(end.key, lost):
                    self._lose({key: lost[key] for key in revived})
            else:
                raise end.error from (RuntimeError(end.traceback) if end.traceback else None)
        return done

    def _store(self, key: Key, value: Any) -> None:
        """Keep the result of a task; delete the parcels that no other task needs."""
        if self._graph.families[key[0]].parts:
            self._nodes[key], value = value
        self._values[key] = value
        unneeded = [other for other in self._agenda.finish(key) if other in self._nodes]
        nodes = [self._nodes.pop(other) for other in unneeded]
        for other in unneeded:
            self._directories.pop(other[0], None)
        if self._servers is not None:
            self._servers.remove(unneeded, nodes)
        elif self._held is not None:
            self._held.remove(unneeded)
