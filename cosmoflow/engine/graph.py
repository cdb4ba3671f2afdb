"""Dask graphs of tasks with side effects, or with results that are passed on in parts."""

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

    A task is added after the tasks that it needs, so the order of insertion is topological.

    Attributes
    ----------
    tasks : dict
        Dask's low-level graph, ready for any Dask scheduler.
    parts : dict
        Number of parts of the results of some tasks. Our scheduler on Ray ships each part
        separately, so that a task that needs one part does not receive the others.
    outputs : list
        Keys of the results to return.
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
            Return the result.
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
