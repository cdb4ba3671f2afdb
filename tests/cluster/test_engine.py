"""Ray gives what this process gives, and outlives its workers."""

import itertools
import os
from functools import partial
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

from cosmoflow.config import load_settings
from cosmoflow.engine import Column, Handout, Resources, Session, TaskGraph, nodes
from cosmoflow.engine.dask_on_ray import get
from cosmoflow.engine.serial import SerialEngine
from cosmoflow.errors import CosmoflowError, DataError, IncompleteError
from cosmoflow.events import ignore
from cosmoflow.stages.paint import paint
from cosmoflow.stages.run import Run
from cosmoflow.storage import particles as storage
from tests.cases import each
from tests.conftest import displaced_lattice, make_metadata

# Ray Train says this of Ray Data's own defaults when it is imported.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")

# `make test` has one test on Ray for each verb of the engine: run, map, channel, train, and `get`
# for Dask. The others on Ray are in `make test-cluster`.
ray_in_cluster_lane = pytest.mark.parametrize(
    "engine", ["serial", pytest.param("ray", marks=pytest.mark.cluster)], indirect=True
)


@pytest.fixture(params=["serial", "ray"])
def engine(request):
    if request.param == "serial":
        return SerialEngine()
    return request.getfixturevalue("ray_session").engine(0.0)


@pytest.fixture
def ray_engine(ray_session):
    return ray_session.engine(0.0)


def split(parts, number):
    """Return ten numbers in parts, of which the last is absent."""
    found = np.array_split(np.arange(10 * number, 10 * number + 10), parts)
    return Handout([*found[:-1], None], value=number)


def add(part, pieces, numbers=()):
    # A stream can be read again.
    assert sorted(piece.sum() for piece in pieces) == sorted(piece.sum() for piece in pieces)
    return int(sum(piece.sum() for piece in pieces)) + sum(numbers)


def build_graph():
    """Three producers of five parts; five consumers of one part of each; one of all values.

    The consumers of odd parts read them as a stream.
    """
    graph = TaskGraph()
    graph.add("split", partial(split, 5), range(3), parts=5)

    def reads(part):
        column = Column("split", part, [0, 2] if part == 1 else None, stream=part % 2 == 1)
        return [column, Column("split")] if part == 2 else [column]

    graph.add("add", add, range(5), reads=reads, output=True)
    graph.add("total", lambda number, sums: max(sums), reads=lambda _: [Column("add")], output=True)
    return graph


def test_graphs_with_parts_give_the_same_everywhere(engine):
    heard = {}
    ended = []
    results = engine.run(build_graph(), heard.__setitem__, on_task=ended.append)
    expected = {("add", 0): 63, ("add", 1): 50, ("add", 2): 90, ("add", 3): 99, ("add", 4): 0}
    expected[("total", 0)] = 99
    assert results == heard == expected
    assert len(ended) == len(build_graph()) == len(set(ended))


def add_slowly(folder, number, pieces):
    """Add up the parts, and delete a parcel while they come."""
    runs = folder / "runs"
    first, total = not runs.exists(), 0
    with runs.open("a") as file:
        file.write("x")
    for count, piece in enumerate(pieces):
        total += int(piece.sum())
        if first and count == 1:
            next(folder.rglob("split-3.parts")).unlink()
    with (folder / "ended").open("a") as file:
        file.write("x")
    return total


@pytest.mark.cluster
def test_a_part_that_is_lost_while_others_are_read_is_made_again(ray_session, tmp_path):
    settings = load_settings(overrides=["engine.choice=ray", f"engine.scratch={tmp_path}"])
    graph = TaskGraph()
    graph.add("split", partial(split, 5), range(4), parts=5)
    reads = [Column("split", 2, stream=True)]
    graph.add("add", partial(add_slowly, tmp_path), reads=lambda _: reads, output=True)
    with Session(settings.engine) as session:
        assert session.engine(0.0).run(graph) == {("add", 0): sum(20 * n + 9 for n in range(4))}
    # The first run of the reader ended where the lost part was to come.
    assert ((tmp_path / "runs").read_text(), (tmp_path / "ended").read_text()) == ("xx", "x")


PARTS = {"where": "a.zarr", "value": [1.5, 2.0], "limit": 7, "remedy": "mend it"}


