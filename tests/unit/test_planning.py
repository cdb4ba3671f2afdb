"""Plans for clusters: the stages' own memory and bytes, times near what was measured, prices."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from cosmoflow.config import load_settings
from cosmoflow.errors import ConfigError
from cosmoflow.model.registry import ARCHITECTURES
from cosmoflow.numerics.blocks import grid_blocks
from cosmoflow.stages import costs
from cosmoflow.stages.evaluate import plan_evaluate
from cosmoflow.stages.infer import plan_infer
from cosmoflow.stages.infer.plan import plan_work
from cosmoflow.stages.infer.request import wanted_block
from cosmoflow.stages.infer.tiles import cut_tiles
from cosmoflow.stages.paint import paint, plan_paint
from cosmoflow.stages.paint.tasks import shards_near_piece
from cosmoflow.stages.planning import NODE_TYPES, bundles, plan
from cosmoflow.stages.planning.chain import IDLE_ALLOWED
from cosmoflow.stages.planning.demands import DEMANDS, count_painted_parts
from cosmoflow.stages.planning.estimate import busy_cores, estimate
from cosmoflow.stages.planning.nodes import GIB, NodeType, read_nodes
from cosmoflow.stages.planning.shapes import ParticleShape, metadata_of, worker_bytes
from cosmoflow.stages.run import Plan
from cosmoflow.stages.simulate import plan_simulate
from cosmoflow.stages.spectra import plan_spectra, request_spectra
from cosmoflow.stages.train import plan_train
from tests.cases import each
from tests.unit.test_infer_layout import Box, cut

TWO_CORES = NodeType("two cores", "aws", 2, 2, 24 * GIB, 1e12, 10**12, 0.0, 0.0, fast_bfloat16=True)
"""The machine that the documents' figures were measured on: all on one node, nothing to pay."""


def settings_of(**sections):
    return load_settings(options=sections)


def seconds_of(stage, settings, node=TWO_CORES):
    return estimate(DEMANDS[stage](settings, node, 1), node, 1).seconds


def box(cells, particles=None, **paint):
    simulate = {"particles": particles or cells, "box_size": 2.0 * cells}
    return settings_of(simulate=simulate, paint={"grid": cells, **paint})


MEASURED = [
    # Stage, cells per axis, seconds of the whole command; docs/benchmarks/clusters.md says where.
    ("paint", 256, 15.0),
    ("paint", 512, 34.0),
    ("paint", 1024, 230.0),
    ("infer", 256, 10.9 + 4.0),
    ("infer", 512, 74.7 + 4.0),
    ("infer", 1024, 524.0 + 4.0),
]
CORE_SECONDS = [
    # CPU time in one process, by benchmarks/predictions.py (docs/benchmarks/clusters.md).
    ("paint", 256, 3.2),
    ("paint", 512, 27.9),
    ("spectra", 256, 0.4),
    ("spectra", 512, 3.3),
    ("flow", 256, 2.9),
    ("infer", 256, 15.4),
]


@each(("stage", "cells", "measured"), MEASURED)
def test_times_are_near_what_was_measured(stage, cells, measured):
    assert 0.5 < seconds_of(stage, box(cells)) / measured < 2.0


@each(("stage", "cells", "measured"), CORE_SECONDS)
def test_core_seconds_are_near_what_was_measured(stage, cells, measured):
    demand = DEMANDS[stage](box(cells), TWO_CORES, 1)
    assert demand.core_seconds == pytest.approx(measured, rel=0.3)


@each("stage", DEMANDS)
def test_the_planner_says_the_core_seconds_of_the_plan(stage):
    demand = DEMANDS[stage](box(256), TWO_CORES, 1)
    assert demand.core_seconds == demand.plan.cpu_seconds > 0.0


