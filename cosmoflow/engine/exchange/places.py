"""Which node gets which task: as many tasks as a node has room for, and some ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from cosmoflow.engine.exchange.agenda import Agenda
from cosmoflow.engine.exchange.crews import Order
from cosmoflow.engine.graph import Key

AHEAD: Final = 4
"""A node with room for some tasks has a quarter as many more, at least one, so that no worker waits
for the driver. While many tasks can run it has more of them, so that messages are fewer: a quarter
of its share, at most as many as it has room for. More would wait there at the end while other nodes
are idle."""


@dataclass(slots=True)
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
    enough : int
        Tasks that the next answer of the crew is about, if they end soon: when they have ended,
        half of the tasks ahead have begun.
    """

    crew: Any
    room: int
    running: set[Key] = field(default_factory=set)
    waiting: list[Order] = field(default_factory=list)
    enough: int = 1


def hand_out(places: Collection[Place], agenda: Agenda) -> Iterator[tuple[Place, Key]]:
    """Yield nodes, in turn, and their tasks: first as many as they have room for, then some more.

    Parameters
    ----------
    places : collection of Place
        The nodes. They count the tasks as running.
    agenda : Agenda
        Has the tasks that can run.
    """
    ready, everywhere = agenda.ready, sum(place.room for place in places)
    for more in (False, True) if ready else ():
        turns = deque[tuple[Place, int]]()
        for place in places:
            share = place.room * ready // everywhere
            ahead = max(1, place.room // AHEAD, min(place.room, share // AHEAD))
            place.enough = max(1, ahead // 2)
            room = place.room + more * ahead - len(place.running)
            if room > 0:
                turns.append((place, room))
        while turns and (key := agenda.next()) is not None:
            place, room = turns.popleft()
            place.running.add(key)
            yield place, key
            if room > 1:
                turns.append((place, room - 1))
