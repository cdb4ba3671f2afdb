"""A cluster in a model: nodes, network, disks, an object store and a driver, event by event.

Every resource is a queue that serves one request after the other. Tasks are dispatched by the
driver in their order, fetch what they need, hold a place of their node while they read, compute and
write, and hand on parts. The driver hears of several ends at once, in an answer of the crew of
their node: when enough of its tasks have ended, or all, or a moment after the first. How many are
enough, and how many crews there are, are rules of the engine. Nothing is random, so the same
cluster always takes the same time.

Transfers between nodes are stored and forwarded whole, a task's inputs at a time: its node's
interface receives them one task after the other. All tasks of a pass send to all of the next one,
so senders are loaded alike and the total time of a pass is that of a fair share; only when a single
task gets its inputs differs. Interfaces work both ways at once.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cosmoflow.engine.exchange.teams import MOST_AHEAD, MOST_CREWS, enough_ended

Handler = Callable[[float, int, int, int], None]
"""Takes the time, and the numbers of a pass, of a task of it, and of a node."""


@dataclass(frozen=True, slots=True)
class Node:
    """What a node has.

    Parameters
    ----------
    places : int
        Tasks at a time.
    speed : float
        Core-seconds that a place does in a second when all are busy.
    network : float
        Bytes a second, each way.
    disk : float
        Bytes a second that are spilled, or read back.
    memory : float
        Bytes of its object store.
    """

    places: int
    speed: float
    network: float
    disk: float
    memory: float


@dataclass(frozen=True, slots=True)
class Rates:
    """What nodes share.

    Parameters
    ----------
    task : float
        Seconds of the driver for a task.
    answer, next_answer : float
        Seconds of the driver for an answer of a crew, whatever it is about: if the driver waits for
        it, and if it comes while the driver is at work.
    moment : float
        Seconds that a crew waits at most after the first end.
    submitted : float
        Seconds of a crew for a task.
    puts, gets : float
        Requests a second that the store of objects takes on a prefix.
    connection : float
        Bytes a second that a task reads from it, or writes to it, over all of its connections.
    """

    task: float
    puts: float
    gets: float
    connection: float
    answer: float = 0.0
    next_answer: float = 0.0
    moment: float = 0.0
    submitted: float = 0.0


@dataclass(frozen=True, slots=True)
class Pass:
    """Equal tasks, of which every one waits for a range of those of the pass before.

    Parameters
    ----------
    name : str
        For people.
    tasks : int
        How many.
    core_seconds : float
        Of each.
    read, written : float
        Bytes of each from and to the store of objects.
    gets, puts : float
        Requests of each.
    prefixes : int
        That they go to.
    fetched, parts_in : float
        Bytes that each is handed, and in how many parts.
    handed, parts_out : float
        Bytes that each hands on, and in how many parts.
    waits : tuple of tuple of range
        Of equal groups of its tasks, in their order: which tasks of the pass before they wait for.
        One group where all wait for all; none where nothing is waited for.
    alone : bool
        Whether the driver hears of each end by itself: of those of a pool of actors.
    """

    name: str
    tasks: int
    core_seconds: float
    read: float = 0.0
    written: float = 0.0
    gets: float = 0.0
    puts: float = 0.0
    prefixes: int = 1
    fetched: float = 0.0
    parts_in: float = 0.0
    handed: float = 0.0
    parts_out: float = 0.0
    waits: tuple[tuple[range, ...], ...] = ()
    alone: bool = False


@dataclass(slots=True)
class Queue:
    """A resource that serves requests in the order in which they come.

    Parameters
    ----------
    rate : float
        What it serves in a second.
    """

    rate: float
    free: float = 0.0
    busy: float = 0.0

    def serve(self, now: float, amount: float) -> float:
        """Return when a request that comes now has been served."""
        if amount <= 0.0:
            return now
        seconds = amount / self.rate
        self.free = max(now, self.free) + seconds
        self.busy += seconds
        return self.free


@dataclass(slots=True)
class Outcome:
    """How long a stage took, and what share of that each kind of resource was at work."""

    seconds: float
    busy: dict[str, float]
    spilled: float

    @property
    def limit(self) -> str:
        """The busiest kind; where none is busy half of the time, that there are too few tasks."""
        busiest = max(self.busy, key=lambda name: self.busy[name])
        return busiest if self.busy[busiest] > 0.5 else "too few tasks"


@dataclass(slots=True)
class _Machine:
    """A node at work."""

    inbound: Queue
    outbound: Queue
    disk: Queue
    free: int
    computing: float = 0.0
    ready: deque[tuple[int, int]] = field(default_factory=deque)


@dataclass(slots=True)
class _Crew:
    """What submits the tasks of a node, or of some, and answers about them."""

    hands: Queue = field(default_factory=lambda: Queue(1.0))
    given: int = 0
    answers: int = 0
    ended: list[tuple[int, int]] = field(default_factory=list)


class Simulation:
    """A stage on a cluster.

    Parameters
    ----------
    passes : sequence of Pass
        Of the stage.
    node : Node
        Of all nodes.
    nodes : int
        How many.
    rates : Rates
        Of the driver and of the store of objects.
    """

    def __init__(self, passes: Sequence[Pass], node: Node, nodes: int, rates: Rates) -> None:
        self._passes, self._node, self._nodes, self._rates = list(passes), node, nodes, rates
        self._machines = [
            _Machine(Queue(node.network), Queue(node.network), Queue(node.disk), node.places)
            for _ in range(nodes)
        ]
        self._crews = [_Crew() for _ in range(min(nodes, MOST_CREWS))]
        self._driver = Queue(1.0)
        self._requests = [Queue(1.0) for _ in passes]
        self._events: list[tuple[float, int, Handler, int, int, int]] = []
        self._count = 0
        self._held = self._spilled = self._spilled_in_all = 0.0
        self._dispatched: list[set[int]] = [set() for _ in passes]
        self._missing, self._waiters = self._find_waiters()
        self._released = [[False] * len(one.waits) for one in passes]
        self._next_node = 0
        self._unbegun = 0
        """Tasks that can run and have not begun."""
        self._last = 0.0
        """When the driver last heard of an end."""

    def run(self) -> Outcome:
        """Run all passes."""
        self._push(0.0, self._on_submitting, 0, 0, -1)
        while self._events:
            now, _, handle, number, task, place = heapq.heappop(self._events)
            handle(now, number, task, place)
        seconds = max(self._last, self._driver.free)
        return Outcome(seconds, self._shares(seconds), self._spilled_in_all)

    def _push(self, when: float, handle: Handler, number: int, task: int, place: int) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, handle, number, task, place))

    def _on_submitting(self, now: float, number: int, task: int, place: int) -> None:
        """Have the driver hand in a task, and the next one when it has: it also hears of ends."""
        one = self._passes[number]
        done = self._driver.serve(now, self._rates.task)
        self._push(done, self._on_dispatched, number, task, -1)
        if task + 1 < one.tasks:
            self._push(done, self._on_submitting, number, task + 1, -1)
        elif number + 1 < len(self._passes):
            self._push(done, self._on_submitting, number + 1, 0, -1)

    def _find_waiters(self) -> tuple[list[list[int]], list[dict[int, list[int]]]]:
        """Return what each group of each pass still waits for, and which groups a task is for."""
        missing: list[list[int]] = []
        waiters: list[dict[int, list[int]]] = [{} for _ in self._passes]
        for number, one in enumerate(self._passes):
            missing.append([sum(map(len, ranges)) for ranges in one.waits])
            if len(one.waits) == 1:
                # All wait for all: that takes a number, not a table.
                continue
            for group, ranges in enumerate(one.waits):
                for some in ranges:
                    for task in some:
                        waiters[number - 1].setdefault(task, []).append(group)
        return missing, waiters

    def _group(self, number: int, task: int) -> int:
        """Return the group that a task waits in."""
        one = self._passes[number]
        return task * len(one.waits) // one.tasks

    def _on_dispatched(self, now: float, number: int, task: int, place: int) -> None:
        self._dispatched[number].add(task)
        one = self._passes[number]
        if not one.waits or self._released[number][self._group(number, task)]:
            self._place(now, number, task)

    def _place(self, now: float, number: int, task: int) -> None:
        """Choose a node in turn, and have it fetch what the task is handed."""
        self._dispatched[number].discard(task)
        place = self._next_node
        self._next_node = (place + 1) % self._nodes
        one, machine = self._passes[number], self._machines[place]
        crew = self._crew(place)
        crew.given += 1
        self._unbegun += 1
        # The driver itself sends tasks to actors.
        submitted = now if one.alone else crew.hands.serve(now, self._rates.submitted)
        remote = one.fetched * (1.0 - 1.0 / self._nodes)
        share = self._spilled / self._held if self._held > 0.0 else 0.0
        restored = machine.disk.serve(submitted, one.fetched * share)
        arrived = machine.inbound.serve(restored, remote)
        # Senders are loaded alike: this node stands for all of them.
        machine.outbound.serve(restored, remote)
        self._held = max(0.0, self._held - one.fetched)
        self._spilled = max(0.0, self._spilled - one.fetched * share)
        self._push(arrived, self._on_fetched, number, task, place)

    def _on_fetched(self, now: float, number: int, task: int, place: int) -> None:
        self._machines[place].ready.append((number, task))
        self._begin(now, place)

    def _begin(self, now: float, place: int) -> None:
        """Give places that are free to tasks that have what they need."""
        machine = self._machines[place]
        while machine.free and machine.ready:
            machine.free -= 1
            self._unbegun -= 1
            number, task = machine.ready.popleft()
            one = self._passes[number]
            requests = one.gets / self._rates.gets / one.prefixes
            asked = self._requests[number].serve(now, requests)
            arrived = machine.inbound.serve(asked, one.read)
            alone = now + one.read / self._rates.connection
            self._push(max(arrived, alone), self._on_read, number, task, place)

    def _on_read(self, now: float, number: int, task: int, place: int) -> None:
        seconds = self._passes[number].core_seconds / self._node.speed
        self._machines[place].computing += seconds
        self._push(now + seconds, self._on_computed, number, task, place)

    def _on_computed(self, now: float, number: int, task: int, place: int) -> None:
        one, machine = self._passes[number], self._machines[place]
        self._held += one.handed
        over = self._held - self._spilled - self._nodes * self._node.memory
        spilling = min(max(over, 0.0), one.handed)
        self._spilled += spilling
        self._spilled_in_all += spilling
        kept = machine.disk.serve(now, spilling)
        requests = one.puts / self._rates.puts / one.prefixes
        asked = self._requests[number].serve(now, requests)
        sent = machine.outbound.serve(asked, one.written)
        alone = now + one.written / self._rates.connection
        self._push(max(kept, sent, alone), self._on_ended, number, task, place)

    def _crew(self, place: int) -> _Crew:
        return self._crews[place % len(self._crews)]

    def _on_ended(self, now: float, number: int, task: int, place: int) -> None:
        self._machines[place].free += 1
        crew = self._crew(place)
        crew.given -= 1
        crew.ended.append((number, task))
        if not crew.given or len(crew.ended) >= self._enough(number, crew):
            self._on_answer(now, crew.answers, -1, place)
        elif len(crew.ended) == 1:
            self._push(now + self._rates.moment, self._on_answer, crew.answers, -1, place)
        self._begin(now, place)

    def _enough(self, number: int, crew: _Crew) -> int:
        """Return how many tasks an answer is about that comes after the end of one of a pass."""
        if self._passes[number].alone:
            return 1
        room = self._node.places * self._nodes // len(self._crews)
        # Of the tasks that have not begun a crew has some ahead: as many as the engine would give
        # it (`tasks_ahead`) of a share that is the rest.
        unbegun = self._unbegun / len(self._crews)
        ahead = min(max(room, MOST_AHEAD), unbegun / 3, max(0.0, unbegun - room) / 2)
        return enough_ended(room, unbegun - ahead, crew.given + len(crew.ended))

    def _on_answer(self, now: float, number: int, task: int, place: int) -> None:
        """Have the driver hear of what has ended, unless that was in an earlier answer.

        Here the number is that of the answer.
        """
        crew = self._crew(place)
        if number != crew.answers:
            return
        ended, crew.ended = crew.ended, []
        crew.answers += 1
        waited_for = now >= self._driver.free
        answer = self._rates.answer if waited_for else self._rates.next_answer
        heard = self._driver.serve(now, answer)
        for before, one in ended:
            self._push(heard, self._on_heard, before, one, place)

    def _on_heard(self, now: float, number: int, task: int, place: int) -> None:
        """Release the groups that waited for nothing but a task."""
        self._last = now
        following = number + 1
        if following < len(self._passes) and self._passes[following].waits:
            groups = self._waiters[number].get(task, ())
            if len(self._passes[following].waits) == 1:
                groups = (0,)
            for group in groups:
                self._missing[following][group] -= 1
                if self._missing[following][group] == 0:
                    self._push(now, self._on_released, following, group, -1)

    def _on_released(self, now: float, number: int, group: int, place: int) -> None:
        """Place all tasks of a group that have been dispatched."""
        one = self._passes[number]
        self._released[number][group] = True
        groups = len(one.waits)
        first, last = -(-group * one.tasks // groups), -(-(group + 1) * one.tasks // groups)
        for task in range(first, last):
            if task in self._dispatched[number]:
                self._place(now, number, task)

    def _shares(self, seconds: float) -> dict[str, float]:
        """Return the share of the time that each kind of resource was at work."""
        count, span = self._nodes, max(seconds, 1e-9)
        places = self._node.places

        def mean(total: float) -> float:
            return total / count / span

        return {
            "cores": mean(sum(one.computing for one in self._machines)) / places,
            "network": max(
                mean(sum(one.inbound.busy for one in self._machines)),
                mean(sum(one.outbound.busy for one in self._machines)),
            ),
            "disk": mean(sum(one.disk.busy for one in self._machines)),
            "object store": sum(one.busy for one in self._requests) / span,
            "driver": self._driver.busy / span,
        }
