"""Which crew gets which task: as many as its nodes have room for, and some ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from cosmoflow.engine.exchange.agenda import Agenda
from cosmoflow.engine.exchange.crews import Order, Rooms
from cosmoflow.engine.graph import Key

AHEAD: Final = 4
"""A crew has a quarter more tasks than its nodes have room for, at least one."""
MOST_CREWS: Final = 32
"""Most crews. With more nodes each has several: what the driver takes depends on the crews."""
ANSWERS: Final = 8
"""Most answers of a crew about as many tasks as its nodes have room for."""
MOST_AHEAD: Final = 16
"""Most tasks that a crew has ahead because many can run, if its nodes have room for fewer. They are
lost with the node of the crew."""


def tasks_ahead(room: int, share: float, coming: float = 0.0) -> int:
    """Return how many more tasks a crew has than its nodes have room for.

    While many tasks can run it has half of its share, so that messages are few; else a quarter of
    its room, so that no worker waits for the driver. Towards the end it has fewer, and none once
    all nodes together have room for what is left: tasks would wait there while others are idle.

    Parameters
    ----------
    room : int
        Tasks that run side by side.
    share : float
        Its share of the tasks that can run and that no crew has.
    coming : float
        Its share of the tasks like these that will be able to run.
    """
    wanted = max(1, room // AHEAD, int(share) // 2)
    return min(max(room, MOST_AHEAD), wanted, max(0, int(share + coming) - room))


def enough_ended(room: int, share: float, running: int, coming: float = 0.0) -> int:
    """Return how many tasks must end before a crew answers.

    While tasks are left that no crew has, the answer comes when half of the tasks ahead have begun,
    or, where few are ahead, when an eighth of those side by side have ended. When none is left, it
    comes when all have ended: the driver has nothing to send, and tasks that need the results of
    many wait for the last of them.

    Parameters
    ----------
    room, share, coming
        See :func:`tasks_ahead`.
    running : int
        Tasks that the crew has.
    """
    ahead = tasks_ahead(room, share, coming)
    return max(1, room // ANSWERS, ahead // 2) if share else running


@dataclass(slots=True, eq=False)
class Team:
    """A crew, its nodes and its tasks.

    Parameters
    ----------
    crew : Crew or RemoteCrew
        Submits the tasks.
    rooms : Rooms
        How many tasks run side by side on each node. The first node is that of the crew.
    running : set of Key
        Tasks that the crew has.
    waiting : list of Order
        Tasks that the crew gets with the next message.
    """

    crew: Any
    rooms: Rooms
    running: set[Key] = field(default_factory=set)
    waiting: list[Order] = field(default_factory=list)
    room: int = field(init=False)
    """Tasks that run side by side on all nodes."""
    news: Rooms | None = field(init=False, default=None)
    """The nodes, if the crew does not know them yet."""

    def __post_init__(self) -> None:
        self.room = self.rooms.total

    @property
    def home(self) -> str:
        """Name of the node of the crew."""
        return next(iter(self.rooms.nodes))

    def change(self, nodes: dict[str, int]) -> None:
        """Have other nodes; the crew hears of it with the next message."""
        self.rooms = self.news = Rooms(self.rooms.version + 1, nodes)
        self.room = self.rooms.total

    def take_news(self) -> Rooms | None:
        """Return the nodes if the crew does not know them yet, once."""
        news, self.news = self.news, None
        return news


class Teams:
    """All crews with their nodes.

    Only crews that may have room are looked at when tasks are handed out: with a thousand nodes, a
    look at all of them would take several times as long as an answer of one.
    """

    def __init__(self) -> None:
        self._by_node: dict[str, Team] = {}
        self._teams: dict[Team, None] = {}
        self._room = 0
        self._open: dict[Team, None] = {}
        """Those that may have room, in the order in which they get tasks."""

    def __len__(self) -> int:
        return len(self._teams)

    def __iter__(self) -> Iterator[Team]:
        return iter(self._teams)

    def of_node(self, node: str) -> Team | None:
        """Return the team that has a node, if any has."""
        return self._by_node.get(node)

    def add(self, team: Team) -> None:
        """Add a team."""
        self._teams[team] = self._open[team] = None
        self._by_node.update(dict.fromkeys(team.rooms.nodes, team))
        self._room += team.room

    def remove(self, team: Team) -> None:
        """Remove a team with all of its nodes."""
        del self._teams[team]
        self._open.pop(team, None)
        for node in team.rooms.nodes:
            del self._by_node[node]
        self._room -= team.room

    def add_node(self, node: str, room: int) -> None:
        """Add a node to the team with the fewest."""
        team = min(self._teams, key=lambda one: len(one.rooms.nodes))
        self._by_node[node] = team
        self._open[team] = None
        self._change(team, {**team.rooms.nodes, node: room})

    def keep_nodes(self, up: Container[str]) -> list[Team]:
        """Give up the nodes that are not up; return the teams whose crew was on such a node."""
        for team in self:
            gone = [node for node in team.rooms.nodes if node not in up and node != team.home]
            for node in gone:
                del self._by_node[node]
            if gone:
                nodes = team.rooms.nodes
                self._change(team, {node: nodes[node] for node in nodes if node not in gone})
        return [team for team in self if team.home not in up]

    def _change(self, team: Team, nodes: dict[str, int]) -> None:
        self._room -= team.room
        team.change(nodes)
        self._room += team.room

    def note_ended(self, team: Team, key: Key) -> None:
        """Note that a task of a team has ended."""
        team.running.discard(key)
        self._open[team] = None

    def hand_out(self, agenda: Agenda) -> Iterator[tuple[Team, Key]]:
        """Yield teams and their tasks: first as many as they have room for, then some more.

        They take turns, and in each turn get a task for each of their nodes.

        Parameters
        ----------
        agenda : Agenda
            Has the tasks that can run.
        """
        full = list[Team]()
        for more in (False, True):
            turns, full = deque(self._open), []
            while turns and agenda.ready:
                team = turns.popleft()
                ahead = tasks_ahead(team.room, *self._share(team, agenda)) if more else 0
                free = team.room + ahead - len(team.running)
                for _ in range(min(free, len(team.rooms.nodes))):
                    if (key := agenda.next()) is not None:
                        team.running.add(key)
                        yield team, key
                if free > 0:
                    turns.append(team)
                else:
                    full.append(team)
        for team in full:
            del self._open[team]

    def enough(self, team: Team, agenda: Agenda) -> int:
        """Return how many tasks of a team must end before its crew answers."""
        share, coming = self._share(team, agenda)
        return enough_ended(team.room, share, len(team.running), coming)

    def _share(self, team: Team, agenda: Agenda) -> tuple[float, float]:
        """Return the shares of a team in the tasks that can run, and in those that will."""
        part = team.room / self._room
        return part * agenda.ready, part * agenda.coming
