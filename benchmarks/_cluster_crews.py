"""The driver with the crews of many nodes, all on this machine, with tasks that sleep.

A node of Ray, with a worker for each place, takes gigabytes. So one node has all crews, and tasks
sleep in threads of their crew. To the driver they are the crews of as many nodes.
"""

from __future__ import annotations

import os
import queue
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
"""Tasks of each crew."""
RUNS = ((25.0, 0.5), (25.0, 4.0), (25.0, 10.0), (5.0, 0.1), (2.0, 0.04))
"""Longest sleep of a task, s, and how long a crew waits; the shortest sleep is a fifth of that."""


class SleepingCrew(crews.Crew):
    """A crew whose tasks run in its threads."""

    def __init__(
        self, run: Callable[..., Any], functions: dict[str, ray.ObjectRef], *needs: Any
    ) -> None:
        super().__init__(run, functions, *needs)
        self._known = {name: ray.get(function) for name, function in functions.items()}
        self._threads = ThreadPoolExecutor(PLACES)
        self.answers = 0

    def submit(
        self, orders: Sequence[crews.Order], enough: int = 1, rooms: crews.Rooms | None = None
    ) -> None:
        super().submit([], enough, rooms)
        for order in orders:
            self._running[order.key] = None, None
            future = self._threads.submit(self._known[order.key[0]], order.key[1])
            future.add_done_callback(partial(self._end_of, order.key))

    def _end_of(self, key: Key, future: Any) -> None:
        self._ended.put((key, future))

    def work(
        self,
        orders: Sequence[crews.Order],
        enough: int,
        moment: float,
        rooms: crews.Rooms | None = None,
    ) -> list[crews.End]:
        self.answers += 1
        return super().work(orders, enough, moment, rooms)

    def count_answers(self) -> int:
        return self.answers


def _sleep(longest: float, number: int) -> None:
    time.sleep(longest * random.Random(number).uniform(0.2, 1.0))


@contextmanager
def _sleeping(nodes: Sequence[Node], moment: float) -> Iterator[None]:
    """Have the runner find some nodes, whose crews wait for a moment before they answer."""
    changed = {
        (crews, "Crew"): SleepingCrew,
        (crews, "NodeAffinitySchedulingStrategy"): lambda node, soft: "DEFAULT",
        (runner, "MOST_CREWS"): CREWS,
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
    """Waits until all crews are up; counts from then to the last task.

    Attributes
    ----------
    used : float
        CPU time of the driver, s.
    seconds : float
        Time, s.
    answers : int
        Answers of all crews.
    """

    used = seconds = 0.0
    ended = answers = 0
    _began: tuple[float, float] | None = None

    def _look(self) -> None:
        super()._look()
        if self._began is None:
            self._count_answers()
            self._began = _cpu_seconds(), time.monotonic()

    def note(self, key: Key) -> None:
        """Note that a task has ended."""
        self.ended += 1
        if self.ended == CREWS * TASKS and self._began is not None:
            used, began = self._began
            self.used, self.seconds = _cpu_seconds() - used, time.monotonic() - began
            self.answers = self._count_answers()

    def _count_answers(self) -> int:
        asked = [team.crew._actor.count_answers.remote() for team in self._teams]
        return sum(ray.get(asked))


def measure_crews() -> None:
    """Print what the driver takes for an answer, and for an answer that follows another at once."""
    nodes = [Node(secrets.token_hex(28), "", PLACES, 0, 1 << 38, "") for _ in range(CREWS)]
    tasks = CREWS * TASKS
    scratch = Scratch("crews", tempfile.gettempdir())
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        print(f"{CREWS} crews, {tasks} tasks\n")
        print(
            "| longest task, s | crews wait, s | answers | a second | driver, ms an answer | load |"
        )
        print("| --- | --- | --- | --- | --- | --- |")
        for longest, moment in RUNS:
            graph = TaskGraph()
            graph.add("sleep", partial(_sleep, longest), range(tasks), output=True)
            one = _Runner(graph, needs=Resources(), scratch=scratch, cluster=True)
            with _sleeping(nodes, moment):
                one.run(None, one.note)
            print(
                f"| {longest:g} | {moment:g} | {one.answers:,} | "
                f"{one.answers / one.seconds:.0f} | {1e3 * one.used / one.answers:.2f} | "
                f"{os.getloadavg()[0]:.1f} |",
                flush=True,
            )
        print(f"\none call right after another: {_milliseconds_of_calls():.2f} ms each")
    finally:
        ray.shutdown()


class _Listener:
    def work(self, orders: Sequence[crews.Order]) -> list[crews.End]:
        """Return an end for each order."""
        return [crews.End(order.key, None) for order in orders]


def _milliseconds_of_calls(actors: int = 16, calls: int = 800) -> float:
    """Return the driver's CPU time for a call of an actor with eight tasks, and for its answer."""
    those = [ray.remote(_Listener).options(num_cpus=0).remote() for _ in range(actors)]
    orders = [crews.Order(("sleep", number), False, [], []) for number in range(8)]
    ray.get([one.work.remote(orders) for one in those])
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    used = _cpu_seconds()
    for number in range(calls):
        answer = those[number % actors].work.remote(orders)
        answer.future().add_done_callback(heard.put)
    for _ in range(calls):
        heard.get().result()
    return 1e3 * (_cpu_seconds() - used) / calls


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
