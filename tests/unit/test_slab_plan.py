"""Bars and slabs suit the memory of workers, and are refused where they cannot."""

from types import SimpleNamespace

import pytest

from cosmoflow.config import load_settings
from cosmoflow.config.settings import EngineConfig
from cosmoflow.engine import Resources
from cosmoflow.errors import ConfigError
from cosmoflow.numerics.slabs import GROUP
from cosmoflow.numerics.threads import MOST_THREADS
from cosmoflow.numerics.wiener import SETS
from cosmoflow.stages.flows.plan import plan_flow
from cosmoflow.stages.run import Run, start_engine
from cosmoflow.stages.slabs.plan import SLABS, Grid
from tests.cases import each

GB = 1 << 30


def box(grid, shard=128):
    return Grid(grid, float(grid), min(shard, grid), min(shard, grid))


def cluster_run(memory, cores, allowed=None, *, nodes=1):
    """Return a run on a cluster whose nodes have some memory for workers, and some cores."""

    def share(tasks, *, most, memory):
        return Resources(max(1, nodes * cores // tasks), memory=memory)

    engine = SimpleNamespace(
        name="ray", cpus=cores, memory=memory, memory_per_core=memory // cores, share=share
    )
    session = SimpleNamespace(
        engine=lambda cpu_seconds, **needs: engine, wants_ray=lambda seconds, **needs: True
    )
    address = EngineConfig(choice="ray", address="ray://head:10001", memory=allowed)
    settings = load_settings().model_copy(update={"engine": address})
    return Run(settings, session)


@each("name", SETS)
@each(("grid", "node"), [(1024, 16), (2048, 32), (2048, 64), (4096, 64), (4096, 256)])
def test_slabs_are_neither_thin_nor_few(name, grid, node):
    plan = plan_flow(box(grid), SETS[name], cluster_run(node * GB, 16))
    assert plan.planes >= GROUP
    assert plan.planes <= (grid // 2 + 1) // SLABS + 1
    # A task has as many cores as have the memory that it needs.
    assert plan.worker_memory <= plan.threads * node * GB // 16
    # No chunk is decoded by two tasks.
    assert all(one.start % 128 == 0 for one in (*plan.cut.x, *plan.cut.y))


def test_memory_and_cores_are_those_of_the_cluster():
    """And not that of the machine on which the command is given."""
    plans = [
        plan_flow(box(2048), SETS["wiener"], cluster_run(memory, cores))
        for memory, cores in ((64 * GB, 16), (256 * GB, 16), (256 * GB, 4))
    ]
    planes = [plan.planes for plan in plans]
    assert planes == sorted(set(planes))
    for plan, memory in zip(plans, (4 * GB, 16 * GB, 64 * GB), strict=True):
        assert plan.worker_memory <= plan.threads * memory
    # Cores are shared where there are fewer slabs.
    names, memory = SETS["wiener"], 64 * GB
    alone = plan_flow(box(1024), names, cluster_run(memory, 16))
    shared = plan_flow(box(1024), names, cluster_run(memory, 16, nodes=64))
    assert alone.threads == 1
    assert shared.threads == min(MOST_THREADS, 64 * 16 // shared.slabs) > 1
    # The slabs stay the same, and their tasks still fit on the nodes side by side.
    assert shared.slabs == alone.slabs
    assert alone.worker_memory < shared.worker_memory <= shared.threads * memory // 16
    tight = cluster_run(memory, 16, alone.worker_memory, nodes=64)
    assert plan_flow(box(1024), names, tight).worker_memory <= alone.worker_memory


def test_settings_may_allow_less_and_never_more_than_there_is():
    def planes(allowed):
        run = cluster_run(64 * GB, 1, allowed)
        return plan_flow(box(2048), SETS["wiener"], run).planes

    assert planes(3 * GB) < planes(8 * GB) <= planes(None) == planes(1024 * GB)


@each("allowed", [None, 3 * GB])
def test_a_box_too_large_for_any_slab_is_refused(allowed):
    run = cluster_run((3 if allowed is None else 64) * GB, 4, allowed)
    plan = plan_flow(box(4096), SETS["wiener"], run)
    assert plan.worker_memory > 3 * GB
    with pytest.raises(ConfigError, match="more memory than there is") as caught:
        start_engine(run, plan, remedy="more memory for a worker")
    assert caught.value.limit.startswith("3.0 GiB")


@each("name", SETS)
def test_parts_are_those_of_the_graph(name):
    from cosmoflow.stages.flows.slabs import Flow, build_graph

    source = SimpleNamespace(fields=SETS[name])
    plan = plan_flow(box(20, shard=8), SETS[name], cluster_run(GB, 4), thickness=3)
    graph = build_graph(Flow("", 20.0, 1.0, source), plan, None)
    families = graph.families.values()
    assert plan.parts == sum(family.parts * len(family.numbers) for family in families)
    assert plan.tasks == len(graph)


def test_small_grids_and_shards_have_few_bars_and_slabs():
    run = cluster_run(GB, 4)
    plan = plan_flow(box(6, shard=128), SETS["wiener"], run)
    assert (plan.bars, plan.slabs) == (1, 1)
    # Thirty-two shards of four cells: no bar lies in two of them.
    plan = plan_flow(box(128, shard=4), SETS["wiener"], run)
    assert plan.bars == 32 * 32
    assert plan.cut.whole_shards
