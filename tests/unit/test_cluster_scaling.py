"""The model of a cluster: the limits in which its answer is known, and the same answer always."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cases import each

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
_cluster = pytest.importorskip("_cluster")
_stages = pytest.importorskip("_cluster_stages")
sys.path.remove(BENCHMARKS)

from cosmoflow.stages import costs  # noqa: E402
from cosmoflow.stages.planning import NODE_TYPES  # noqa: E402
from cosmoflow.stages.planning.demands import DEMANDS  # noqa: E402
from cosmoflow.stages.planning.estimate import estimate  # noqa: E402

Node, Pass, Rates, Simulation = _cluster.Node, _cluster.Pass, _cluster.Rates, _cluster.Simulation

FREE = Rates(task=0.0, puts=1e12, gets=1e12, connection=1e15)
"""A driver and a store of objects that cost nothing."""
ENDLESS = Node(places=4, speed=1.0, network=1e15, disk=1e15, memory=1e15)
"""A node with four cores whose network and disk cost nothing."""


def all_of(count):
    return ((range(count),),)


def run(passes, node=ENDLESS, nodes=1, rates=FREE):
    return Simulation(passes, node, nodes, rates).run()


def shuffle(count, *, seconds=1.0, moved=0.0):
    """Two passes of which every task needs a part of every one before."""
    return [
        Pass("bars", count, seconds, handed=moved),
        Pass("slabs", count, seconds, fetched=moved, waits=all_of(count)),
    ]


def test_one_node_takes_the_sum_of_the_work_and_a_remainder_leaves_cores_idle():
    found = run([Pass("work", 40, 3.0)])
    assert found.seconds == pytest.approx(40 * 3.0 / 4)
    assert found.busy["cores"] == pytest.approx(1.0)

    assert run([Pass("work", 41, 3.0)]).seconds == pytest.approx(11 * 3.0)


def test_endless_nodes_take_the_critical_path():
    assert run(shuffle(64, moved=1e9), nodes=64).seconds == pytest.approx(2.0, rel=1e-3)


def test_passes_wait_for_the_slowest():
    passes = [Pass("bars", 5, 1.0), Pass("slabs", 4, 1.0, waits=all_of(5))]
    assert run(passes).seconds == pytest.approx(3.0)


def test_groups_begin_as_soon_as_what_they_wait_for_is_done():
    ends = tuple((range(2 * group, 2 * group + 2),) for group in range(4))
    passes = [Pass("first", 8, 1.0), Pass("second", 4, 1.0, waits=ends)]
    two_cores = replace(ENDLESS, places=2)
    # Eight and four seconds of work on two cores, which never wait.
    assert run(passes, two_cores).seconds == pytest.approx(6.0)


@each("nodes", [2, 8, 32])
def test_an_exchange_takes_what_the_interfaces_let_through(nodes):
    node = replace(ENDLESS, network=1e9)
    found = run(shuffle(128, seconds=0.0, moved=1e9), node, nodes)
    # Every node receives its share of all, but for what it has itself.
    assert found.seconds == pytest.approx(128 / nodes * (1 - 1 / nodes), rel=0.02)
    assert found.limit == "network"


def test_a_lone_node_exchanges_nothing():
    assert run(shuffle(8, moved=1e12), replace(ENDLESS, network=1.0)).busy["network"] == 0.0


@each("nodes", [1, 16, 256])
def test_the_driver_does_not_get_faster_with_more_nodes(nodes):
    rates = replace(FREE, task=1e-3)
    found = run(shuffle(64, seconds=0.0), nodes=nodes, rates=rates)
    assert found.seconds == pytest.approx(2 * 64 * 1e-3, rel=0.02)
    assert found.limit == "driver"


def test_the_driver_hears_of_several_ends_at_once():
    # A task ends every 0.1 s. Answers come 0.95 s after the first end that they are about, and the
    # last one when nothing runs.
    rates = replace(FREE, gets=100.0, answer=1e-3, moment=0.95)
    some = [Pass("read", 50, 0.0, gets=10.0), Pass("add", 1, 0.0, waits=all_of(50))]
    found = run(some, replace(ENDLESS, places=101), rates=rates)
    assert found.busy["driver"] * found.seconds == pytest.approx((5 + 1) * 1e-3)
    assert found.seconds == pytest.approx(5.0, rel=1e-3)


def test_what_exceeds_memory_goes_over_the_disk_and_back():
    node = replace(ENDLESS, memory=4e9, disk=1e9)
    found = run(shuffle(10, seconds=0.0, moved=1e9), node)
    assert found.spilled == pytest.approx(6e9)
    assert found.seconds == pytest.approx(12.0, rel=0.01)


def test_requests_are_served_at_the_rate_of_their_prefixes():
    rates = replace(FREE, gets=100.0)
    for prefixes, seconds in ((1, 5.0), (4, 1.25)):
        some = [Pass("read", 50, 0.0, gets=10.0, prefixes=prefixes)]
        assert run(some, nodes=64, rates=rates).seconds == pytest.approx(seconds)


def test_a_connection_limits_a_lone_task():
    one = [Pass("read", 1, 0.0, read=1e9, written=1e9)]
    assert run(one, rates=replace(FREE, connection=1e8)).seconds == pytest.approx(20.0)


def test_few_tasks_are_named():
    assert run([Pass("work", 1, 1.0)], nodes=4).limit == "too few tasks"


def test_the_same_cluster_takes_the_same_time():
    passes, demand = _stages.flow_passes(_stages.settings_for(1024), NODE_TYPES["m6id.16xlarge"])
    node = _stages.node_of("flow", demand, NODE_TYPES["m6id.16xlarge"])
    assert run(passes, node, 7, _stages.rates()) == run(passes, node, 7, _stages.rates())


@each("stage", _stages.STAGES)
def test_what_is_handed_on_arrives(stage):
    node = NODE_TYPES["g6e.2xlarge" if stage == "infer" else "m6id.16xlarge"]
    passes, demand = _stages.STAGES[stage](_stages.settings_for(2048), node)
    handed = sum(one.tasks * one.handed for one in passes)
    assert handed == pytest.approx(demand.plan.exchanged, rel=0.01)
    parts = sum(one.tasks * one.parts_out for one in passes)
    assert parts == pytest.approx(demand.parts, rel=0.01) or stage == "spectra"
    read = sum(one.tasks * one.read for one in passes)
    assert read == pytest.approx(demand.plan.read, rel=0.2)


@each("stage", _stages.STAGES)
@each("nodes", [1, 16])
def test_the_plan_and_the_model_agree(stage, nodes):
    """The plan adds or compares what resources take; in the model, tasks wait for others."""
    node = NODE_TYPES["g6e.2xlarge" if stage == "infer" else "r6id.16xlarge"]
    settings = _stages.settings_for(2048)
    passes, demand = _stages.STAGES[stage](settings, node, nodes)
    modelled = run(passes, _stages.node_of(stage, demand, node), nodes, _stages.rates()).seconds
    planned = estimate(DEMANDS[stage](settings, node, nodes), node, nodes).seconds
    planned -= costs.START_SECONDS
    assert 0.4 < planned / modelled < 1.6
