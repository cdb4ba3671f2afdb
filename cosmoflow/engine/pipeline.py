"""Handling tasks in three steps that overlap: the next is read and the last written meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

STEPS = 3
"""Tasks that a pipeline has in hand at most: one read or waiting, one in work, one written."""


@dataclass(frozen=True, slots=True)
class Pipeline(Generic[T, R]):
    """What a worker does with a task, as three steps.

    A step handles one task at a time, always in the same thread; the steps of different tasks
    overlap. The inputs of one task at most wait for their turn.

    Parameters
    ----------
    read : callable
        From a task to its inputs. It mostly waits for storage.
    work : callable
        From inputs to outputs. It keeps the cores or the GPU busy.
    write : callable
        From outputs to the task's result. It mostly waits for storage.
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

    Parameters
    ----------
    pipeline : Pipeline
        The steps.
    prepare : callable
        Called in the thread of each step before its first task.
    """

    def __init__(self, pipeline: Pipeline[T, R], prepare: Callable[[], None]) -> None:
        self._pipeline = pipeline
        self._reader, self._worker, self._writer = (
            ThreadPoolExecutor(1, initializer=prepare) for _ in range(STEPS)
        )
        self._ahead = threading.Semaphore(1)

    def __call__(self, task: T) -> R:
        """Put one task through, and wait for it."""
        self._ahead.acquire()
        try:
            inputs = self._reader.submit(self._pipeline.read, task).result()
        except BaseException:
            self._ahead.release()
            raise
        outputs = self._worker.submit(self._begin, inputs).result()
        del inputs
        return self._writer.submit(self._pipeline.write, outputs).result()

    def _begin(self, inputs: Any) -> Any:
        # The next task may be read as soon as this one is in work.
        self._ahead.release()
        return self._pipeline.work(inputs)
