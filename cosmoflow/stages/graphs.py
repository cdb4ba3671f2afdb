"""Running a graph of tasks that tell how far they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cosmoflow.engine import Engine, Key, Resources, TaskGraph
from cosmoflow.stages.run import Plan, Progress, Run

Tell = Callable[[Key], None]
"""What a task calls with its key when it is done."""


def run_graph(
    build: Callable[[Tell], TaskGraph],
    engine: Engine,
    plan: Plan,
    run: Run,
    on_done: Callable[[Key, Any], None],
) -> None:
    """Run a graph, and show how many of its tasks are done.

    Parameters
    ----------
    build : callable
        Makes the graph, given what its tasks are to call.
    engine : Engine
        What it runs on.
    plan : Plan
        The stage, how many tasks there are, what each needs.
    run : Run
        Who hears of progress.
    on_done : callable
        Takes the key and the result of every output of the graph, in any order.
    """
    progress = Progress(run.listener, plan.stage, plan.tasks, plan.unit)
    # A task that is run again, since its worker died, counts once.
    done: set[Key] = set()

    def note(key: Key) -> None:
        done.add(key)
        progress.reach(len(done), key[0])

    with engine.channel(note) as tell:
        engine.run(build(tell), on_done, needs=Resources(memory=plan.worker_memory))