def test_dry_runs_say_what_the_planner_says(particle_store, serial_run, tmp_path):
    """The same core-seconds for the same work, whether the stores are there or not."""
    particles, fields = particle_store(16, box_size=64.0).url, str(tmp_path / "fields.zarr")
    sections = {
        "simulate": {"particles": 16, "box_size": 64.0},
        "paint": {"grid": 32, "shard": 16, "chunk": 16},
        "train": {"steps": 4, "crop": 16},
        "infer": {"precision": "bfloat16"},
        "evaluate": {"subbox": 32.0},
    }
    run, settings = serial_run(**sections), settings_of(**sections)
    paint(particles, fields, run)
    plans = {
        "simulate": plan_simulate(run),
        "paint": plan_paint(particles, run),
        "train": plan_train([fields], run),
        "infer": plan_infer(fields, settings.train.model, run),
        "spectra": plan_spectra(request_spectra(fields, "density", run), run),
        "evaluate": plan_evaluate(fields, f"itself={fields}", run),
    }
    said = {stage: plan.cpu_seconds for stage, plan in plans.items()}
    assert said == pytest.approx(
        {stage: DEMANDS[stage](settings, TWO_CORES, 1).core_seconds for stage in plans}
    )


def test_more_nodes_are_never_slower_and_never_more_than_proportionally_faster():
    settings, node = load_settings("gigabox"), NODE_TYPES["m6id.16xlarge"]
    for stage in ("paint", "flow", "spectra"):
        demand = DEMANDS[stage](settings, node, 1)
        seconds = [estimate(demand, node, count).seconds for count in (8, 16, 32, 64)]
        for slow, fast in itertools.pairwise(seconds):
            assert fast <= slow
        # Spilling falls faster than with the number of nodes: their object stores grow too.
        cores = [sum(estimate(demand, node, count).busy.values()) for count in (8, 16)]
        assert cores[1] > 0.4 * cores[0]


def test_memory_and_bytes_are_those_that_painting_plans(particle_store, serial_run):
    """Of a store that is there, and of its shape."""
    store = particle_store(16)
    config = {"grid": 32, "shard": 8, "chunk": 8}
    real = plan_paint(store.url, serial_run(paint=config))
    settings = settings_of(simulate={"particles": 16, "box_size": 64.0}, paint=config)
    shape = DEMANDS["paint"](settings, TWO_CORES, 1).plan
    assert shape == real


def test_infer_counts_every_block_of_the_box():
    """Against a walk through all of them."""
    for name, grid, asked in (
        ("residual-small", 384, {}),
        ("residual-small", 384, {"fields": ("divergence",)}),
        ("residual-small", 392, {"region": "300:364,10:700,3:777"}),
        ("paper", 300, {}),
        ("paper", 256, {"overlap": 4, "region": "30:364,10:500,3:477"}),
    ):
        work, (model,) = cut(name, grid, "2GiB", **asked)
        shards = grid_blocks(grid, work.layout.shard)
        groups = work.tasks(grid, [True] * len(shards))
        tiles = 0
        for group in groups:
            inside = wanted_block([shards[shard] for shard in group], work.region, work.halo)
            tiles += len(cut_tiles(inside, model.geometry, work.layout))
        found = plan_work(work, Box(grid), [model], measured=False)
        assert (found.tasks, found.details["tiles"]) == (len(groups), tiles)


def test_particles_in_lagrangian_order_touch_the_shards_around_them():
    """Those that a store notes after a simulation are among those that the shape expects."""
    settings = settings_of(
        simulate={"particles": 64, "box_size": 400.0}, paint={"grid": 64, "shard": 8, "chunk": 8}
    )
    shape = ParticleShape(64, metadata_of(settings))
    rng = np.random.default_rng(1)
    sites = (np.indices((64,) * 3).reshape(3, -1).T + 0.5) * 6.25
    places = ((sites + rng.normal(0.0, 6.0, sites.shape)) % 400.0) / 400.0
    start, stop = 5 * 64 * 64 + 100, 5 * 64 * 64 + 1500
    shards = np.floor(places[start:stop] * 8).astype(int)
    touched = set(map(tuple, shards.tolist()))
    expected = shards_near_piece(shape, start, stop, settings.paint).reshape(8, 8, 8)
    assert all(expected[place] for place in touched)
    assert expected.sum() < 8**3 / 2


