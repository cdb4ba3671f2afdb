"""Records of a worker's tasks: a line for each in its log, and metrics for Prometheus.

Ray serves the metrics of all workers of a node at its metrics port. Without its dashboard they are
not collected and cost nothing.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from ray.util.metrics import Counter, Gauge, Histogram

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Upper edges of the bins of the durations of tasks."""


class _Instruments:
    """The metrics of one process."""

    def __init__(self) -> None:
        self.tasks = Counter(
            "cosmoflow_tasks_total", "Tasks that have ended.", tag_keys=("task", "outcome")
        )
        self.seconds = Histogram(
            "cosmoflow_task_seconds",
            "Wall-clock seconds of a task.",
            boundaries=list(SECONDS),
            tag_keys=("task",),
        )
        self.peak = Gauge(
            "cosmoflow_worker_peak_bytes", "Largest resident memory of a worker.", tag_keys=()
        )


@cache
def _instruments() -> _Instruments:
    return _Instruments()


@cache
def _log() -> logging.Logger:
    """Return the logger of a worker, which writes to the worker's own file."""
    log = logging.getLogger("cosmoflow.worker")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s cosmoflow %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    return log


def prepare() -> None:
    """Create what :func:`watched` uses, before several threads need it at once."""
    _instruments()
    _log()


@contextmanager
def watched(kind: str, name: str) -> Iterator[None]:
    """Record the duration and outcome of a task, which runs in the ``with`` block.

    The duration includes the time in which it waits for other tasks of the same worker.

    Parameters
    ----------
    kind : str
        Kind of the task, the tag of the metrics.
    name : str
        Name of the task, for the log.
    """
    begun, outcome = time.perf_counter(), "failed"
    try:
        yield
        outcome = "done"
    finally:
        seconds = time.perf_counter() - begun
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        instruments = _instruments()
        instruments.tasks.inc(1.0, {"task": kind, "outcome": outcome})
        instruments.seconds.observe(seconds, {"task": kind})
        instruments.peak.set(float(peak))
        _log().info("%s %s in %.2f s, peak memory %.2f GB", name, outcome, seconds, peak / 1e9)
