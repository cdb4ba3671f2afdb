"""Graphs of tasks, some of which hand parts of their results to others.

Tasks come in families: tasks with one function and a number each. A family says what its tasks
read from earlier families in *columns*: the same part of the result of each of several tasks. So a
graph is as large as its tasks, while the parts that they exchange are as many as the product of two
numbers of tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dask.task_spec import Task

Key = tuple[str, int]
"""Family and number of a task."""


class Handout(NamedTuple):
    """Result of a task that hands parts to several others.

    Parameters
    ----------
    parts : sequence
        Arrays, tuples of arrays and None, or None where there is nothing to hand on.
    value : object
        Small value for tasks that read the values of this family.
    """

    parts: Sequence[Any]
    value: Any = None

    @classmethod
    def of(cls, result: Any) -> Handout:
        """Return the result of a task as a handout: a plain sequence has parts and no value."""
        return result if isinstance(result, cls) else cls(result)


@dataclass(frozen=True, slots=True)
class Column:
    """What a task reads from several tasks of another family, by default a list in their order.

    Parameters
    ----------
    family : str
        Name of the other family.
    part : int, optional
        Which part of their results. Parts that are None are left out of the list. By default the
        values of the results.
    numbers : sequence or array of int, optional
        Numbers of the other tasks; by default all of the family.
    stream : bool
        Give the task an iterable of the parts in any order, which fetches parts while the task
        works. Each iteration fetches all parts again. Each may raise an error about a lost part,
        which the task must let pass.
    """

    family: str
    part: int | None = None
    numbers: Sequence[int] | NDArray[np.integer] | None = None
    stream: bool = False


def _no_columns(number: int) -> tuple[Column, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Family:
    """Tasks with one function.

    Parameters
    ----------
    name : str
        Name, unique in its graph.
    function : callable
        Called with the number of a task and one list, or one iterable, for each of its columns.
        Must be picklable and, because tasks are retried, idempotent.
    numbers : sequence of int
        Numbers of the tasks.
    reads : callable
        Maps the number of a task to its columns. Called in this process only.
    parts : int
        Number of parts of each result; 0 if the results are values.
    output : bool
        Whether the values of the tasks are returned by the engine.
    """

    name: str
    function: Callable[..., Any]
    numbers: Sequence[int]
    reads: Callable[[int], Sequence[Column]] = _no_columns
    parts: int = 0
    output: bool = False
    _place_of: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    def place(self, number: int) -> int:
        """Return the place of a number among the numbers."""
        if isinstance(self.numbers, range):
            return self.numbers.index(number)
        if not self._place_of:
            self._place_of.update((own, place) for place, own in enumerate(self.numbers))
        return self._place_of[number]

    def places(self, numbers: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the places of some numbers among the numbers."""
        if isinstance(self.numbers, range):
            return (np.asarray(numbers, np.int64) - self.numbers.start) // self.numbers.step
        return np.array([self.place(number) for number in numbers], np.int64)


@dataclass
class TaskGraph:
    """Families of tasks, each added after those that it reads from.

    Attributes
    ----------
    families : dict of str to Family
        The families in the order in which they were added.
    """

    families: dict[str, Family] = field(default_factory=dict)

    def add(
        self,
        name: str,
        function: Callable[..., Any],
        numbers: Sequence[int] = range(1),
        *,
        reads: Callable[[int], Sequence[Column]] = _no_columns,
        parts: int = 0,
        output: bool = False,
    ) -> None:
        """Add a family; see :class:`Family`."""
        if name in self.families:
            raise ValueError(f"the graph has a family {name!r}")
        self.families[name] = Family(name, function, numbers, reads, parts, output)

    def __len__(self) -> int:
        return sum(len(family.numbers) for family in self.families.values())

    @property
    def width(self) -> int:
        """Number of tasks of the largest family, which may all run side by side."""
        return max((len(family.numbers) for family in self.families.values()), default=0)

    @property
    def outputs(self) -> list[Key]:
        """Keys of the tasks whose values the engine returns."""
        return list(self._keys(family for family in self.families.values() if family.output))

    def numbers_of(self, column: Column) -> Sequence[int] | NDArray[np.integer]:
        """Return the numbers of the tasks that a column reads from."""
        return self.families[column.family].numbers if column.numbers is None else column.numbers

    def _keys(self, families: Iterable[Family]) -> Iterator[Key]:
        return ((family.name, number) for family in families for number in family.numbers)

    def to_dask(self) -> dict[Any, Task]:
        """Return the graph for Dask's schedulers, with a node for each part that a task reads.

        A part is a node of its own so that the scheduler frees it as soon as its reader is done.
        """
        # Imported here: `infer` uses an engine without graphs, and Dask takes long to load.
        from dask.task_spec import List, Task, TaskRef

        tasks: dict[Any, Task] = {}
        for name, number in self._keys(self.families.values()):
            family = self.families[name]
            columns = []
            for column in family.reads(number):
                sources = [(column.family, int(other)) for other in self.numbers_of(column)]
                if not self.families[column.family].parts:
                    columns.append(List(*map(TaskRef, sources)))
                    continue
                nodes = [(source, column.part) for source in sources]
                for node in nodes:
                    tasks[node] = Task(node, _take, TaskRef(node[0]), column.part)
                values = List(*map(TaskRef, nodes))
                columns.append(values if column.part is None else Task(None, _present, values))
            tasks[name, number] = Task((name, number), family.function, number, *columns)
        return tasks


def _take(result: Any, part: int | None) -> Any:
    """Return a part of a handout, or its value."""
    handout = Handout.of(result)
    return handout.value if part is None else handout.parts[part]


def _present(parts: list[Any]) -> list[Any]:
    """Return the parts that are there."""
    return [part for part in parts if part is not None]