def refuse(task=None, values=()):
    raise DataError("it broke", **PARTS)


def make_refusing_worker():
    return refuse


def make_adder():
    return lambda task: task + 1


@ray_in_cluster_lane
def test_errors_of_tasks_keep_their_type_and_parts(engine):
    graph = TaskGraph()
    graph.add("fine", abs, output=True)
    graph.add("bad", refuse)
    graph.add("after", add, reads=lambda _: [Column("bad")], output=True)
    with pytest.raises(DataError, match="it broke") as caught:
        engine.run(graph)
    assert type(caught.value) is DataError
    assert caught.value.details() == PARTS


@each("make_worker", [make_refusing_worker, refuse], ids=["handling", "making"])
def test_errors_of_workers_keep_their_type_and_parts(engine, make_worker):
    with pytest.raises(DataError, match="it broke") as caught:
        engine.map(make_worker, range(3), lambda task, result: None)
    assert type(caught.value) is DataError
    assert caught.value.details() == PARTS
    # The engine is good for the next job.
    done = {}
    engine.map(make_adder, [1, 2], done.__setitem__)
    assert done == {1: 2, 2: 3}


def tell(send, name, number):
    for step in range(3):
        send((name, step))
    return name


def test_running_tasks_reach_the_driver(engine):
    """Every message arrives, those of a task in their order, before the channel closes."""
    heard = []
    graph = TaskGraph()
    with engine.channel(heard.append) as send:
        for name in "abcd":
            graph.add(name, partial(tell, send, name), output=True)
        engine.run(graph)
    assert sorted(heard) == [(name, step) for name in "abcd" for step in range(3)]
    for name in "abcd":
        assert [step for sender, step in heard if sender == name] == [0, 1, 2]


def count_threads(number):
    import numba
    import torch

    return torch.get_num_threads(), numba.get_num_threads(), os.environ["OMP_NUM_THREADS"]


@pytest.mark.cluster
def test_a_task_uses_the_cores_that_it_asked_for(ray_engine):
    for cores in (1, min(2, ray_engine.cpus)):
        graph = TaskGraph()
        graph.add("count", count_threads, output=True)
        # Only libraries that are loaded are told: the first run loads them.
        ray_engine.run(graph, needs=Resources(cpus=cores))
        found = ray_engine.run(graph, needs=Resources(cpus=cores))[("count", 0)]
        assert found[0] == found[1] == int(found[2]) == cores


