"""Evaluation over shards: what the comparison in memory gives, on every engine, or nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmoflow.config import load_settings
from cosmoflow.engine.serial import SerialEngine
from cosmoflow.errors import ConfigError
from cosmoflow.events import Message
from cosmoflow.numerics import fourier
from cosmoflow.numerics.comparison import compare
from cosmoflow.stages.evaluate import command as stage
from cosmoflow.stages.evaluate import evaluate, plan_evaluate
from cosmoflow.stages.evaluate import measure as evaluate_measure
from cosmoflow.stages.evaluate import plan as evaluate_plan
from cosmoflow.stages.flows import ensure_flows
from cosmoflow.stages.flows.slabs import add_flow
from cosmoflow.stages.inputs.expansion import growth_rate_hubble
from cosmoflow.stages.run import Run
from tests.cases import each
from tests.conftest import make_metadata, refused
from tests.e2e.evaluation.conftest import (
    CELL,
    GRID,
    INTERVALS,
    PARTICLES,
    RADII,
    SETTINGS,
    SUBBOX,
    contents,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
]


@pytest.fixture(scope="module")
def expected(box):
    """What the comparison in memory finds."""
    rate = growth_rate_hubble(make_metadata())
    tensor = torch.from_numpy(box["density"])
    linear = {
        "linear theory" + (f" {radius:g} Mpc/h" if radius else ""): fourier.linear_velocity(
            tensor, GRID * CELL, rate, radius
        ).numpy()
        for radius in RADII
    }
    fields = {"noisy": box["noisy"], "of momentum": box["of momentum"], **linear}
    return compare(
        box["density"], box["truth"], fields, GRID * CELL, SUBBOX,
        scheme="cic", rate=rate,
        errors={"noisy": box["error"]}, intervals=INTERVALS, particles_per_cell=PARTICLES,
    )  # fmt: skip


def assert_close(found, wanted, path=()):
    """Compare two metrics: spectra to 1e-5, counts within a cell in a thousand, others to 1e-6."""
    if isinstance(wanted, dict):
        assert list(found) == list(wanted), path
        for key, value in wanted.items():
            assert_close(found[key], value, (*path, key))
    elif isinstance(wanted, list) and wanted and isinstance(wanted[0], dict):
        assert len(found) == len(wanted)
        for index, value in enumerate(wanted):
            assert_close(found[index], value, (*path, index))
    elif isinstance(wanted, str) or wanted is None:
        assert found == wanted, path
    else:
        one, two = np.array(found, float), np.array(wanted, float)
        if "distributions" in path:
            # Linear theory is transformed in other slabs: a cell may cross an edge.
            assert np.abs(one - two).sum() <= 2e-3 * max(np.abs(two).sum(), 1.0), path
            return
        # A flow that has a potential has no curl: what is found of it is rounding.
        if "vorticity" in path and any(str(part).startswith("linear") for part in path):
            return
        if "spectra" in path:
            # Powers span ten decades, more than float32; ratios of none are of no matter.
            floor = 1e-8 * np.nanmax(np.abs(two), initial=0.0) if path[-1] != "k" else 0.0
            floor = 1e-5 if path[-1][0] in "rT" else floor
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=floor, err_msg=str(path))
        else:
            # Linear theory in slabs is that in memory to the digits of float32 transforms.
            loose = 10.0 if any(str(part).startswith("linear") for part in path) else 1.0
            np.testing.assert_allclose(
                one, two, rtol=loose * 1e-6, atol=loose * 1e-6, err_msg=str(path)
            )


def assert_same(found, wanted):
    # What is compared unasked is a fact of the run, which comparisons in memory lack.
    assert_close({name: found.metrics[name] for name in wanted.metrics}, wanted.metrics)
    assert found.metrics["errors"] == wanted.metrics["errors"]
    assert found.patch == wanted.patch
    top = np.abs(wanted.velocity["linear theory"]).max()
    np.testing.assert_allclose(found.density, wanted.density, rtol=1e-6)
    for name in ("truth", *wanted.methods):
        np.testing.assert_allclose(found.velocity[name], wanted.velocity[name], atol=1e-5 * top)
    for quantity, fields in wanted.patch_fields.items():
        for name, field in fields.items():
            scale = np.abs(field).max()
            np.testing.assert_allclose(
                found.patch_fields[quantity][name], field, atol=2e-5 * scale, err_msg=quantity
            )
    for name, field in wanted.residual_map.items():
        np.testing.assert_allclose(found.residual_map[name], field, rtol=1e-5)


@each("shard", [10, 12, 20])
def test_shards_give_what_memory_gives(stores, expected, serial_run, tmp_path, shard):
    truth, predictions = stores(shard)
    found = evaluate(truth, predictions, str(tmp_path / "report"), serial_run(**SETTINGS))
    assert_same(found, expected)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_ray_gives_the_same(stores, serial_run, ray_session, tmp_path):
    truth, predictions = stores(12)
    run = serial_run(evaluate={"subbox": SUBBOX, "smoothing": (0.0,)})
    # The cut of a box follows the memory, and last bits follow the cut.
    run = with_memory(run, 600 << 20)
    expected = evaluate(truth, predictions, str(tmp_path / "serial"), run)
    on_ray = replace(run, session=ray_session)
    found = evaluate(truth, predictions, str(tmp_path / "ray"), on_ray)
    assert found.metrics == expected.metrics
    np.testing.assert_array_equal(found.density, expected.density)
    for name, field in expected.velocity.items():
        np.testing.assert_array_equal(found.velocity[name], field)
    for quantity, fields in expected.patch_fields.items():
        for name, field in fields.items():
            np.testing.assert_array_equal(found.patch_fields[quantity][name], field)


def test_few_cores_do_much_work_in_this_process(stores, tmp_path, monkeypatch):
    """Threads keep them busy: Ray is not started, neither for the whole nor for its spectra."""
    truth, predictions = stores(12)
    monkeypatch.setattr("cosmoflow.engine.session.SERIAL_SECONDS", 0.0)
    monkeypatch.setattr(evaluate_plan, "_FEW_CORES", 1 << 20)
    said = []
    run = Run(load_settings(options=SETTINGS), listener=said.append)
    evaluate(truth, predictions, str(tmp_path / "report"), run)
    texts = [event.text for event in said if isinstance(event, Message)]
    assert texts
    assert "starting Ray" not in texts


def with_memory(run, memory):
    """Return the run with other bytes of a worker."""
    engine = run.settings.engine.model_copy(update={"memory": memory})
    return replace(run, settings=run.settings.model_copy(update={"engine": engine}))


def test_neither_order_nor_memory_makes_a_difference(stores, serial_run, tmp_path, monkeypatch):
    """Workers finish in any order, and fields may stay in memory: the last bit is the same."""
    truth, predictions = stores(10)
    run = serial_run(**SETTINGS)
    plan = plan_evaluate(truth, predictions, run)
    assert plan.kept == 4 * GRID**3 * (1 + 3 * 5 + 9)
    found = [evaluate(truth, predictions, str(tmp_path / "one"), run)]

    class Backwards(SerialEngine):
        def map(self, make_worker, tasks, on_done, **how):
            super().map(make_worker, tasks[::-1], on_done, **how)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "start_engine", lambda *given, **how: Backwards())
        found.append(evaluate(truth, predictions, str(tmp_path / "two"), run))
    monkeypatch.setattr(evaluate_plan, "kept_bytes", lambda *given: 1 << 60)
    streamed = plan_evaluate(truth, predictions, run)
    assert (streamed.kept, streamed.cut) == (0, plan.cut)
    assert streamed.read > plan.read
    assert streamed.requests.get > plan.requests.get
    found.append(evaluate(truth, predictions, str(tmp_path / "three"), run))
    for other in found[1:]:
        assert other.metrics == found[0].metrics
        for name, field in other.velocity.items():
            np.testing.assert_array_equal(field, found[0].velocity[name])


def test_a_box_larger_than_memory(stores, expected, serial_run, tmp_path, monkeypatch):
    """Linear theory in slabs, blocks of a chunk each, and the truth's store is only read."""
    truth, predictions = stores(10)
    before = contents(truth)
    monkeypatch.setattr("cosmoflow.stages.run.available_memory", lambda: 100 << 10)
    monkeypatch.setattr(evaluate_plan, "BLOCK_CELLS", 5)
    made = []
    monkeypatch.setattr(
        evaluate_measure, "add_flow", lambda *given, **how: made.append(add_flow(*given, **how))
    )
    found = evaluate(truth, predictions, str(tmp_path / "report"), serial_run(**SETTINGS))
    assert len(made) == len(RADII)
    assert_same(found, expected)
    assert contents(truth) == before


