"""A task that waits for Ray keeps its cores."""

import statistics
import threading
import time
from functools import partial

import pytest
import ray

from cosmoflow.engine import Resources, TaskGraph
from cosmoflow.engine.waiting import wait_aside

pytestmark = pytest.mark.cluster


def wait_for_another(begun, ended, number):
    """Wait for a task that takes no core."""
    nap = ray.remote(num_cpus=0)(lambda: time.sleep(6.0))
    begun.touch()
    wait_aside(ray.get, nap.remote())
    ended.touch()


def test_a_task_that_waits_aside_lends_its_cores_to_no_other(ray_session, tmp_path):
    engine = ray_session.engine(0.0)
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    graph = TaskGraph()
    graph.add("wait", partial(wait_for_another, begun, ended), output=True)
    needs = Resources(cpus=engine.cpus)
    running = threading.Thread(target=engine.run, args=(graph,), kwargs={"needs": needs})
    running.start()
    free = []
    while not ended.exists() and running.is_alive():
        time.sleep(0.5)
        if begun.exists():
            free.append(ray.available_resources().get("CPU", 0.0))
    running.join()
    # Before and after, cores are free for moments.
    assert statistics.median(free) == 0.0
