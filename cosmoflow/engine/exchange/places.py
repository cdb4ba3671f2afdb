"""Which crew gets which task: as many as its nodes have room for, and some ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from cosmoflow.engine.exchange.agenda import Agenda
from cosmoflow.engine.exchange.crews import Order
from cosmoflow.engine.graph import Key

MOST_CREWS: Final = 32
"""Most crews. With more nodes each has several: what the driver takes depends on the crews."""
AHEAD: Final = 4
"""A crew has a quarter more tasks than it has room for, at least one, so that no worker waits for
the driver."""
MOST_AHEAD: Final = 16
"""Most tasks that a crew has ahead because many can run, if it has room for fewer. They are lost
with its node."""


def tasks_ahead(room: int, share: float) -> int:
    """Return how many more tasks a crew has than its nodes have room for.

    While many tasks can run it has half of its share, so that messages are few. Towards the end it
    has fewer: more would wait there while other nodes are idle.

    Parameters
    ----------
    room : int
        Tasks that run side by side.
    share : float
        Its share of the tasks that can run and that no crew has.
    """
    return max(1, room // AHEAD, min(max(room, MOST_AHEAD), int(share) // 2))


def enough_ended(room: int, share: float, running: int) -> int:
    """Return how many tasks must end before a crew answers.

    Then half of the tasks ahead have begun. If all tasks that can run have been handed out, nobody
    waits for an answer before all have ended: tasks that need many others wait for the last.

    Parameters
    ----------
    room, share : int
        See :func:`tasks_ahead`.
    running : int
        Tasks that the crew has.
    """
    return max(1, tasks_ahead(room, share) // 2) if share else running


@dataclass(slots=True, eq=False)
class Place:
    """A crew, its nodes and its tasks.

    Parameters
    ----------
    crew : Crew or RemoteCrew
        Submits the tasks.
    rooms : dict of str to int
        Names of the nodes, that of the crew first, and how many tasks run side by side on each.
    running : set of Key
        Tasks that the crew has.
    waiting : list of Order
        Tasks that the crew gets with the next message.
    """

    crew: Any
    rooms: dict[str, int]
    running: set[Key] = field(default_factory=set)
    waiting: list[Order] = field(default_factory=list)
    room: int = field(init=False)
    """Tasks that run side by side."""

    def __post_init__(self) -> None:
        self.room = sum(self.rooms.values())

    @property
    def name(self) -> str:
        """Name of the node of the crew."""
        return next(iter(self.rooms))


class Places:
    """All crews.

    Only crews that may have room are looked at when tasks are handed out: with a thousand nodes, a
    look at all of them would take several times as long as an answer of one.
    """

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}
        """The crews by the names of their nodes."""
        self._crews: dict[Place, None] = {}
        self._room = 0
        self._open: dict[Place, None] = {}
        """Crews that may have room, in the order in which they get tasks."""

    def __len__(self) -> int:
        return len(self._crews)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._crews)

    def __contains__(self, node: str) -> bool:
        return node in self._places

    def at(self, node: str) -> Place | None:
        """Return the crew that has a node, if any has."""
        return self._places.get(node)

    def add(self, place: Place) -> None:
        """Add a crew."""
        self._crews[place] = self._open[place] = None
        self._places.update(dict.fromkeys(place.rooms, place))
        self._room += place.room

    def remove(self, place: Place) -> None:
        """Remove a crew with all of its nodes."""
        for one in (self._crews, self._open):
            one.pop(place, None)
        for node in place.rooms:
            del self._places[node]
        self._room -= place.room

    def add_node(self, node: str, room: int) -> None:
        """Add a node to the crew with the fewest, and have the crew use it."""
        place = min(self._crews, key=lambda one: len(one.rooms))
        self._places[node] = place
        self._open[place] = None
        self._change(place, {**place.rooms, node: room})

    def keep_nodes(self, up: Container[str]) -> None:
        """Have crews use only nodes that are up. A crew on a node that is not ends by itself."""
        for place in self:
            gone = [node for node in place.rooms if node not in up and node != place.name]
            for node in gone:
                del self._places[node]
            if gone:
                self._change(place, {n: r for n, r in place.rooms.items() if n not in gone})

    def _change(self, place: Place, rooms: dict[str, int]) -> None:
        self._room -= place.room
        place.rooms, place.room = rooms, sum(rooms.values())
        self._room += place.room
        place.crew.use(rooms)

    def note_ended(self, place: Place, key: Key) -> None:
        """Note that a task of a crew has ended."""
        place.running.discard(key)
        self._open[place] = None

    def hand_out(self, agenda: Agenda) -> Iterator[tuple[Place, Key]]:
        """Yield crews, in turn, and their tasks: first as many as they have room for, then more.

        Parameters
        ----------
        agenda : Agenda
            Has the tasks that can run.
        """
        for more in (False, True):
            turns, full = deque(self._open), list[Place]()
            while turns and agenda.ready:
                place = turns.popleft()
                ahead = tasks_ahead(place.room, self._share(place, agenda)) if more else 0
                if len(place.running) >= place.room + ahead:
                    full.append(place)
                elif (key := agenda.next()) is not None:
                    place.running.add(key)
                    yield place, key
                    turns.append(place)
        for place in full:
            del self._open[place]

    def enough(self, place: Place, agenda: Agenda) -> int:
        """Return how many tasks of a crew must end before it answers."""
        return enough_ended(place.room, self._share(place, agenda), len(place.running))

    def _share(self, place: Place, agenda: Agenda) -> float:
        return place.room * agenda.ready / self._room
