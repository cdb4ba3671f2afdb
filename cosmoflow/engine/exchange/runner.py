"""The driver's loop: gives the tasks of a graph to the nodes, a few more than they have room for.

The driver holds references to one or two objects for each family: its function, and where its
parcels are. Of a finished task it keeps the value and the node of the parcel.
"""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import ActorUnschedulableError, RayActorError, RayError, RayTaskError

from cosmoflow.engine.base import Resources
from cosmoflow.engine.exchange.agenda import Agenda
from cosmoflow.engine.exchange.bucket import BucketScratch, HeldObjects
from cosmoflow.engine.exchange.crews import (
    MOMENT,
    RETRIES,
    Crew,
    End,
    Order,
    RemoteCrew,
    Rooms,
)
from cosmoflow.engine.exchange.scratch import Held, Scratch
from cosmoflow.engine.exchange.servers import (
    Directory,
    LostParcelsError,
    Servers,
    this_node,
)
from cosmoflow.engine.exchange.teams import MOST_CREWS, Team, Teams
from cosmoflow.engine.exchange.work import Work
from cosmoflow.engine.graph import Column, Key, TaskGraph
from cosmoflow.engine.nodes import Node, nodes_for, worker_nodes
from cosmoflow.engine.stopping import PATIENCE, Stop
from cosmoflow.errors import IncompleteError
from cosmoflow.units import format_bytes

