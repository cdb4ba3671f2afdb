"""The real engine on a local cluster of many small nodes, with tasks that sleep.

Each task sleeps for the time that the model of a cluster gives it, and hands on small parts. So the
engine is measured: which tasks it runs when, and what that takes of the driver. The model runs the
same tasks with a network, disks and a store of objects that take no time, since the time of each
task includes its share of them.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from _cluster import Node, Pass, Rates, Simulation
from _ray_cluster import local_cluster
from numpy.typing import NDArray

from cosmoflow.config.settings import EngineConfig
from cosmoflow.engine import Column, Engine, Pipeline, Resources, Session, TaskGraph

PLACES = 8
"""Tasks that sleep side by side on a node."""
MEAN_SECONDS = 15.0
"""Mean sleep of a task: the processes of all nodes take some 0.2 s of this machine's two cores for
each."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A run of the harness.

    Parameters
    ----------
    seconds, simulated : float
        Time of the run, and time that the model gives.
    tasks : int
        Number of tasks.
    driver : float
        CPU seconds of the driver.
    """

    seconds: float
    simulated: float
    tasks: int
    driver: float


@contextmanager
def cluster_of(nodes: int, places: int) -> Iterator[Session]:
    """Start a cluster of nodes whose workers are up; yield a session on it."""
    with (
        local_cluster(nodes, places, object_store_memory=80 << 20) as address,
        Session(EngineConfig(choice="ray", address=address)) as session,
    ):
        _start_workers(session.engine(0.0), nodes * places)
        yield session


def _start_workers(engine: Engine, places: int) -> None:
    """Run short tasks until each place has a worker, which takes seconds to start."""
    graph = TaskGraph()
    graph.add("start", _worker, range(4 * places), output=True)
    while len(set(engine.run(graph).values())) < places:
        pass


def _worker(number: int) -> str:
    import ray

    time.sleep(1.0)
    return f"{ray.get_runtime_context().get_node_id()} {os.getpid()}"


def _sleep_task(seconds: float) -> Callable[..., None]:
    return partial(_sleep, seconds)


def _sleep(seconds: float, number: int, *columns: object) -> None:
    time.sleep(seconds)


def _sleep_and_hand_on(
    seconds: float, parts: int, number: int, *columns: object
) -> list[NDArray[np.uint8]]:
    time.sleep(seconds)
    return [np.zeros(8, np.uint8)] * parts


def with_shares(passes: Sequence[Pass], node: Node, nodes: int, rates: Rates) -> list[Pass]:
    """Return the passes with all that their tasks do as core-seconds of a place.

    A task has an equal share of its node's network and disk, and of the requests to the store.
    """
    found = []
    for one in passes:
        network = max(one.read + one.fetched * (1 - 1 / nodes), one.written) * node.places
        requests = (one.gets / rates.gets + one.puts / rates.puts) / one.prefixes
        seconds = (
            one.core_seconds / node.speed + network / node.network + requests * nodes * node.places
        )
        found.append(
            Pass(
                one.name,
                one.tasks,
                seconds * node.speed,
                parts_in=one.parts_in,
                parts_out=one.parts_out,
                waits=one.waits,
            )
        )
    return found


def graph_of(passes: Sequence[Pass], seconds: Sequence[float]) -> TaskGraph:
    """Return the graph of passes whose tasks sleep."""
    graph = TaskGraph()
    for number, (one, sleep) in enumerate(zip(passes, seconds, strict=True)):
        last = number + 1 == len(passes)
        parts = 0 if last else len(passes[number + 1].waits)
        function = _sleep_task(sleep) if last else partial(_sleep_and_hand_on, sleep, parts)
        graph.add(
            one.name,
            function,
            range(one.tasks),
            reads=partial(_columns, passes, number),
            parts=parts,
            output=last,
        )
    return graph


def _columns(passes: Sequence[Pass], number: int, task: int) -> list[Column]:
    """Return what a task waits for: a part of all tasks of its ranges."""
    one = passes[number]
    if not one.waits:
        return []
    group = task * len(one.waits) // one.tasks
    before = passes[number - 1].name
    if len(one.waits) == 1:
        return [Column(before, 0)]
    return [Column(before, group, [task for some in one.waits[group] for task in some])]


def run_stage(
    engine: Engine, passes: Sequence[Pass], node: Node, nodes: int, rates: Rates, *, pool: bool
) -> Measured:
    """Run a stage with tasks that sleep, and in the model.

    Parameters
    ----------
    engine : Engine
        The engine, on ``nodes`` nodes.
    passes : sequence of Pass
        Tasks of the stage.
    node : Node
        A node of the model.
    nodes : int
        Number of nodes.
    rates : Rates
        Rates of what nodes share.
    pool : bool
        Whether a pool of actors handles the tasks in three steps, as `infer` does.
    """
    shared = with_shares(passes, node, nodes, rates)
    tasks = sum(one.tasks for one in shared)
    mean = sum(one.tasks * one.core_seconds for one in shared) / tasks / node.speed
    scale = MEAN_SECONDS / mean
    shared = [replace(one, core_seconds=one.core_seconds * scale) for one in shared]
    free = replace(rates, puts=1e12, gets=1e12, connection=1e15)
    endless = replace(node, network=1e15, disk=1e15, memory=1e18)
    simulated = Simulation(shared, endless, nodes, free).run().seconds
    sleeps = [one.core_seconds / node.speed for one in shared]
    used, begun = _cpu_seconds(), 0.0
    if pool:
        # Each of the three steps of a block takes as long.
        step, starts = sleeps[0] / node.places, list[float]()
        engine.map(
            partial(_make_pipeline, step),
            range(tasks),
            lambda task, start: starts.append(start),
            workers=nodes,
        )
        begun = min(starts)
    else:
        ends = list[float]()
        engine.run(
            graph_of(shared, sleeps),
            on_task=lambda key: ends.append(time.time()),
            needs=Resources(1),
        )
        begun = min(ends) - sleeps[0]
    # The actors of all nodes start on the two cores of this machine: the clock begins after that.
    return Measured(time.time() - begun, simulated, tasks, _cpu_seconds() - used)


def _make_pipeline(step: float) -> Pipeline[int, float]:
    def read(task: int) -> float:
        start = time.time()
        time.sleep(step)
        return start

    def wait(start: float) -> float:
        time.sleep(step)
        return start

    return Pipeline(read, wait, wait)


def driver_milliseconds(nodes: int, places: int, tasks_each: int = 20) -> float:
    """Return the driver's CPU time for each of some tasks that sleep for 2 s."""
    graph, tasks = TaskGraph(), nodes * places * tasks_each
    graph.add("sleep", _sleep_task(2.0), range(tasks), output=True)
    with cluster_of(nodes, places) as session:
        used = _cpu_seconds()
        session.engine(0.0).run(graph)
        return 1e3 * (_cpu_seconds() - used) / tasks


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