def test_parts_that_are_sampled_are_those_of_all_pieces():
    settings = settings_of(
        simulate={"particles": 128, "box_size": 800.0}, paint={"grid": 128, "shard": 16}
    )
    shape = ParticleShape(128, metadata_of(settings))
    every = [shards_near_piece(shape, *piece, settings.paint).sum() for piece in shape.ranges(4096)]
    assert count_painted_parts(settings, shape, 4096) == pytest.approx(sum(every), rel=0.05)


def test_a_box_that_no_node_holds_is_left_out_and_why():
    found = plan(load_settings("gigabox"))
    assert [stage.stage for stage in found.stages] == [
        "paint", "flow", "infer", "spectra", "evaluate",
    ]  # fmt: skip
    notes = " ".join(found.notes)
    assert "simulate left out" in notes
    assert "train left out" in notes
    assert "3% of the published peak" in notes
    # Tasks of its spectra need the memory of several cores, and have the cores too.
    evaluate = found.stages[-1]
    assert evaluate.limit != "memory"
    assert evaluate.usd < 10.0
    assert evaluate.request["CPU"] > 32 * evaluate.nodes


def test_boxes_that_fit_are_simulated_and_trained_on():
    names = [stage.stage for stage in plan(load_settings("paper")).stages]
    # The paper's network takes no global flow.
    assert names == ["simulate", "paint", "train", "infer", "spectra", "evaluate"]
    assert "flow" in [stage.stage for stage in plan(load_settings("shipped")).stages]


def test_without_gpus_nothing_is_said_of_them():
    found = plan(load_settings("shipped"), gpu_node=None)
    assert {stage.node for stage in found.stages} == {"m6id.16xlarge"}
    assert not any("GPU" in note for note in found.notes)
    assert not any("GPU" in stage.request for stage in found.stages)


def test_a_deadline_is_kept_for_more_money():
    settings = load_settings("gigabox")
    asked = {"stages": ("infer", "spectra"), "node": "r6id.16xlarge"}
    plans = [plan(settings, hours=hours, **asked) for hours in (8.0, 1.0, 0.25)]
    for found, hours in zip(plans, (8.0, 1.0, 0.25), strict=True):
        assert found.seconds <= 3600.0 * hours
    dollars = [sum(stage.usd for stage in found.stages) for found in plans]
    assert dollars == sorted(dollars)
    with pytest.raises(ConfigError, match="fast enough") as caught:
        plan(settings, hours=0.001, **asked)
    assert "hours or more" in caught.value.limit


def test_nodes_are_added_while_they_cost_next_to_nothing():
    settings = load_settings("gigabox")
    (chosen,) = plan(settings, stages=["spectra"]).stages
    least = min(plan(settings, stages=["spectra"], nodes=n).stages[0].usd for n in (1, 2, 4, 8))
    assert chosen.usd <= IDLE_ALLOWED * least
    (more,) = plan(settings, stages=["spectra"], nodes=2 * chosen.nodes).stages
    assert more.usd > IDLE_ALLOWED * least


def test_the_total_adds_up():
    found = plan(load_settings("gigabox"), nodes=16, stages=["paint", "spectra"])
    node = NODE_TYPES["m6id.16xlarge"]
    for stage in found.stages:
        assert stage.usd == pytest.approx(16 * node.price * stage.seconds / 3600.0)
        assert stage.busy[stage.limit] == max(stage.busy.values())
    painting, measuring = found.stages
    assert painting.seconds == pytest.approx(costs.START_SECONDS + max(painting.busy.values()))
    # Slabs wait for all bars.
    together = sum(measuring.busy[name] for name in ("tasks", "network", "object store"))
    assert measuring.seconds == pytest.approx(costs.START_SECONDS + together)
    storage = found.stored / 1e9 * costs.STORAGE_PRICE
    nodes = sum(stage.usd for stage in found.stages)
    assert found.usd == pytest.approx(nodes + storage + found.requests_usd)
    cheap = plan(load_settings("gigabox"), nodes=16, stages=["paint"], spot=True).stages[0]
    assert cheap.usd == pytest.approx(found.stages[0].usd * node.spot / node.price)


