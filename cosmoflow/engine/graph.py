"""Dask graphs of tasks that compute for their side effects or hand on parts of their results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

from dask.task_spec import Task, TaskRef

Key = tuple[str, int]


@dataclass
class TaskGraph:
    """A Dask graph under construction.

    Tasks are added after the tasks they need, so the order of insertion is a topological order.

    Attributes
    ----------
    tasks : dict
        Dask's low-level graph, ready for any Dask scheduler.
    parts : dict
        How many parts the results of some tasks have. A scheduler that can (ours on Ray) ships each
        part on its own, so that a task that needs one part never receives the others.
    outputs : list
        Keys whose results the caller wants.
    """

    tasks: dict[Any, Task] = field(default_factory=dict)
    parts: dict[Any, int] = field(default_factory=dict)
    outputs: list[Key] = field(default_factory=list)

    def add(
        self,
        key: Key,
        function: Callable[..., Any],
        *arguments: Any,
        parts: int = 0,
        output: bool = False,
    ) -> None:
        """Add ``function(*arguments)`` under ``key``.

        Parameters
        ----------
        key : (str, int)
            Name and number of the task.
        function : callable
            Must be picklable and, because tasks are retried, idempotent.
        *arguments
            Plain values, or what :meth:`result` and :meth:`part` return.
        parts : int
            The task returns a sequence of this many parts.
        output : bool
            The caller wants the result.
        """
        self.tasks[key] = Task(key, function, *arguments)
        if parts:
            self.parts[key] = parts
            for index in range(parts):
                self.tasks[(key, index)] = Task((key, index), getitem, TaskRef(key), index)
        if output:
            self.outputs.append(key)

    def result(self, key: Key) -> Any:
        """Refer to the result of a task."""
        return TaskRef(key)

    def part(self, key: Key, index: int) -> Any:
        """Refer to one part of the result of a task."""
        return TaskRef((key, index))
