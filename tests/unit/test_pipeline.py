"""Reading, working and writing overlap, in order, with few tasks in hand."""

import threading
import time

import pytest

from cosmoflow.engine.pipeline import STEPS, Pipeline, PipelineThreads, run_pipeline
from tests.cases import each


class Recorder:
    """Notes which task is in which step, and the threads of the steps."""

    def __init__(self, fail=None, slow=()):
        self.lock = threading.Lock()
        self.now = {"read": None, "work": None, "write": None}
        # Inputs from when they are read until they are worked on, outputs from then until written.
        self.alive = {"inputs": 0, "outputs": 0}
        self.most = {"inputs": 0, "outputs": 0}
        self.together = set()
        self.threads = {}
        self.order = {"read": [], "work": [], "write": []}
        self.fail = fail
        self.slow = slow

    def count(self, name, change):
        self.alive[name] += change
        self.most[name] = max(self.most[name], self.alive[name])

    def step(self, name):
        def run(task):
            with self.lock:
                assert self.now[name] is None, "a step has two tasks at once"
                self.now[name] = task
                self.order[name].append(task)
                self.threads.setdefault(name, set()).add(threading.current_thread())
                if name != "write":
                    self.count("inputs" if name == "read" else "outputs", 1)
                if all(value is not None for value in self.now.values()):
                    self.together.add(tuple(self.now.values()))
            time.sleep(0.04 if name in self.slow else 0.01)
            with self.lock:
                self.now[name] = None
                if name != "read":
                    self.count("outputs" if name == "write" else "inputs", -1)
            if self.fail == (name, task):
                raise ValueError(f"{name} {task} failed")
            return task

        return run

    def pipeline(self):
        return Pipeline(self.step("read"), self.step("work"), self.step("write"))


def test_steps_of_different_tasks_overlap_in_order():
    together = set()
    # On a busy machine the threads of a run may not meet.
    for _ in range(20):
        seen, done = Recorder(), {}
        run_pipeline(seen.pipeline(), range(1, 9), done.__setitem__)
        assert list(done.items()) == [(task, task) for task in range(1, 9)]
        for order in seen.order.values():
            assert order == list(range(1, 9))
        assert seen.threads["work"] == {threading.main_thread()}
        assert all(len(threads) == 1 for threads in seen.threads.values())
        together |= seen.together
        # Mostly the task in work lies between the one that is read and the one that is written.
        if together & {(3, 2, 1), (4, 3, 2), (5, 4, 3)}:
            return
    pytest.fail(f"the steps do not overlap: {together}")


def in_one_process(pipeline, tasks):
    results = {}
    run_pipeline(pipeline, tasks, results.__setitem__)
    return results


def in_an_actor(pipeline, tasks):
    return in_threads(PipelineThreads(pipeline, lambda: None), tasks)


@each("put_through", [in_one_process, in_an_actor])
@each("slow", [(), ("read",), ("work",), ("write",), ("read", "write")], ids="-".join)
def test_two_tasks_have_inputs_and_two_have_outputs_at_most(put_through, slow):
    """Whichever step the others wait for: so much memory is planned for."""
    seen = Recorder(slow=slow)
    assert put_through(seen.pipeline(), range(1, 9)) == {task: task for task in range(1, 9)}
    assert seen.alive == {"inputs": 0, "outputs": 0}
    assert seen.most["inputs"] <= 2
    assert seen.most["outputs"] <= 2
    # The steps do overlap: behind a slow one the next task is ready.
    if slow == ("write",):
        assert seen.most["outputs"] == 2
    if slow == ("work",):
        assert seen.most["inputs"] == 2


@each("count", [0, 1, 2])
def test_few_tasks(count):
    seen, done = Recorder(), []
    run_pipeline(seen.pipeline(), range(count), lambda task, result: done.append(task))
    assert done == list(range(count))


@each("step", ["read", "work", "write"])
def test_an_error_ends_it_and_what_was_written_before_is_told(step):
    seen, done = Recorder(fail=(step, 3)), []
    with pytest.raises(ValueError, match=f"{step} 3 failed"):
        run_pipeline(seen.pipeline(), range(1, 9), lambda task, result: done.append(task))
    assert done == [1, 2][: len(done)]
    assert 4 not in seen.order["write"]


def in_threads(handle, tasks):
    """Hand tasks to a worker as its actor does: so many at once as it may have in hand."""
    results, waiting = {}, list(tasks)

    def call():
        while True:
            with lock:
                if not waiting:
                    return
                task = waiting.pop(0)
            try:
                results[task] = handle(task)
            except ValueError as error:
                results[task] = error

    lock = threading.Lock()
    callers = [threading.Thread(target=call) for _ in range(STEPS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=240)
    return results


def test_an_actor_overlaps_the_steps_of_its_tasks():
    seen, prepared = Recorder(), []
    handle = PipelineThreads(seen.pipeline(), lambda: prepared.append(threading.current_thread()))
    assert in_threads(handle, range(1, 9)) == {task: task for task in range(1, 9)}
    assert seen.together
    threads = [seen.threads[name] for name in ("read", "work", "write")]
    assert all(len(one) == 1 for one in threads)
    assert set(prepared) == set.union(*threads)


@each("step", ["read", "work", "write"])
def test_an_actor_goes_on_after_a_task_that_failed(step):
    handle = PipelineThreads(Recorder(fail=(step, 3)).pipeline(), lambda: None)
    results = in_threads(handle, range(1, 7))
    assert str(results.pop(3)) == f"{step} 3 failed"
    assert results == {task: task for task in (1, 2, 4, 5, 6)}
