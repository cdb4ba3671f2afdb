"""Work in threads beside the one that prepares it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numba
import torch

MOST_THREADS = 8
"""Threads that one process uses at most: jobs in hand take memory, which plans count."""

_lock = threading.Lock()
_shared: list[int] = []
"""How many threads torch used before each call that is going on began."""

J = TypeVar("J")
R = TypeVar("R")


def map_ahead(function: Callable[[J], R], jobs: Iterable[J]) -> Iterator[R]:
    """Call a function that releases the GIL with every job, in threads, while more jobs are made.

    There are as many threads as numba may use, :data:`MOST_THREADS` at most, and one job more in
    hand, so that a few are in memory at a time. Results come in the order of the jobs. In the
    threads torch uses one core a call: calls on blocks that fit the cache are too short to be
    shared, and where other work wants the cores each would wait for a thread that is not running.

    Parameters
    ----------
    function : callable
        Of one job.
    jobs : iterable
        Made in the thread that asks for the results.
    """
    threads = min(numba.get_num_threads(), MOST_THREADS)
    if threads == 1:
        yield from map(function, jobs)
        return
    waiting: deque[Future[R]] = deque()
    with _lock:
        _shared.append(_shared[0] if _shared else torch.get_num_threads())
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for job in jobs:
                waiting.append(pool.submit(function, job))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        # What a thread sets is for itself and for threads that begin later: the last call that
        # ends sets it back.
        with _lock:
            shared = _shared.pop()
            if not _shared:
                torch.set_num_threads(shared)
