"""The order of the tasks of a graph: which can run, which have to run again, what can be deleted.

Tasks run as soon as what they read is there, those of later families first: they use up parcels,
while those of earlier families make more of them. Only tasks run whose results are wanted. A parcel
is deleted when all its readers are done. If it is lost before, its task runs again, and so do the
tasks that made what that one reads, if their parcels are deleted already.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from cosmoflow.engine.graph import Column, Family, Key, TaskGraph

_WAITING: Final = 0
_READY: Final = 1
_RUNNING: Final = 2
_DONE: Final = 3
_DELETED: Final = 4


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
        self._graph = graph
        self._rank = {name: -place for place, name in enumerate(graph.families)}
        self._state: dict[Key, int] = {}
        self._blockers: Counter[Key] = Counter()
        self._waiting: defaultdict[Key | str, list[Key]] = defaultdict(list)
        """Tasks that wait for a task, or for all tasks of a family."""
        self._ready: list[tuple[int, int, str]] = []
        self._done: Counter[str] = Counter()
        self._readers: Counter[Key | str] = Counter()
        """Unfinished tasks that read from a task, or from all tasks of a family."""
        self._clock = 0
        self._begun: dict[Key, int] = {}
        self._made: dict[Key, int] = {}
        """When a task last began, and when its result was last made."""
        self._unfinished: set[Key] = set()
        """Outputs that are not done."""
        self._require(graph.outputs, kept)

    @property
    def finished(self) -> bool:
        """Whether all outputs are done."""
        return not self._unfinished

    def next(self) -> Key | None:
        """Return a task that can run now, which then counts as running."""
        while self._ready:
            _, number, name = heapq.heappop(self._ready)
            key = name, number
            # A parcel that it reads may have been lost since.
            if self._state[key] == _READY and not self._wait(key):
                self._state[key] = _RUNNING
                self._begun[key] = self._tick()
                return key
        return None

    def is_done(self, key: Key) -> bool:
        """Return whether a task is done and its parcel is there."""
        return self._state.get(key) == _DONE

    def is_complete(self, family: str) -> bool:
        """Return whether all tasks of a family are done."""
        return self._done[family] == len(self._graph.families[family].numbers)

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
        revived = self.lose(other for other in lost if self._made[other] < self._begun[key])
        self._state[key] = _WAITING
        if not self._wait(key):
            self._make_ready(key)
        return revived

    def lose(self, keys: Iterable[Key]) -> list[Key]:
        """Run tasks again whose parcels are lost; return those that were done."""
        lost = [key for key in keys if self.is_done(key)]
        for key in lost:
            self._drop(key)
        self._require(lost)
        return lost

    def _drop(self, key: Key) -> None:
        """Note that the parcel of a task is gone."""
        self._state[key] = _DELETED
        self._done[key[0]] -= 1

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _family(self, key: Key) -> Family:
        return self._graph.families[key[0]]

    def _columns(self, key: Key) -> Iterable[Column]:
        return self._family(key).reads(key[1])

    def _sources(self, key: Key) -> Iterator[Key | str]:
        """Return what a task waits for: tasks, or names of whole families."""
        seen = set[Key | str]()
        for column in self._columns(key):
            sources: Iterable[Key | str] = (
                [column.family]
                if column.numbers is None
                else ((column.family, number) for number in column.numbers)
            )
            for source in sources:
                if source not in seen:
                    seen.add(source)
                    yield source

    def _is_there(self, source: Key | str) -> bool:
        return self.is_complete(source) if isinstance(source, str) else self.is_done(source)

    def _tasks(self, source: Key | str) -> Iterator[Key]:
        if isinstance(source, str):
            yield from ((source, number) for number in self._graph.families[source].numbers)
        else:
            yield source

    def _require(self, keys: Iterable[Key], kept: Collection[Key] = ()) -> None:
        """Add tasks, and the tasks that they read from, unless they are under way or done."""
        stack, added = list(keys), list[Key]()
        whole = set[str]()
        while stack:
            key = stack.pop()
            if self._state.get(key, _DELETED) != _DELETED:
                continue
            if self._family(key).output:
                self._unfinished.add(key)
            if key in kept and self._family(key).parts:
                self._note_done(key)
                continue
            self._state[key] = _WAITING
            added.append(key)
            for source in self._sources(key):
                self._readers[source] += 1
                if isinstance(source, str):
                    # Every task of a family is looked at once, not once for each reader.
                    if source in whole:
                        continue
                    whole.add(source)
                stack += self._tasks(source)
        for key in added:
            if not self._wait(key):
                self._make_ready(key)

    def _wait(self, key: Key) -> int:
        """Make a task wait for what it reads and is not there; return how much that is."""
        missing = [source for source in self._sources(key) if not self._is_there(source)]
        for source in missing:
            self._waiting[source].append(key)
        if missing:
            self._state[key] = _WAITING
            self._blockers[key] = len(missing)
        return len(missing)

    def _make_ready(self, key: Key) -> None:
        self._state[key] = _READY
        heapq.heappush(self._ready, (self._rank[key[0]], key[1], key[0]))

    def _note_done(self, key: Key) -> None:
        name = key[0]
        self._state[key] = _DONE
        self._made[key] = self._tick()
        self._done[name] += 1
        self._unfinished.discard(key)
        found: list[Key | str] = [key, name] if self.is_complete(name) else [key]
        for source in found:
            for waiting in self._waiting.pop(source, ()):
                self._blockers[waiting] -= 1
                if not self._blockers[waiting] and self._state[waiting] == _WAITING:
                    self._make_ready(waiting)

    def _leave(self, key: Key) -> Iterator[Key]:
        """Note that a task reads no more; yield tasks whose parcels have no readers left."""
        for source in self._sources(key):
            self._readers[source] -= 1
            if self._readers[source]:
                continue
            for other in self._tasks(source):
                if self._readers[other] or self._readers[other[0]] or not self.is_done(other):
                    continue
                if self._family(other).parts:
                    self._drop(other)
                    yield other
