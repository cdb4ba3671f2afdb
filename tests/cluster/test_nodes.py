"""Which nodes of a cluster do what, and which are refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import zarr

import cosmoflow
from cosmoflow.cli.app import run_app
from cosmoflow.engine import Resources, nodes
from cosmoflow.engine.on_ray import RayEngine
from cosmoflow.engine.versions import LIBRARIES, make_comparison, make_probe, refusal
from tests.cases import each
from tests.cluster.ray_processes import ray_processes
from tests.e2e.conftest import SMALL

PACKAGE = Path(cosmoflow.__file__).parent
COMMAND = str(Path(sys.executable).with_name("cosmoflow"))


def test_versions_are_those_of_what_is_imported():
    found = make_probe()()
    assert set(found) == {"cosmoflow", "python", *LIBRARIES}
    assert found["cosmoflow"].startswith(f"{cosmoflow.__version__} (source ")
    assert found["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert found["zarr"] == zarr.__version__
    assert "none" not in found.values()
    assert make_comparison()() == []


def copy_of_package(folder):
    """Return where to import another cosmoflow from: the same release, with one line more."""
    shutil.copytree(PACKAGE, folder / "cosmoflow", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "cosmoflow" / "units.py").open("a") as file:
        file.write("\n# Another cosmoflow.\n")
    return folder


def test_a_changed_line_is_another_version(tmp_path):
    """What is compared travels to a process whose cosmoflow is another one, and tells there."""
    import cloudpickle

    shipped = tmp_path / "compare.pickle"
    shipped.write_bytes(cloudpickle.dumps(make_comparison()))
    found = subprocess.run(
        [sys.executable, "-c", "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb'))())",
         str(shipped)],
        env={**os.environ, "PYTHONPATH": str(copy_of_package(tmp_path / "other"))},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    ((name, other, ours),) = eval(found.stdout)
    assert name == "cosmoflow"
    assert ours == make_probe()()["cosmoflow"]
    assert other.startswith(f"{cosmoflow.__version__} (source ")
    assert other != ours


def test_code_is_sent_along_only_where_that_helps():
    code = ("cosmoflow", "1 (source a)", "1 (source b)")
    assert "ship_code" in refusal("10.0.0.1", [code]).remedy
    both = refusal("10.0.0.1", [code, ("torch", "2.12.0", "2.13.0")])
    assert "ship_code" not in both.remedy
    assert both.exit_code == 2
    assert "torch 2.12.0" in both.value
    assert "torch 2.13.0" in both.limit


def described(cpus=4, gpus=0, pool="", memory=8 << 30, alive=True):
    """Return what ``ray.nodes()`` says of a node."""
    return {
        "Alive": alive,
        "NodeID": "f" * 56,
        "NodeManagerAddress": "10.0.0.1",
        "Resources": {"CPU": float(cpus), "GPU": float(gpus), "memory": float(memory)},
        "Labels": {nodes.POOL: pool} if pool else {},
    }


CPU_TASK, GPU_TASK = Resources(cpus=2), Resources(cpus=2, gpus=1)


@each(
    ("up", "selector", "places"),
    [
        # Nothing is labelled: a task runs wherever there is room.
        ([described(), described(gpus=1)], None, 4),
        ([described(pool="cpu"), described(gpus=1, pool="gpu")], {nodes.POOL: "!gpu"}, 2),
        # A cluster of nothing but GPU nodes must paint on them.
        ([described(gpus=1, pool="gpu")], None, 2),
        ([described(pool="cpu"), described(gpus=1, pool="gpu", alive=False)], None, 2),
        # Rather there than nowhere.
        ([described(pool="cpu", cpus=1), described(gpus=1, pool="gpu")], None, 2),
    ],
    ids=["no labels", "two pools", "only GPUs", "GPU node lost", "too small"],
)
def test_work_without_gpus_stays_off_gpu_nodes(monkeypatch, up, selector, places):
    monkeypatch.setattr(nodes.ray, "nodes", lambda: up)
    assert nodes.placement(CPU_TASK).get("label_selector") == selector
    assert nodes.count_places(CPU_TASK) == places
    assert "label_selector" not in nodes.placement(GPU_TASK)
    assert nodes.count_places(GPU_TASK) == sum(node["Alive"] for node in up if has_gpu(node))


def has_gpu(node):
    return node["Resources"]["GPU"] > 0


@each(
    ("up", "workers", "gpus", "cpus"),
    [
        ([described(16), described(16)], 3, 0, 8),
        ([described(16), described(4)], 2, 0, 8),
        ([described(16), described(16)], 40, 0, 1),
        ([described(64, 4), described(64, 4)], 7, 1, 16),
        # The cores of nodes without GPUs are no use.
        ([described(48, 8), *[described(64)] * 4], 8, 1, 6),
    ],
)
def test_workers_are_no_larger_than_all_of_them_fit(monkeypatch, up, workers, gpus, cpus):
    monkeypatch.setattr(nodes.ray, "nodes", lambda: up)
    monkeypatch.setattr(nodes.ray, "is_initialized", lambda: True)
    assert RayEngine().cpus_for_each(workers, gpus) == cpus


def test_an_autoscaler_hears_what_is_to_run_side_by_side(monkeypatch):
    asked = []
    monkeypatch.setattr(nodes, "request_resources", lambda **what: asked.append(what))
    monkeypatch.setattr(nodes.ray, "nodes", lambda: [described(pool="cpu"), described(pool="gpu")])
    nodes.ask_for(Resources(cpus=2, memory=3 << 30), 5)
    assert asked[0] == {
        "bundles": [{"CPU": 2, "memory": 3 << 30}] * 5,
        "bundle_label_selectors": [{nodes.POOL: "!gpu"}] * 5,
    }
    nodes.ask_for(GPU_TASK, 2)
    assert asked[1]["bundles"] == [{"CPU": 2, "GPU": 1}] * 2
    assert asked[1]["bundle_label_selectors"] == [{}] * 2


def test_room_that_comes_ends_the_wait_and_so_does_patience(monkeypatch):
    asked, told, looks = [], [], iter([[], [described()], [described(), described()]])
    monkeypatch.setattr(nodes, "_LOOK", 0.01)
    monkeypatch.setattr(nodes, "request_resources", lambda **what: asked.append(what["bundles"]))
    up = [[]]

    def look():
        up[0] = next(looks, up[0])
        return up[0]

    monkeypatch.setattr(nodes.ray, "nodes", look)
    nodes.wait_for(GPU_TASK, 1, 0.05, told.append)
    nodes.wait_for(CPU_TASK, 4, 60.0, told.append)
    nodes.wait_for(CPU_TASK, 4, 60.0, told.append)
    assert told == ["waiting up to 0.05 s for nodes with 1 x 2 CPU and 1 GPU to join"]
    # What was asked for is taken back.
    assert asked == [[{"CPU": 2, "GPU": 1}], []]


@pytest.fixture(scope="module")
def cluster():
    """A head and one worker, with metrics served."""
    with ray_processes(1) as made:
        yield made


def drive(cluster, *arguments, **how):
    """Run a command beside the head, away from this clone; return its exit code and messages."""
    ended = subprocess.run(
        [COMMAND, arguments[0], *SMALL[1:], *map(str, arguments[1:]),
         f"--address={cluster.address}"],
        env={**cluster.environment, **how}, cwd="/", capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    return ended.returncode, ended.stderr


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_other_code_is_refused_and_can_be_replaced(cluster, tmp_path):
    assert drive(cluster, "simulate", tmp_path / "box.zarr")[0] == 0
    other = copy_of_package(tmp_path / "other")
    environment = cluster.environment
    cluster.environment = {**environment, "PYTHONPATH": str(other)}
    cluster.join()
    cluster.environment = environment
    try:
        paint = ["paint", tmp_path / "box.zarr", tmp_path / "fields.zarr"]
        code, err = drive(cluster, *paint)
        assert code == 2, err
        assert "a node of the cluster has other versions than this process" in err
        assert len(set(re.findall(r"source (\w{8})", err))) == 2
        assert "--set engine.ship_code=true" in err
        assert "Traceback" not in err
        assert not (tmp_path / "fields.zarr").exists()
        code, err = drive(cluster, *paint, "--set=engine.ship_code=true")
        assert code == 0, err
    finally:
        cluster.kill_node(-1)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_node_of_another_version_that_joins_a_run_ends_it(cluster, tmp_path):
    """A run that waits for a larger cluster; what joins is no good."""
    other = copy_of_package(tmp_path / "other")
    out = tmp_path / "box.zarr"
    arguments = ["simulate", str(out), *SMALL[1:], "--set=simulate.steps=400"]
    driver = subprocess.Popen(
        [COMMAND, *arguments, "--count=12", f"--address={cluster.address}"],
        env=cluster.environment, cwd="/", stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    environment = cluster.environment
    try:
        while not list(out.glob("*/position")):
            assert driver.poll() is None
            time.sleep(0.2)
        cluster.environment = {**environment, "PYTHONPATH": str(other)}
        cluster.join()
        cluster.environment = environment
        _, err = driver.communicate(timeout=240)
    finally:
        cluster.environment = environment
        driver.kill()
        cluster.kill_node(-1)
    assert driver.returncode == 2, err
    assert "other versions" in err


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", ["actors", "tasks"])
def test_ctrl_c_leaves_no_orphans_and_a_run_to_resume(cluster, tmp_path, stage):
    fields, out, expected = (tmp_path / name for name in ("fields.zarr", "out", "expected"))
    for arguments in (["simulate", tmp_path / "box"], ["paint", tmp_path / "box", fields]):
        assert drive(cluster, *arguments)[0] == 0
    command = {
        "actors": ["infer", fields, out, "--set=infer.shard=12", "--set=infer.symmetries=16"],
        "tasks": ["simulate", out, "--count=6", "--set=simulate.steps=60"],
    }[stage]
    alone = [expected if word == out else word for word in command]
    assert run_app([*map(str, alone), *SMALL, "--quiet", "--set=simulate.steps=60"]) == 0
    driver = subprocess.Popen(
        [COMMAND, *map(str, command), *SMALL[1:], "--set=simulate.steps=60",
         f"--address={cluster.address}"],
        env=cluster.environment, cwd="/", stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while not list(out.rglob("c/*")):
            assert driver.poll() is None
            time.sleep(0.1)
        driver.send_signal(signal.SIGINT)
        _, err = driver.communicate(timeout=240)
    finally:
        driver.kill()
    assert driver.returncode == 130, err
    assert "--resume" in err
    deadline = time.monotonic() + 120.0
    while working := [pid for node in cluster.workers for pid in node.workers(b"ray::_Worker")]:
        assert time.monotonic() < deadline, working
        time.sleep(0.2)
    code, err = drive(cluster, *command, "--set=simulate.steps=60", "--resume")
    assert code == 0, err
    for array in expected.rglob("zarr.json"):
        same_arrays(out, expected, array.parent.relative_to(expected))


def same_arrays(out, expected, name):
    """Compare an array of two stores, to the rounding of other numbers of threads."""
    node = zarr.open(expected / name)
    if isinstance(node, zarr.Array) and node.dtype.kind == "f":
        values = node[:]
        np.testing.assert_allclose(
            zarr.open(out / name)[:], values, rtol=0, atol=1e-5 * np.abs(values).max()
        )


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_metrics_logs_and_the_cluster_are_told(tmp_path):
    with ray_processes(
        1, head=lambda address: ["--include-dashboard=true", "--dashboard-port=0"]
    ) as cluster:
        code, err = drive(cluster, "simulate", tmp_path / "box.zarr")
        assert code == 0, err
        assert re.search(r"Ray cluster at \S+: 2 nodes, 1 CPUs, 0 GPUs; dashboard at http://", err)
        logs = "".join(
            path.read_text() for path in cluster.folder.glob("*/session_latest/logs/worker-*.err")
        )
        assert re.search(r"simulate.* done in [\d.]+ s, peak memory [\d.]+ GB", logs)
        samples = scrape(cluster)
    assert "ray_cosmoflow_tasks_total{" in samples
    assert re.search(r'ray_cosmoflow_task_seconds_count\{.*task="simulate".*\} 1', samples)


def scrape(cluster):
    """Return what the metrics endpoints of all nodes say once they say anything of ours."""
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        targets = json.loads(
            next(
                cluster.folder.glob("*/session_latest/prom_metrics_service_discovery.json"),
                Path("/dev/null"),
            ).read_text()
            or "[]"
        )
        found = ""
        for target in targets:
            for address in target["targets"]:
                with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
                    found += answer.read().decode()
        if "cosmoflow_tasks_total" in found:
            return found
        time.sleep(1.0)
    pytest.fail("no metrics of ours were served")
