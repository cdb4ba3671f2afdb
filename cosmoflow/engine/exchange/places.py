"""Which node gets which task: as many tasks as a node has room for, and some ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from cosmoflow.engine.exchange.agenda import Agenda
from cosmoflow.engine.exchange.crews import Order
from cosmoflow.engine.graph import Key

AHEAD: Final = 4
"""A node has a quarter more tasks than it has room for, at least one, so that no worker waits for
the driver."""
MOST_AHEAD: Final = 16
"""Most tasks that a node has ahead because many can run, if it has room for fewer. They are lost
with the node."""


def tasks_ahead(room: int, share: float) -> int:
    """Return how many more tasks a node has than it has room for.

    While many tasks can run it has half of its share, so that messages are few. Towards the end it
    has fewer: more would wait there while other nodes are idle.

    Parameters
    ----------
    room : int
        Tasks that run side by side.
    share : float
        Its share of the tasks that can run and that no node has.
    """
    return max(1, room // AHEAD, min(max(room, MOST_AHEAD), int(share) // 2))


def enough_ended(room: int, share: float, running: int) -> int:
    """Return how many tasks must end before a node answers.

    Then half of the tasks ahead have begun. If no task can run that a node has not, nobody waits
    for an answer before all have ended: tasks that need those of many nodes wait for the last.

    Parameters
    ----------
    room, share : int
        See :func:`tasks_ahead`.
    running : int
        Tasks that the node has.
    """
    return max(1, tasks_ahead(room, share) // 2) if share else running


@dataclass(slots=True, eq=False)
class Place:
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


class Places:
    """The nodes, by their names.

    Only nodes that may have room are looked at when tasks are handed out: with a thousand nodes, a
    look at all of them would take several times as long as an answer of one.
    """

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}
        self._room = 0
        self._open: dict[Place, None] = {}
        """Nodes that may have room, in the order in which they get tasks."""

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places.values())

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def get(self, name: str) -> Place | None:
        """Return a node, or None if there is none of that name."""
        return self._places.get(name)

    def add(self, name: str, place: Place) -> None:
        """Add a node."""
        self._places[name] = place
        self._room += place.room
        self._open[place] = None

    def remove(self, name: str) -> Place:
        """Remove a node and return it."""
        place = self._places.pop(name)
        self._room -= place.room
        self._open.pop(place, None)
        return place

    def note_ended(self, place: Place, key: Key) -> None:
        """Note that a task of a node has ended."""
        place.running.discard(key)
        self._open[place] = None

    def hand_out(self, agenda: Agenda) -> Iterator[tuple[Place, Key]]:
        """Yield nodes, in turn, and their tasks: first as many as they have room for, then more.

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
        """Return how many tasks of a node must end before it answers."""
        return enough_ended(place.room, self._share(place, agenda), len(place.running))

    def _share(self, place: Place, agenda: Agenda) -> float:
        return place.room * agenda.ready / self._room