def test_boxes_are_painted_one_after_the_other():
    one, three = (
        plan(settings_of(simulate={"count": count, "particles": 256}), stages=["paint"], nodes=1)
        for count in (1, 3)
    )
    assert three.stages[0].runs == 3
    assert three.seconds == pytest.approx(3 * one.seconds)
    assert three.stages[0].tasks == 3 * one.stages[0].tasks


@each(
    ("asked", "where"),
    [
        ({"stages": ["paint", "pant"]}, "--stages"),
        ({"node": "m7i.4xlarg"}, "--node"),
        ({"gpu_node": "tpu"}, "--gpu-node"),
        ({"nodes": 0}, "--nodes"),
        ({"hours": -1.0}, "--hours"),
        ({"hours": 1.0, "nodes": 2}, None),
    ],
)
def test_what_makes_no_sense_is_refused(asked, where):
    with pytest.raises(ConfigError) as caught:
        plan(load_settings("quickstart"), **asked)
    assert caught.value.where == where


def test_a_stage_that_fits_no_node_is_refused():
    big = settings_of(simulate={"particles": 4096, "box_size": 4096.0})
    with pytest.raises(ConfigError, match="does not fit"):
        plan(big, stages=["simulate"])
    with pytest.raises(ConfigError, match="hands on more") as caught:
        plan(load_settings("gigabox"), stages=["paint"], nodes=1)
    assert "local flash" in caught.value.remedy


def test_memory_leaves_cores_idle():
    settings = load_settings("gigabox")
    small, large = (NODE_TYPES[name] for name in ("m6id.16xlarge", "r6id.16xlarge"))
    demand = DEMANDS["evaluate"](settings, small, 1)
    found = estimate(demand, small, 4)
    room = worker_bytes(small) // demand.plan.worker_memory
    assert found.places == room < small.vcpus // demand.cpus
    assert "memory" in found.busy
    # Twice the memory for each core lets all cores work.
    assert estimate(demand, large, 4).busy["cores"] < found.busy["memory"]


def test_both_threads_of_a_core_are_worth_less_than_two_cores():
    node = NODE_TYPES["m7i.16xlarge"]
    assert busy_cores(node, 32) == 32
    assert busy_cores(node, 64) == pytest.approx(32 * costs.THREAD_GAIN)
    assert busy_cores(TWO_CORES, 2) == 2


def test_fewer_tasks_than_cores_are_told():
    settings = box(128, shard=64)
    found = estimate(DEMANDS["paint"](settings, NODE_TYPES["m6id.16xlarge"], 4), TWO_CORES, 1)
    many = estimate(
        DEMANDS["paint"](settings, NODE_TYPES["m6id.16xlarge"], 4), NODE_TYPES["m6id.16xlarge"], 4
    )
    assert "tasks" in many.busy
    assert "tasks" not in found.busy


def test_what_an_autoscaler_is_asked_for():
    some = Plan("paint", 5, "tasks", 3 * GIB, 0, 0, 0.0)
    assert bundles(some, most=8) == [{"CPU": 1, "memory": 3 * GIB}] * 5
    (one,) = bundles(some, cpus=8, gpus=1)
    assert one == {"CPU": 8, "memory": 3 * GIB, "GPU": 1}


