"""Tasks in runs, which a worker takes one after the other: it keeps what neighbours share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Runs(Generic[T]):
    """Tasks that wait for workers.

    A worker takes the next task of its run; then it begins another run. When all have been begun,
    it takes the second half of the longest, so that no worker is idle while others have much to do.

    Parameters
    ----------
    tasks : sequence
        The tasks. Runs are begun in the order of their first tasks.
    run_of : callable, optional
        Names the run of a task; by default each task is a run of its own.
    """

    def __init__(self, tasks: Sequence[T], run_of: Callable[[T], Hashable] | None = None) -> None:
        runs: dict[Hashable, deque[T]] = {}
        for number, task in enumerate(tasks):
            runs.setdefault(number if run_of is None else run_of(task), deque()).append(task)
        self._new = deque(runs.values())
        self._begun: dict[Hashable, deque[T]] = {}
        self._count = len(tasks)

    def __len__(self) -> int:
        """Return the number of tasks that wait."""
        return self._count

    def take(self, worker: Hashable) -> T:
        """Return the next task of a worker; at least one must wait."""
        if not self._begun.get(worker):
            self._begun[worker] = self._new.popleft() if self._new else self._split()
        task = self._begun[worker].popleft()
        self._count -= 1
        return task

    def give_back(self, worker: Hashable, tasks: Sequence[T]) -> None:
        """Take back from a worker that died the tasks that it had in hand, and its run."""
        rest = self._begun.pop(worker, deque[T]())
        rest.extendleft(reversed(tasks))
        self._count += len(tasks)
        if rest:
            self._new.appendleft(rest)

    def _split(self) -> deque[T]:
        """Return the second half of the longest run that has been begun."""
        longest = max(self._begun.values(), key=len)
        half = [longest.pop() for _ in range((len(longest) + 1) // 2)]
        return deque(reversed(half))