_LOOK: Final = 2.0
"""Seconds between two looks at the nodes of a cluster."""
_LOOKING: Final = 0.02
"""Largest share of the driver's time for finding the nodes."""


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
        self._where = {
            name: np.zeros(len(family.numbers), np.int32) for name, family in graph.families.items()
        }
        """Places of their servers in the roster: looked up for thousands of parcels at once."""
        self._teams = Teams()
        self._answered: dict[Team, None] = {}
        """Crews that have answered since they were last asked."""
        self._heard: queue.SimpleQueue[tuple[RemoteCrew, Future[list[End]]]] = queue.SimpleQueue()
        self._losses: Counter[Key] = Counter()
        self._next_look = 0.0

    def run(
        self,
        on_done: Callable[[Key, Any], None] | None,
        on_task: Callable[[Key], None] | None,
    ) -> dict[Key, Any]:
        """Run the graph; return the values of its outputs."""
        results: dict[Key, Any] = {}
        try:
            self._agenda = Agenda(self._graph, self._begin())
            for name, family in self._graph.families.items():
                self._functions[name] = ray.put(family.function)
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
                if time.monotonic() > self._next_look:
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
            for team in self._teams:
                team.crew.close()
            self._give_up()

    def _finish(self) -> None:
        """Wait a while for the tasks that run to end."""
        answers = [team.crew.finish() for team in self._teams if team.running]
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
                self._values[key] = value
                self._note_node(key, name)
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
        begun = time.monotonic()
        nodes = worker_nodes()
        found = time.monotonic()
        self._next_look = found + max(_LOOK, (found - begun) / _LOOKING)
        self._look_at(nodes)

    def _look_at(self, nodes: list[Node]) -> None:
        self._start_crews(nodes)
        if self._servers is None:
            return
        self._servers.clear()
        up = {node.name for node in nodes}
        for name in set(self._servers.actors) - up:
            self._servers.drop(name)
        if self._nodes or any(team.running for team in self._teams):
            self._servers.start(sorted(up))
        if gone := {key: name for key, name in self._nodes.items() if name not in up}:
            self._lose(dict.fromkeys(gone, "its node has left"))
            self._agenda.lose(gone)

    def _lose(self, lost: dict[Key, str]) -> None:
        """Note that parcels are lost."""
        if self._servers is not None:
            # What is to be deleted may be made again, on the same node.
            self._servers.clear()
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
        """Give each node on which tasks may run to a crew: one of its own, while they are few."""
        fitting = nodes_for(self._needs, nodes)
        if not self._cluster:
            if not self._teams:
                room = max(1, sum(node.places(self._needs) for node in fitting))
                here = Crew(self._work(), self._functions, self._needs)
                self._teams.add(Team(here, Rooms(0, {this_node(): room})))
            return
        for team in self._teams.keep_nodes({node.name for node in nodes}):
            self._dismiss(team, "its node has left")
        for node in fitting:
            room = node.places(self._needs)
            if self._teams.of_node(node.name) is not None:
                continue
            if len(self._teams) < MOST_CREWS:
                self._teams.add(self._team_on(node.name, Rooms(0, {node.name: room})))
            else:
                self._teams.add_node(node.name, room)

    def _team_on(self, node: str, rooms: Rooms) -> Team:
        crew = RemoteCrew(self._work(), self._functions, self._needs, node, rooms, self._on_ended)
        return Team(crew, rooms)

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
        """Send tasks to the crews, and ask for those that have ended."""
        asked, self._answered = self._answered, {}
        for team, key in self._teams.hand_out(self._agenda):
            team.waiting.append(self._order(key))
            asked[team] = None
        for team in asked:
            if team.running:
                self._send(team)

    def _send(self, team: Team) -> None:
        """Send a crew its tasks, and ask for those that have ended."""
        orders, team.waiting = team.waiting, []
        if self._cluster:
            enough = self._teams.enough(team, self._agenda)
            team.crew.work(orders, enough, MOMENT, team.take_news())
        elif orders:
            team.crew.submit(orders)

    def _order(self, key: Key) -> Order:
        family = self._graph.families[key[0]]
        columns = family.reads(key[1])
        return Order(
            key,
            bool(family.parts),
            [(column.part, column.stream) for column in columns],
            [self._source(column) for column in columns],
        )

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

    def _directory(self, name: str, numbers: Sequence[int] | NDArray[np.integer]) -> Directory:
        if self._servers is None:
            return Directory(name, numbers)
        where = self._where[name][self._graph.families[name].places(numbers)]
        return Directory(name, numbers, where, self._servers.roster)

    def _wait(self) -> list[Key]:
        """Wait for tasks to end; return those that have succeeded."""
        # The timeouts keep the interpreter responsive to Ctrl-C.
        if not self._cluster:
            (team,) = self._teams
            return self._take(team, team.crew.ended(1.0))
        try:
            heard = [self._heard.get(timeout=1.0)]
        except queue.Empty:
            return []
        while not self._heard.empty():
            heard.append(self._heard.get())
        return [key for crew, future in heard for key in self._hear(crew, future)]

    def _hear(self, crew: RemoteCrew, future: Future[list[End]]) -> list[Key]:
        """Take the answer of a crew; return the tasks that have succeeded."""
        team = self._teams.of_node(crew.node)
        if team is None or team.crew is not crew:
            return []
        try:
            ends = future.result()
        except (RayActorError, ActorUnschedulableError) as error:
            self._dismiss(team, str(error).splitlines()[0])
            return []
        return self._take(team, ends)

    def _dismiss(self, team: Team, reason: str) -> None:
        """Put back the tasks of a crew that has died, alone or with its node."""
        self._teams.remove(team)
        self._answered.pop(team, None)
        team.crew.close()
        for key in team.running:
            self._put_back(key, reason)

    def _put_back(self, key: Key, reason: str) -> None:
        """Have a task run on another node."""
        self._count_loss(key, reason)
        self._agenda.again(key)
        self._next_look = 0.0

    def _take(self, team: Team, ends: Iterable[End]) -> list[Key]:
        """Take the results of some tasks; return those that have succeeded."""
        done = []
        self._answered[team] = None
        for end in ends:
            self._teams.note_ended(team, end.key)
            if end.left:
                self._put_back(end.key, "its node has left")
            elif end.error is None:
                self._store(end.key, end.value)
                done.append(end.key)
            elif isinstance(end.error, LostParcelsError):
                lost = {key: text for key, text in end.error.lost.items() if key in self._nodes}
                if revived := self._agenda.again(end.key, lost):
                    self._lose({key: lost[key] for key in revived})
            else:
                raise end.error from (RuntimeError(end.traceback) if end.traceback else None)
        return done

    def _note_node(self, key: Key, node: str) -> None:
        """Note which node has the parcel of a task."""
        self._nodes[key] = node
        if self._servers is not None:
            place = self._graph.families[key[0]].place(key[1])
            self._where[key[0]][place] = self._servers.place(node)

    def _store(self, key: Key, value: Any) -> None:
        """Keep the result of a task; delete the parcels that no other task needs."""
        if self._graph.families[key[0]].parts:
            node, value = value
            self._note_node(key, node)
        self._values[key] = value
        unneeded = [other for other in self._agenda.finish(key) if other in self._nodes]
        nodes = [self._nodes.pop(other) for other in unneeded]
        for other in unneeded:
            self._directories.pop(other[0], None)
        if self._servers is not None:
            self._servers.remove(unneeded, nodes)
        elif self._held is not None:
            self._held.remove(unneeded)