@each("node", NODE_TYPES.values(), ids=lambda node: node.name)
def test_the_table_of_nodes_is_sane(node):
    assert node.cores <= node.vcpus
    assert 1 <= node.memory / GIB / node.vcpus <= 16
    assert 0.1 * node.price < node.spot < node.price
    assert (node.gpu is None) == (node.gpus == 0)
    # Dollars for a core and hour, GPUs aside, are alike everywhere.
    if node.gpu is None:
        assert 0.07 < node.price / node.cores < 0.2


LAB = """
date: 2026-03-01
currency: USD
gpus: {B200: {memory_gib: 180, bfloat16_tflops: 2250}}
nodes:
  lab: {cloud: ours, vcpus: 64, memory_gib: 512, network_gbit: 25, price: 1.2, spot: 1.1,
        gpu: B200, gpus: 2}
  m6id.16xlarge: {cloud: aws, vcpus: 64, cores: 48, memory_gib: 256, network_gbit: 25,
                  disk_gb: 3800, price: 7.594, spot: 3.0}
"""


def test_a_price_list_extends_and_replaces_types(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(LAB)
    found = read_nodes(path)
    assert list(found) == [*NODE_TYPES, "lab"]
    lab = found["lab"]
    assert (lab.cores, lab.memory, lab.disk, lab.gpus) == (32, 512 * GIB, 0, 2)
    assert (lab.gpu.memory, lab.gpu.bfloat16) == (180 * GIB, 2250e12)
    assert found["m6id.16xlarge"].cores == 48
    assert found["g6e.xlarge"] == NODE_TYPES["g6e.xlarge"]
    path.write_text(LAB.replace("cores: 48, ", ""))
    asked = {"nodes": 16, "stages": ["paint"]}
    usual, twice = (
        plan(load_settings("gigabox"), prices=prices, **asked).stages[0].usd
        for prices in (None, str(path))
    )
    assert twice == pytest.approx(2 * usual)


@each(
    ("old", "new", "message", "where"),
    [
        ("currency: USD", "currency: EUR", "not valid", "currency in "),
        ("date: 2026-03-01", "", "not valid", "date in "),
        ("price: 1.2,", "price: -1,", "not valid", "nodes.lab.price in "),
        ("cloud: ours,", "colour: red,", "not valid", "nodes.lab.cloud in "),
        ("gpu: B200,", "gpu: B300,", "unknown GPU", "nodes.lab.gpu in "),
        ("nodes:", "nodes: {", "not a readable YAML", ""),
        (LAB, "", "not valid", ""),
    ],
)
def test_a_bad_price_list_is_refused(tmp_path, old, new, message, where):
    path = tmp_path / "prices.yaml"
    path.write_text(LAB.replace(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        read_nodes(path)
    assert caught.value.where == f"{where}{path}"


def test_a_price_list_that_is_missing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a readable YAML"):
        plan(prices=tmp_path / "none.yaml")


def test_plans_need_no_store_and_no_ray(monkeypatch):
    from cosmoflow.engine import session

    monkeypatch.setattr(session.Session, "engine", lambda *_, **__: pytest.fail("an engine"))
    assert plan(load_settings("quickstart"), nodes=1).seconds > 0.0
    assert plan(nodes=1).to_json()["usd"] > 0.0


def test_interlacing_and_higher_schemes_cost_more():
    plain = seconds_of("paint", box(512))
    assert seconds_of("paint", box(512, scheme="pcs")) > plain
    assert seconds_of("paint", box(512, interlaced=True)) > plain


def test_nodes_that_are_no_clouds_are_planned_for_too():
    own = replace(TWO_CORES, name="ours", vcpus=128, cores=64, memory=512 * GIB)
    demand = DEMANDS["spectra"](load_settings("gigabox"), own, 4)
    assert estimate(demand, own, 4).fits


def test_every_network_has_its_share_of_a_gpu():
    networks = {name for name, one in ARCHITECTURES.items() if one.learns}
    assert networks == set(costs.GPU_UTILISATION)
