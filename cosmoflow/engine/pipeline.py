"""Tasks in three overlapping steps: while one is in work, the next is read, the last written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

STEPS = 3
"""Most tasks in a pipeline at a time: one read or waiting, one in work, one written."""


@dataclass(frozen=True, slots=True)
class Pipeline(Generic[T, R]):
    """The three steps of handling a task.

    A step handles one task at a time, always in the same thread. The steps of different tasks
    overlap, and the inputs of at most one task wait.

    Parameters
    ----------
    read : callable
        From a task to its inputs; mostly waits for storage.
    work : callable
        From inputs to outputs; keeps the cores or the GPU busy.
    write : callable
        From outputs to the result of the task; mostly waits for storage.
    """

    read: Callable[[T], Any]
    work: Callable[[Any], Any]
    write: Callable[[Any], R]


def run_pipeline(
    pipeline: Pipeline[T, R], tasks: Sequence[T], on_done: Callable[[T, R], None]
) -> None:
    """Put tasks through a pipeline, in order; ``work`` and ``on_done`` run in this thread."""
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        reading: Future[Any] | None = None
        writing: Future[R] | None = None
        for index, task in enumerate(tasks):
            inputs = (reading or reader.submit(pipeline.read, task)).result()
            if index + 1 < len(tasks):
                reading = reader.submit(pipeline.read, tasks[index + 1])
            outputs = pipeline.work(inputs)
            del inputs
            if writing is not None:
                on_done(tasks[index - 1], writing.result())
            writing = writer.submit(pipeline.write, outputs)
            del outputs
        if writing is not None:
            on_done(tasks[-1], writing.result())


class PipelineThreads(Generic[T, R]):
    """A pipeline whose tasks come from several threads.

    A task keeps its place in a step until there is room in the next one. So a worker holds the
    inputs of at most two tasks and the outputs of at most two, however slow a step is.

    Parameters
    ----------
    pipeline : Pipeline
        The steps.
    prepare : callable
        Called in the thread of each step before its first task.
    """

    def __init__(self, pipeline: Pipeline[T, R], prepare: Callable[[], None]) -> None:
        self._steps = [
            (step, ThreadPoolExecutor(1, initializer=prepare), threading.Lock())
            for step in (pipeline.read, pipeline.work, pipeline.write)
        ]

    def __call__(self, task: T) -> R:
        """Put one task through, and wait for it."""
        value: Any = task
        held: threading.Lock | None = None
        try:
            for step, thread, place in self._steps:
                place.acquire()
                if held is not None:
                    held.release()
                held = place
                # The input of the step is freed before its place is.
                value = thread.submit(step, value).result()
        finally:
            if held is not None:
                held.release()
        result: R = value
        return result
