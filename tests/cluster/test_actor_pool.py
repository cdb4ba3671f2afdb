"""The pool of actors follows what the cluster has room for, and says when that is nothing."""

import os
import time
from functools import partial
from pathlib import Path

import pytest

from cosmoflow.engine import Resources, actors
from cosmoflow.engine.actors import ActorPool
from cosmoflow.errors import IncompleteError
from tests.cases import each

pytestmark = pytest.mark.cluster

WORKERS = 2


@pytest.fixture(autouse=True)
def quick_looks(ray_session, monkeypatch):
    """Have Ray up, and its pool look every moment at what there is room for."""
    ray_session.engine(0.0)
    monkeypatch.setattr(actors, "_LOOK", 0.05)


def make_patient_worker(folder):
    """Make a worker whose later tasks wait until there are two workers."""
    Path(folder, str(os.getpid())).touch()

    def handle(task):
        give_up = time.monotonic() + 240.0
        while task > 2 and len(list(Path(folder).iterdir())) < WORKERS:
            assert time.monotonic() < give_up
            time.sleep(0.02)
        return os.getpid()

    return handle


def test_workers_join_while_others_work(tmp_path):
    told, done = [], {}

    def places():
        told.append(1 if not told else WORKERS)
        return told[-1]

    make = partial(make_patient_worker, str(tmp_path))
    ActorPool(make, Resources(), places).run(range(12), done.__setitem__)
    assert sorted(done) == list(range(12))
    assert done[0] == done[1] == done[2]
    assert len(set(done.values())) == WORKERS


def make_echo():
    return lambda task: task


def test_a_pool_without_room_waits_and_does_not_spin():
    looks, done = [], {}

    def places():
        looks.append((time.monotonic(), time.thread_time()))
        return 0 if len(looks) < 8 else 1

    ActorPool(make_echo, Resources(), places).run([1, 2], done.__setitem__)
    assert done == {1: 1, 2: 2}
    (begun, used), (ended, used_then) = looks[0], looks[7]
    assert used_then - used < 0.5 * (ended - begun)


@each(("room", "asked"), [(1, 1), (0, 0)], ids=["too large", "no node"])
def test_a_worker_that_never_comes_up_ends_the_run(room, asked):
    pool = ActorPool(make_echo, Resources(cpus=10_000), lambda: room, patience=0.5)
    with pytest.raises(IncompleteError, match="no worker came up") as caught:
        pool.run(range(3), lambda task, result: None)
    assert caught.value.value.startswith(f"{asked} asked for")
    assert "10000 CPUs" in caught.value.limit


def make_doomed_worker(folder, deaths):
    def handle(task):
        if len(list(Path(folder).iterdir())) < deaths:
            Path(folder, str(os.getpid())).touch()
            os._exit(1)
        return task

    return handle


@each(
    ("floor", "of_each", "deaths", "finishes"),
    [(0, 2, 2, True), (0, 2, 3, False), (2, 0, 2, True), (2, 1, 3, False)],
)
def test_deaths_that_are_borne_grow_with_the_workers(
    monkeypatch, tmp_path, floor, of_each, deaths, finishes
):
    """One worker at a time: so many of it, or so many of a pool whatever its size."""
    monkeypatch.setattr(actors, "FRUITLESS_DEATHS", floor)
    monkeypatch.setattr(actors, "DEATHS_OF_EACH", of_each)
    done = {}
    pool = ActorPool(partial(make_doomed_worker, str(tmp_path), deaths), Resources(), lambda: 1)
    if finishes:
        pool.run([7], done.__setitem__)
        assert done == {7: 7}
    else:
        with pytest.raises(IncompleteError, match="keep dying") as caught:
            pool.run([7], done.__setitem__)
        assert caught.value.limit.startswith(f"{max(floor, of_each)} in a row")
