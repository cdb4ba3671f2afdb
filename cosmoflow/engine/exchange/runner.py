"""The driver's loop: submits the tasks of a graph to Ray, a few more than there is room for.

The driver holds references to the tasks that are under way, and to one object for each family: its
function. Of a finished task it keeps the value and the node of the parcel.
"""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import ray
from ray.exceptions import RayError, RayTaskError

from cosmoflow.engine.base import Resources
from cosmoflow.engine.exchange.agenda import Agenda
from cosmoflow.engine.exchange.scratch import Scratch
from cosmoflow.engine.exchange.servers import (
    Directory,
    LostParcelsError,
    Servers,
    on_this_node,
    this_node,
)
from cosmoflow.engine.graph import Column, Family, Handout, Key, TaskGraph
from cosmoflow.engine.memory import return_freed_buffers
from cosmoflow.engine.nodes import count_places, placement, worker_nodes
from cosmoflow.engine.stopping import Stop
from cosmoflow.engine.telemetry import watched
from cosmoflow.engine.threads import use_share
from cosmoflow.errors import IncompleteError
from cosmoflow.units import format_bytes

RETRIES: Final = 5
"""How often a task is run again if its worker or node dies, or if its parcel is lost."""
AHEAD: Final = 2
"""Tasks under way for each that can run, so that no worker waits for the driver."""
_LOOK: Final = 2.0
"""Seconds between two looks at the nodes of a cluster."""


def _run_task(
    stop: Stop,
    key: Key,
    function: Callable[..., Any],
    needs: Resources,
    scratch: Scratch,
    hands_on: bool,
    parts: Sequence[tuple[int | None, bool]],
    *sources: Any,
) -> Any:
    """Run a task; return its value, or its node and its value if it hands on parts."""
    stop.check()
    use_share(needs)
    return_freed_buffers()
    scratch = on_this_node(scratch)
    with watched(key[0], str(key)):
        columns = [
            source if part is None else (source.stream if stream else source.read)(scratch, part)
            for source, (part, stream) in zip(sources, parts, strict=True)
        ]
        result = function(key[1], *columns)
        if not hands_on:
            return result
        handout = Handout.of(result)
        # The folder is deleted once the driver has given up, and nothing may be left in it.
        stop.check()
        scratch.write(key, handout.parts, handout.value)
        return this_node(), handout.value


class Runner:
    """One run of a graph on Ray.

    Parameters
    ----------
    graph : TaskGraph
        The graph.
    needs : Resources
        Resources of each task.
    scratch : Scratch
        The folder for parcels.
    size : int
        Projected bytes that tasks hand on.
    keep : bool
        Use the parcels that a killed run has left.
    servers : bool
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
        scratch: Scratch,
        size: int = 0,
        keep: bool = False,
        servers: bool = False,
        guard: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._graph, self._needs, self._keep, self._notify = graph, needs, keep, notify
        self._scratch, self._size = scratch, size
        self._servers = Servers(scratch, keep) if servers else None
        self._give_up: Callable[[], None] = lambda: None
        self._remote = ray.remote(max_retries=RETRIES)(guard(_run_task))
        self._stop = Stop()
        self._functions: dict[str, ray.ObjectRef] = {}
        self._directories: dict[str, ray.ObjectRef] = {}
        self._options: dict[bool, dict[str, Any]] = {}
        self._values: dict[Key, Any] = {}
        self._nodes: dict[Key, str] = {}
        self._running: dict[Key, ray.ObjectRef] = {}
        self._ended: queue.SimpleQueue[tuple[Key, Future[Any]]] = queue.SimpleQueue()
        self._losses: Counter[Key] = Counter()
        self._room, self._looked = 0, 0.0

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
                self._stop.set(self._running.values())
            if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        finally:
            self._give_up()

    def _begin(self) -> set[Key]:
        """Take the folders for parcels; return the tasks whose parcels are there already."""
        if not any(family.parts for family in self._graph.families.values()):
            return set()
        if self._servers is None:
            self._give_up = self._scratch.hold(keep=self._keep).delete
            found = {this_node(): self._scratch.find() if self._keep else {}}
        else:
            self._servers.start([node.name for node in worker_nodes()])
            self._give_up = self._servers.close
            served = self._servers.find()
            found = {name: values for name, (values, _) in served.items()}
            self._check_room(sum(free for _, free in served.values()), len(served))
            self._scratch = replace(self._scratch, node=this_node())
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
        self._room = max(count_places(self._needs, nodes), 1)
        self._options = {
            spread: placement(self._needs, nodes, spread=spread) for spread in (False, True)
        }
        if self._servers is None:
            return
        up = {node.name for node in nodes}
        for name in set(self._servers.actors) - up:
            self._servers.drop(name)
        if self._nodes or self._running:
            self._servers.start(sorted(up))
        if gone := {key: name for key, name in self._nodes.items() if name not in up}:
            self._lose(dict.fromkeys(gone, "its node has left"))
            self._agenda.lose(gone)

    def _lose(self, lost: dict[Key, str]) -> None:
        """Note that parcels are lost."""
        for key, reason in lost.items():
            self._nodes.pop(key, None)
            self._directories.pop(key[0], None)
            self._losses[key] += 1
            if self._losses[key] > RETRIES:
                raise IncompleteError(
                    "what a task hands on is lost again and again",
                    where="{} {}".format(*key),
                    value=reason,
                    limit=f"{RETRIES} times",
                    remedy="look at the disks of the nodes, then run again with --resume",
                )
        (name, number), reason = next(iter(lost.items()))
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        self._notify(f"what task {name} {number}{more} handed on is lost ({reason}): running again")

    def _submit_some(self) -> None:
        while len(self._running) < AHEAD * self._room and (key := self._agenda.next()) is not None:
            family = self._graph.families[key[0]]
            columns = family.reads(key[1])
            task = self._remote.options(name=f"{key}", **self._options[not columns])
            ref = task.remote(
                self._stop,
                key,
                self._function(family),
                self._needs,
                self._scratch,
                bool(family.parts),
                [(column.part, column.stream) for column in columns],
                *(self._source(column) for column in columns),
            )
            self._running[key] = ref
            ref.future().add_done_callback(lambda future, key=key: self._ended.put((key, future)))

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
        done = []
        with suppress(queue.Empty):
            # The timeout keeps the interpreter responsive to Ctrl-C.
            key, future = self._ended.get(timeout=1.0)
            while True:
                if self._hear(key, future):
                    done.append(key)
                key, future = self._ended.get_nowait()
        return done

    def _hear(self, key: Key, future: Future[Any]) -> bool:
        """Take the result of a task; return whether there is one."""
        del self._running[key]
        try:
            value = future.result()
        except Exception as error:
            cause = getattr(error, "cause", None) or error
            if not isinstance(cause, LostParcelsError):
                raise
            known = {other: text for other, text in cause.lost.items() if other in self._nodes}
            revived = self._agenda.again(key, known)
            if revived:
                self._lose({other: known[other] for other in revived})
            return False
        family = self._graph.families[key[0]]
        if family.parts:
            self._nodes[key], value = value
        self._values[key] = value
        unneeded = [other for other in self._agenda.finish(key) if other in self._nodes]
        nodes = [self._nodes.pop(other) for other in unneeded]
        for other in unneeded:
            self._directories.pop(other[0], None)
        if self._servers is None:
            self._scratch.remove(unneeded)
        else:
            self._servers.remove(unneeded, nodes)
        return True