@pytest.mark.cluster
def test_tasks_share_the_nodes(ray_engine):
    cores, memory = ray_engine.cpus, ray_engine.memory
    assert 0 < memory < 1 << 50
    assert ray_engine.share(100, most=1, memory=0).cpus == 1
    assert ray_engine.share(1, most=1, memory=0).cpus == cores
    # Two of these do not fit into one node's memory, so each has its cores alone.
    assert ray_engine.share(100, most=1, memory=memory // 2 + 1).cpus == cores
    graph = TaskGraph()
    graph.add("task", abs, output=True)
    assert ray_engine.run(graph, needs=ray_engine.share(1, most=8, memory=memory // 2))


def node(resources, *, alive=True):
    """Return what ``ray.nodes()`` says of a node."""
    return {
        "Alive": alive, "NodeID": "f" * 56, "NodeManagerAddress": "10.0.0.1",
        "Resources": resources, "Labels": {},
    }  # fmt: skip


NO_NODES = {
    "cpus": lambda engine: engine.cpus_for_each(2),
    "memory": lambda engine: engine.memory,
    "memory per core": lambda engine: engine.memory_per_core,
    "share": lambda engine: engine.share(4, most=8, memory=0),
    "mapping": lambda engine: engine.map(make_adder, [1], lambda task, result: None),
}


@pytest.mark.cluster
@each("ask", NO_NODES.values(), ids=NO_NODES)
def test_a_cluster_whose_workers_have_not_joined_says_so(ray_engine, monkeypatch, ask):
    head = node({"memory": 1e10, "node:__internal_head__": 1.0})
    gone = node({"CPU": 16.0, "memory": 1e11}, alive=False)
    monkeypatch.setattr(nodes.ray, "nodes", lambda: [head, gone])
    with pytest.raises(IncompleteError, match="no node is up with a CPU") as caught:
        ask(ray_engine)
    assert "ray status" in caught.value.remedy


@pytest.mark.cluster
def test_nodes_with_too_little_memory_are_told(ray_engine, monkeypatch):
    small, gone = ({"CPU": 4.0, "memory": gigabytes * 2.0**30} for gigabytes in (8, 64))
    found = [node(small), node(gone, alive=False)]
    monkeypatch.setattr(nodes.ray, "nodes", lambda: found)
    assert ray_engine.memory_per_core == 2 << 30
    with pytest.raises(IncompleteError, match=r"no node is up with 16\.0 GiB") as caught:
        ray_engine.share(4, most=8, memory=16 << 30)
    assert "8.0 GiB" in caught.value.value


def make_mortal_worker(folder):
    def handle(task):
        log = Path(folder, str(task))
        again = log.exists()
        with log.open("a") as file:
            file.write("attempt\n")
        if task in (3, 7) and not again:
            os._exit(1)
        return task**2

    return handle


@pytest.mark.cluster
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_task_is_done_although_workers_die(ray_engine, tmp_path, workers):
    done = []
    ray_engine.map(
        partial(make_mortal_worker, str(tmp_path)), range(12),
        lambda task, result: done.append((task, result)), workers=workers,
    )  # fmt: skip
    assert sorted(done) == [(task, task**2) for task in range(12)]
    for task in (3, 7):
        assert len((tmp_path / str(task)).read_text().splitlines()) >= 2


@ray_in_cluster_lane
def test_no_tasks_are_no_work(engine):
    engine.map(make_adder, [], lambda task, result: None)
    assert engine.run(TaskGraph()) == {}


@ray_in_cluster_lane
def test_one_worker_is_made_once_and_kept(engine):
    def make_worker():
        state = []

        def handle(task):
            state.append(task)
            return len(state)

        return handle

    done = {}
    engine.map(make_worker, range(5), done.__setitem__, workers=1)
    assert sorted(done.values()) == [1, 2, 3, 4, 5]


def test_training_on_two_workers_reports_what_rank_0_says(ray_engine):
    def loop(context):
        import torch

        module = context.wrap(torch.nn.Linear(1, 1, bias=False))
        torch.nn.init.ones_(next(module.parameters()))
        for step in (1, 2):
            module.zero_grad()
            # Gradients 1 and 2 on the two workers: 1.5 when they are averaged.
            module(torch.full((1, 1), 1.0 + context.rank)).sum().backward()
            slope = next(module.parameters()).grad.item()
            context.note({"step": step, "rank": context.rank})
            context.report(
                {"step": step, "rank": context.rank, "size": context.world_size, "slope": slope}
            )

    reports = []
    ray_engine.train(loop, workers=2, on_report=reports.append)
    # Notes go past the reports: only the order among them is certain.
    noted = [one for one in reports if "size" not in one]
    assert noted == [{"step": s, "rank": 0} for s in (1, 2)]
    reported = [one for one in reports if "size" in one]
    assert reported == [{"step": s, "rank": 0, "size": 2, "slope": 1.5} for s in (1, 2)]


@pytest.mark.cluster
@pytest.mark.slow
def test_training_raises_what_one_worker_raises_while_the_others_wait(ray_engine):
    def loop(context):
        if context.rank == 1:
            raise CosmoflowError("the loss is no longer finite", where="step 5", value=1.0)
        context.report({"step": 1.0})
        context.report({"step": 2.0})

    with pytest.raises(CosmoflowError, match="no longer finite") as caught:
        ray_engine.train(loop, workers=2, on_report=lambda metrics: None)
    assert type(caught.value) is CosmoflowError
    assert caught.value.where == "step 5"


def blur(block):
    return block + np.roll(block, 1, axis=0) + np.roll(block, -1, axis=2)


def test_dask_arrays_with_periodic_overlap_give_the_same_on_ray(ray_engine):
    values = np.random.default_rng(0).normal(size=(12, 12, 12))
    array = da.from_array(values, chunks=(4, 6, 5))
    blurred = array.map_overlap(blur, depth=1, boundary="periodic")
    found, total = dask.compute(blurred, blurred.sum(), scheduler=get)
    np.testing.assert_array_equal(found, blurred.compute(scheduler="sync"))
    np.testing.assert_allclose(found, blur(values), rtol=1e-14)
    assert total == pytest.approx(3.0 * values.sum())


@pytest.mark.cluster
def test_dask_on_ray_reads_zarr(ray_engine, fields_store):
    made = fields_store(12)
    with xr.open_zarr(made.url, consolidated=False, chunks={}) as data:
        found = data["velocity"].mean("component").compute(scheduler=get)
    np.testing.assert_allclose(found, made.velocity.mean(axis=0), rtol=1e-5, atol=1e-4)


@pytest.mark.cluster
def test_errors_in_dask_arrays_keep_their_type(ray_engine):
    array = da.zeros((4, 4), chunks=2).map_blocks(refuse, dtype=float, meta=np.zeros((0, 0)))
    with pytest.raises(DataError, match="it broke") as caught:
        array.compute(scheduler=get)
    assert caught.value.details() == PARTS


@pytest.mark.cluster
@each("unequal", [False, True])
def test_painting_is_the_same_bit_for_bit(
    ray_session, serial_run, particle_store, tmp_path, unequal
):
    particles = particle_store(24, mass=unequal)
    whole = {"grid": 13, "shard": 13}
    cut = {"grid": 13, "shard": 5, "particles_per_task": 1064}
    # 13 pieces of 24^3 particles, 27 shards of 13^3 cells.
    assert -(-(24**3) // 1064) == 13
    expected = paint(particles.url, str(tmp_path / "serial.zarr"), serial_run(paint=whole))
    done = []
    run = Run(load_settings(options={"paint": cut}), ray_session, "error", done.append)
    found = paint(particles.url, str(tmp_path / "ray.zarr"), run)
    assert sum(1 for event in done if type(event).__name__ == "StageAdvanced") == 27
    in_pieces = paint(particles.url, str(tmp_path / "pieces.zarr"), serial_run(paint=cut))
    for name in ("density", "momentum", "velocity"):
        assert np.isfinite(found[name].values).all()
        np.testing.assert_array_equal(found[name].values, in_pieces[name].values)
        np.testing.assert_array_equal(found[name].values, expected[name].values)


@pytest.mark.cluster
def test_bad_particles_are_named_across_ray(ray_session, particle_store, tmp_path):
    particles = particle_store(8)
    zarr.open_group(particles.url, mode="r+")["position"][300, 2] = np.nan
    settings = load_settings(options={"paint": {"grid": 8, "particles_per_task": 100}})
    run = Run(settings, ray_session, listener=ignore)
    with pytest.raises(DataError, match="not finite") as caught:
        paint(particles.url, str(tmp_path / "out.zarr"), run)
    assert "particle 300 " in caught.value.where
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("order", ["ordered", "shuffled"])
def test_no_decomposition_changes_a_bit(ray_session, serial_run, tmp_path, order):
    """Workers x pieces x shards: 1 or 2, 1 or 7 or 64, 1 or 8 or 27."""
    grid = 24
    position, velocity = displaced_lattice(32, seed=3)
    first = storage.store_particles(
        str(tmp_path / "first.zarr"), position, velocity, make_metadata()
    )
    rows = np.random.default_rng(4).permutation(len(position))
    rows = np.arange(len(position)) if order == "ordered" else rows
    store = storage.store_particles(
        str(tmp_path / "store.zarr"), position[rows], velocity[rows], make_metadata()
    )
    expected = None
    for pieces, shards in itertools.product((1, 7, 64), (1, 2, 3)):
        cut = {
            "grid": grid,
            "shard": grid // shards,
            "chunk": 8 if shards != 2 else 12,
            "particles_per_task": -(-store.count // pieces),
        }
        for session in (serial_run().session, ray_session):
            run = Run(load_settings(options={"paint": cut}), session, "overwrite", ignore)
            found = paint(store.url, str(tmp_path / "fields.zarr"), run).load()
            if expected is None:
                ordered = serial_run(paint=cut)
                expected = paint(first.url, str(tmp_path / "expected.zarr"), ordered).load()
            for name in ("density", "momentum", "velocity"):
                np.testing.assert_array_equal(found[name].values, expected[name].values)
