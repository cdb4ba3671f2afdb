"""Process jobs in threads while the calling thread prepares more."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

MOST_THREADS = 8
"""Maximum threads of one process: pending jobs take memory, which plans count."""

_lock = threading.Lock()
_shared: list[int] = []
"""Number of torch threads before each running call began."""


class _Thread(threading.local):
    """Whether the thread is one of a running call."""

    works_alone = False


_thread = _Thread()

J = TypeVar("J")
R = TypeVar("R")


def map_ahead(function: Callable[[J], R], jobs: Iterable[J]) -> Iterator[R]:
    """Call a function that releases the GIL with every job, in threads, while more jobs are made.

    There are as many threads as numba uses, or torch where numba is not loaded, at most
    :data:`MOST_THREADS`. One more job than threads is pending, so that only a few are in memory at
    a time. Results come in the order of the jobs.

    In the threads torch and numba use one core per call: calls on blocks that fit the cache are too
    short to be shared, and on busy cores each call would wait for a thread that is not running. A
    call of this function inside a job processes its own jobs one after the other.

    Parameters
    ----------
    function : callable
        Function of one job.
    jobs : iterable
        Jobs, made in the calling thread.
    """
    numba = _loaded_numba()
    with _lock:
        torch_threads = _shared[0] if _shared else torch.get_num_threads()
    given = torch_threads if numba is None else numba.get_num_threads()
    threads = min(given, MOST_THREADS)
    if threads == 1 or _thread.works_alone:
        yield from map(function, jobs)
        return
    waiting: deque[Future[R]] = deque()
    with _lock:
        _shared.append(torch_threads)
    try:
        with ThreadPoolExecutor(threads, initializer=_use_one_core) as pool:
            for job in jobs:
                waiting.append(pool.submit(function, job))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        # torch's setting applies to the thread that sets it and to threads that begin later, so
        # the last call to end restores it.
        with _lock:
            shared = _shared.pop()
            if not _shared:
                torch.set_num_threads(shared)


def _use_one_core() -> None:
    """Make torch and numba use one core in the calling thread."""
    _thread.works_alone = True
    torch.set_num_threads(1)
    if (numba := _loaded_numba()) is not None:
        numba.set_num_threads(1)


def _loaded_numba() -> Any:
    """Return numba if it is loaded, which takes long, and which some transforms do without."""
    if "numba" not in sys.modules:
        return None
    # It may be half loaded by another thread: an import statement waits for that.
    import numba

    return numba
