"""The driver with the crews of many nodes, all on this machine, with tasks that sleep.

A node of Ray, with a worker for each place, takes gigabytes. So one node has all crews, and tasks
sleep in threads of their crew. To the driver they are the crews of as many nodes.
"""

from __future__ import annotations

import os
import random
import resource
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray

from cosmoflow.engine import Key, Resources, TaskGraph
from cosmoflow.engine.exchange import crews, runner
from cosmoflow.engine.exchange.scratch import Scratch
from cosmoflow.engine.nodes import Node

CREWS = 64
"""Crews: processes of some 70 MB each."""
PLACES = 64
TASKS = 36
"""Tasks of each crew: 4096^3 cells on 1,024 nodes have as many in `paint`."""
SECONDS = 25.0
"""Longest sleep of a task; the shortest is a fifth of that."""


class SleepingCrew(crews.Crew):
    """A crew whose tasks run in its threads."""

    def __init__(
        self,
        run: Callable[..., Any],
        functions: dict[str, ray.ObjectRef],
        needs: Resources,
        node: str | None = None,
    ) -> None:
        super().__init__(run, functions, needs)
        self._known = {name: ray.get(function) for name, function in functions.items()}
        self._threads = ThreadPoolExecutor(PLACES)
        self.answers = 0

    def submit(self, orders: Sequence[crews.Order]) -> None:
        for order in orders:
            self._running[order.key] = None
            future = self._threads.submit(self._known[order.key[0]], order.key[1])
            future.add_done_callback(partial(self._end_of, order.key))

    def _end_of(self, key: Key, future: Any) -> None:
        self._ended.put((key, future))

    def work(self, orders: Sequence[crews.Order], enough: int, moment: float) -> list[crews.End]:
        self.answers += 1
        return super().work(orders, enough, moment)

    def count_answers(self) -> int:
        return self.answers


def _sleep(number: int) -> None:
    time.sleep(SECONDS * random.Random(number).uniform(0.2, 1.0))


@contextmanager
def _sleeping(nodes: Sequence[Node], moment: float) -> Iterator[None]:
    """Have the runner find some nodes, whose crews wait for a moment before they answer."""
    changed = {
        (crews, "Crew"): SleepingCrew,
        (crews, "NodeAffinitySchedulingStrategy"): lambda node, soft: "DEFAULT",
        (runner, "worker_nodes"): lambda: list(nodes),
        (runner, "MOMENT"): moment,
    }
    before = {where: getattr(*where) for where in changed}
    for where, value in changed.items():
        setattr(*where, value)
    try:
        yield
    finally:
        for where, value in before.items():
            setattr(*where, value)


class _Runner(runner.Runner):
    """Waits until all crews are up; counts the driver's CPU time from then to the last task."""

    began = used = 0.0
    ended = answers = 0

    def _look(self) -> None:
        super()._look()
        if not self.began:
            self._count_answers()
            self.began = _cpu_seconds()

    def note(self, key: Key) -> None:
        """Note that a task has ended."""
        self.ended += 1
        if self.ended == CREWS * TASKS:
            self.used = _cpu_seconds() - self.began
            self.answers = self._count_answers()

    def _count_answers(self) -> int:
        asked = [place.crew._actor.count_answers.remote() for place in self._places.values()]
        return sum(ray.get(asked))


def measure_crews(moments: Sequence[float] = (0.5, 4.0, 10.0)) -> None:
    """Print what the driver takes for a task, with crews that wait for some moments."""
    nodes = [Node(secrets.token_hex(28), "", PLACES, 0, 1 << 38, "") for _ in range(CREWS)]
    graph, tasks = TaskGraph(), CREWS * TASKS
    graph.add("sleep", _sleep, range(tasks), output=True)
    scratch = Scratch("crews", tempfile.gettempdir())
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        for moment in moments:
            one = _Runner(graph, needs=Resources(), scratch=scratch, cluster=True)
            with _sleeping(nodes, moment):
                one.run(None, one.note)
            print(
                f"{CREWS} crews, {tasks} tasks, moment {moment:g} s: {one.answers} answers, the "
                f"driver {one.used:.2f} s, {1e3 * one.used / tasks:.2f} ms a task; load "
                f"{os.getloadavg()[0]:.1f}",
                flush=True,
            )
    finally:
        ray.shutdown()


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
