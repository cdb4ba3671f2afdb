"""Draws batches in the background during training."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from cosmoflow.model.samples import Sample


class Prefetcher:
    """Draws the batches of steps ahead of time, in order.

    Parameters
    ----------
    draw : callable
        Returns the batch of a step; called in threads.
    first, steps : int
        First step, and the step to stop before.
    ahead : int
        Batches drawn ahead of the current one.
    """

    def __init__(self, draw: Callable[[int], Sample], first: int, steps: int, ahead: int) -> None:
        self._draw = draw
        self._next = first
        self._steps = steps
        self._ahead = ahead
        self._threads = ThreadPoolExecutor(max_workers=ahead)
        self._drawn: deque[Future[Sample]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __next__(self) -> Sample:
        """Return the batch of the next step.

        Raises
        ------
        StopIteration
            There are no more steps.
        """
        while len(self._drawn) <= self._ahead and self._next < self._steps:
            self._drawn.append(self._threads.submit(self._draw, self._next))
            self._next += 1
        if not self._drawn:
            raise StopIteration
        return self._drawn.popleft().result()
