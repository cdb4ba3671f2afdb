"""The order of the tasks of a graph: which can run, which have to run again, what can be deleted.

Tasks run as soon as what they read is there, those of later families first: they use up parcels,
while those of earlier families make more of them. Only tasks run whose results are wanted. A parcel
is deleted when all its readers are done. If it is lost before, its task runs again, and so do the
tasks that made what that one reads, if their parcels are deleted already.

A task may read from thousands of others, so what is known of the tasks of a family is kept in
arrays, and a task waits for one missing task at a time.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cosmoflow.engine.graph import Column, Family, Key, TaskGraph

_UNWANTED: Final = 0
"""Also a task whose parcel is deleted or lost."""
_WAITING: Final = 1
_READY: Final = 2
_RUNNING: Final = 3
_DONE: Final = 4

_Places = NDArray[np.int64] | slice
"""Places of some tasks in the arrays of their family."""


class _Tasks:
    """The tasks of a family.

    Parameters
    ----------
    family : Family
        The family.
    rank : int
        Tasks of the lowest rank run first.
    """

    def __init__(self, family: Family, rank: int) -> None:
        count = len(family.numbers)
        self.family, self.rank = family, rank
        self.state = np.zeros(count, np.uint8)
        self.readers = np.zeros(count, np.int32)
        """Unfinished tasks that read from each task by its number."""
        self.begun = np.zeros(count, np.int64)
        self.made = np.zeros(count, np.int64)
        """When each task last began, and when its result was last made."""
        self.done = self.waiting = 0
        self.begins = False
        """Whether any task could ever run."""
        self.readers_of_all = 0
        """Unfinished tasks that read from all tasks."""
        self.watchers: defaultdict[int | None, list[Key]] = defaultdict(list)
        """Tasks that wait for the task at a place, or, at None, for all."""

    @property
    def complete(self) -> bool:
        return self.done == len(self.state)

    def set(self, place: int, state: int) -> None:
        """Change the state of a task."""
        self.waiting += (state == _WAITING) - int(self.state[place] == _WAITING)
        self.state[place] = state

    def place(self, number: int) -> int:
        return self.family.place(number)

    def places(self, column: Column) -> _Places:
        return slice(None) if column.numbers is None else self.family.places(column.numbers)

    def places_in(self, places: _Places, state: int) -> NDArray[np.int64]:
        """Return those places whose tasks are in a state."""
        if isinstance(places, slice):
            places = np.arange(len(self.state))
        found: NDArray[np.int64] = places[self.state[places] == state]
        return found

    def keys(self, places: Iterable[int]) -> Iterator[Key]:
        return ((self.family.name, self.family.numbers[place]) for place in places)


class Agenda:
    """The tasks of a graph and how far they are.

    Parameters
    ----------
    graph : TaskGraph
        The graph.
    kept : collection of Key
        Tasks whose parcels an earlier run has made.
    """

    def __init__(self, graph: TaskGraph, kept: Collection[Key] = ()) -> None:
        self._tasks = {
            name: _Tasks(family, -rank)
            for rank, (name, family) in enumerate(graph.families.items())
        }
        self._ready: list[tuple[int, int, str]] = []
        self._clock = 0
        self._unfinished: set[Key] = set()
        """Outputs that are not done."""
        self._require(graph.outputs, kept)

    @property
    def finished(self) -> bool:
        """Whether all outputs are done."""
        return not self._unfinished

    @property
    def ready(self) -> int:
        """Number of tasks that can run now, apart from a few that have to wait again."""
        return len(self._ready)

    @property
    def coming(self) -> int:
        """Number of tasks that wait for others, in families of which some tasks could run."""
        return sum(tasks.waiting for tasks in self._tasks.values() if tasks.begins)

    def next(self) -> Key | None:
        """Return a task that can run now, which then counts as running."""
        while self._ready:
            _, number, name = heapq.heappop(self._ready)
            tasks = self._tasks[name]
            place = tasks.place(number)
            # A parcel that it reads may have been lost since.
            if tasks.state[place] == _READY and not self._wait((name, number)):
                tasks.set(place, _RUNNING)
                tasks.begun[place] = self._tick()
                return name, number
        return None

    def is_done(self, key: Key) -> bool:
        """Return whether a task is done and its parcel is there."""
        tasks = self._tasks[key[0]]
        return bool(tasks.state[tasks.place(key[1])] == _DONE)

    def is_complete(self, family: str) -> bool:
        """Return whether all tasks of a family are done."""
        return self._tasks[family].complete

    def finish(self, key: Key) -> list[Key]:
        """Note that a task is done; return the tasks whose parcels are not needed any more."""
        self._note_done(key)
        return list(self._leave(key))

    def again(self, key: Key, lost: Iterable[Key] = ()) -> list[Key]:
        """Put a running task back; run the tasks again whose parcels it found to be lost.

        Returns
        -------
        list of Key
            The tasks that run again. A parcel that was made after the task began is a new one.
        """
        tasks = self._tasks[key[0]]
        begun = tasks.begun[tasks.place(key[1])]
        revived = self.lose(other for other in lost if self._made(other) < begun)
        if not self._wait(key):
            self._make_ready(key)
        return revived

    def lose(self, keys: Iterable[Key]) -> list[Key]:
        """Run tasks again whose parcels are lost; return those that were done."""
        lost = [key for key in keys if self.is_done(key)]
        for name, number in lost:
            tasks = self._tasks[name]
            tasks.state[tasks.place(number)] = _UNWANTED
            tasks.done -= 1
        self._require(lost)
        return lost

    def _made(self, key: Key) -> int:
        tasks = self._tasks[key[0]]
        return int(tasks.made[tasks.place(key[1])])

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _sources(self, key: Key) -> Iterator[tuple[_Tasks, _Places]]:
        """Yield what a task reads: tasks of a family, and their places."""
        for column in self._tasks[key[0]].family.reads(key[1]):
            tasks = self._tasks[column.family]
            yield tasks, tasks.places(column)

    def _require(self, keys: Iterable[Key], kept: Collection[Key] = ()) -> None:
        """Add tasks, and the tasks that they read from, unless they are under way or done."""
        stack, added = list(keys), list[Key]()
        whole = set[str]()
        while stack:
            key = stack.pop()
            tasks = self._tasks[key[0]]
            place = tasks.place(key[1])
            if tasks.state[place] != _UNWANTED:
                continue
            if tasks.family.output:
                self._unfinished.add(key)
            if key in kept and tasks.family.parts:
                self._note_done(key)
                continue
            tasks.set(place, _WAITING)
            added.append(key)
            for source, places in self._sources(key):
                self._count(source, places, 1)
                if isinstance(places, slice):
                    # Every task of a family is looked at once, not once for each reader.
                    if source.family.name in whole:
                        continue
                    whole.add(source.family.name)
                unwanted = source.places_in(places, _UNWANTED)
                stack += source.keys(unwanted.tolist())
        for key in added:
            if not self._wait(key):
                self._make_ready(key)

    def _count(self, tasks: _Tasks, places: _Places, more: int) -> None:
        """Count a reader of some tasks, or one less."""
        if isinstance(places, slice):
            tasks.readers_of_all += more
        else:
            tasks.readers[places] += more

    def _wait(self, key: Key) -> bool:
        """Make a task wait for one task, or family, that it reads and is not there, if any is."""
        for tasks, places in self._sources(key):
            place: int | None = None
            if isinstance(places, slice):
                if tasks.complete:
                    continue
            else:
                missing = places[tasks.state[places] != _DONE]
                if not missing.size:
                    continue
                # Tasks run in the order of their numbers, so this is the last of those missing.
                place = int(missing.max())
            tasks.watchers[place].append(key)
            own = self._tasks[key[0]]
            own.set(own.place(key[1]), _WAITING)
            return True
        return False

    def _make_ready(self, key: Key) -> None:
        tasks = self._tasks[key[0]]
        tasks.set(tasks.place(key[1]), _READY)
        tasks.begins = True
        heapq.heappush(self._ready, (tasks.rank, key[1], key[0]))

    def _note_done(self, key: Key) -> None:
        tasks = self._tasks[key[0]]
        place = tasks.place(key[1])
        tasks.set(place, _DONE)
        tasks.made[place] = self._tick()
        tasks.done += 1
        self._unfinished.discard(key)
        found: list[int | None] = [place, None] if tasks.complete else [place]
        for watched in found:
            for waiting in tasks.watchers.pop(watched, ()):
                own = self._tasks[waiting[0]]
                if own.state[own.place(waiting[1])] == _WAITING and not self._wait(waiting):
                    self._make_ready(waiting)

    def _leave(self, key: Key) -> Iterator[Key]:
        """Note that a task reads no more; yield tasks whose parcels have no readers left."""
        for tasks, places in self._sources(key):
            self._count(tasks, places, -1)
            if tasks.readers_of_all or not tasks.family.parts:
                continue
            done = tasks.places_in(places, _DONE)
            unread = done[tasks.readers[done] == 0]
            tasks.state[unread] = _UNWANTED
            tasks.done -= len(unread)
            yield from tasks.keys(unread.tolist())