def test_linear_theory_that_the_truth_has_is_read(
    stores, expected, serial_run, tmp_path, monkeypatch
):
    truth, predictions = stores(20)
    ensure_flows(truth, RADII[::-1], None, serial_run())
    monkeypatch.setattr(evaluate_measure, "_make", None)
    assert_same(
        evaluate(truth, predictions, str(tmp_path / "report"), serial_run(**SETTINGS)), expected
    )


def test_memory_makes_blocks_smaller_or_is_refused(stores, serial_run, tmp_path):
    truth, predictions = stores(10, chunk=5)
    out = str(tmp_path / "report")

    def blocks(kilobytes, **more):
        run = serial_run(evaluate={**SETTINGS["evaluate"], **more})
        return plan_evaluate(truth, predictions, with_memory(run, kilobytes << 10)).cut.axes()

    # Blocks of whole sub-boxes, of which there are 2 x 2 x 2 with a cell around them.
    assert blocks(1) == [[(0, 10), (10, 10)]] * 3
    assert blocks(1 << 20) == [[(0, 10), (10, 10)], [(0, 10), (10, 10)], [(0, 20)]]
    # Of whole shards, or of chunks of one, where no sub-box fits.
    none = {"subbox": 2.0}
    assert blocks(1, **none) == [[(5 * n, 5) for n in range(4)]] * 3
    assert blocks(1 << 20, **none) == [[(5 * n, 5) for n in range(4)], [(0, 20)], [(0, 20)]]
    run = with_memory(serial_run(**SETTINGS), 1 << 20)
    refused(ConfigError, 2, lambda: evaluate(truth, predictions, out, run), "memory", "subbox")
    assert not Path(out).exists()
