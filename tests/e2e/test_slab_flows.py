"""Global velocities made in bars and slabs: as in memory, on every engine, or nothing."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmoflow.engine.serial import SerialEngine
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.events import StageAdvanced, StageStarted
from cosmoflow.numerics import calculus
from cosmoflow.numerics.fourier import forward, linear_velocity
from cosmoflow.numerics.slabs import GROUP
from cosmoflow.numerics.wiener import SETS, LinearTheory, WienerFilter
from cosmoflow.stages.flows import ensure_flows, slabs
from cosmoflow.stages.flows.plan import plan_flow
from cosmoflow.stages.flows.slabs import add_flow
from cosmoflow.stages.inputs.expansion import growth_rate_hubble
from cosmoflow.stages.slabs import transform
from cosmoflow.stages.slabs.plan import Grid
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.flows import (
    WIENER,
    adding_linear_velocity,
    adding_wiener_velocity,
    filter_digest,
)
from tests.cases import each

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
]

GRID, SHARD = 28, 12
RADIUS = 3.0


def make_filter(name):
    """A filter whose weights vary with k, all fields having a say in the flow."""
    rng = np.random.default_rng(3)
    weights = np.cumsum(rng.normal(0.0, 0.05, (20, len(SETS[name]))), axis=0) + 1.0
    return WienerFilter(SETS[name], 0.12, tuple(map(tuple, weights.tolist())))


@pytest.fixture
def store(fields_store):
    return coarse_store(fields_store)


def coarse_store(fields_store):
    """Make a store of cells so large that the squares' window reaches the Nyquist frequency."""
    return FieldStore(fields_store(GRID, shard=SHARD, chunk=6, cell=5.0).url)


def facts(store):
    """Return density, box size, f a H."""
    density = torch.from_numpy(store.read("density"))
    return density, store.metadata.box_size, growth_rate_hubble(store.metadata)


def add_linear(store, run, **how):
    adding = adding_linear_velocity(store.url, RADIUS)
    add_flow(store, LinearTheory(RADIUS), facts(store)[2], adding, run, **how)


def add_filtered(store, wiener, run, **how):
    adding = adding_wiener_velocity(store.url, wiener.digest)
    add_flow(store, wiener, facts(store)[2], adding, run, **how)


def assert_same(found, expected):
    expected = expected.numpy()
    assert np.abs(found - expected).max() < 1e-5 * expected.std()


@each("thickness", [1, 5, 12, None])
def test_linear_velocity_is_that_of_the_whole_box(fields_store, serial_run, thickness):
    store = coarse_store(fields_store)
    add_linear(store, serial_run(), thickness=thickness)
    found = FieldStore(store.url)
    assert found.smoothing_scales() == [RADIUS]
    assert_same(found.read("linear_velocity", lead=(0,)), linear_velocity(*facts(store), RADIUS))


@each("name", SETS)
@each("thickness", [5, 12])
def test_wiener_velocity_is_that_of_the_whole_box(fields_store, serial_run, name, thickness):
    store = coarse_store(fields_store)
    wiener = make_filter(name)
    add_filtered(store, wiener, serial_run(), thickness=thickness)
    found = FieldStore(store.url)
    assert filter_digest(found) == wiener.digest
    assert_same(found.read(WIENER), wiener.velocity(*facts(store)))


@each("squares", [("squared_tide",), ("squared_contrast", "log_density")])
def test_filters_of_any_fields(fields_store, serial_run, squares):
    """The contrast is needed for its squares, whether or not the filter has it."""
    store = coarse_store(fields_store)
    wiener = WienerFilter(squares, 0.1, ((1.0,) * len(squares),) * 3)
    add_filtered(store, wiener, serial_run(), thickness=6)
    assert_same(FieldStore(store.url).read(WIENER), wiener.velocity(*facts(store)))


def test_divergence_is_the_contrast(fields_store, serial_run):
    """Linear theory is continuity: div v = -f a H delta, but for waves at the Nyquist frequency."""
    store = FieldStore(fields_store(27, shard=9, chunk=9).url)
    add_flow(
        store, LinearTheory(0.0), 50.0, adding_linear_velocity(store.url, 0.0), serial_run(),
        thickness=4,
    )  # fmt: skip
    velocity = torch.from_numpy(FieldStore(store.url).read("linear_velocity", lead=(0,)))
    modes = forward(velocity)
    waves = calculus.odd_wavenumbers(modes, store.metadata.box_size)
    divergence = calculus.divergence_modes(modes, waves)
    contrast = forward(facts(store)[0])
    contrast[0, 0, 0] = 0.0
    torch.testing.assert_close(
        divergence, -50.0 * contrast, rtol=0, atol=50.0 * 1e-5 * float(contrast.abs().max())
    )


def test_progress_counts_every_task(store, serial_run):
    told = []
    add_filtered(store, make_filter("wiener"), serial_run(listener=told.append), thickness=6)
    started = [event for event in told if isinstance(event, StageStarted)]
    advanced = [event for event in told if isinstance(event, StageAdvanced)]
    # Bars of 6, 6 | 6, 6 | 4 cells along x and y, and slabs of 6, 6 and 3 planes: two passes over
    # both, one over bars that makes the velocity, and three shards along each axis to write.
    assert [event.total for event in started] == [2 * (25 + 3) + 25 + 27]
    assert [event.done for event in advanced] == list(range(1, started[0].total + 1))
    assert advanced[0].note == "bars"
    assert advanced[-1].note == "write"


@pytest.mark.cluster
@pytest.mark.parametrize("which", [pytest.param("linear", marks=pytest.mark.slow), "wiener"])
def test_ray_gives_the_same(store, serial_run, ray_session, which):
    run = replace(serial_run(), session=ray_session)
    if which == "linear":
        add_linear(store, run, thickness=5)
        found = FieldStore(store.url).read("linear_velocity", lead=(0,))
        assert_same(found, linear_velocity(*facts(store), RADIUS))
    else:
        wiener = make_filter("wiener")
        add_filtered(store, wiener, run, thickness=5)
        assert_same(FieldStore(store.url).read(WIENER), wiener.velocity(*facts(store)))


@pytest.mark.cluster
def test_a_box_larger_than_memory_goes_to_ray(store, serial_run, ray_session, monkeypatch):
    """With the same results, and what is there is not made again."""
    wiener = make_filter("wiener")
    told = []
    run = replace(serial_run(listener=told.append), session=ray_session)
    monkeypatch.setattr("cosmoflow.stages.run.available_memory", lambda: 100 << 10)
    for _ in range(2):
        assert ensure_flows(store.url, (RADIUS, 0.0), wiener, run) == (WIENER, 0, 1)
    assert sum(isinstance(event, StageStarted) for event in told) == 3
    found = FieldStore(store.url)
    for index, radius in enumerate((RADIUS, 0.0)):
        expected = linear_velocity(*facts(store), radius)
        assert_same(found.read("linear_velocity", lead=(index,)), expected)
    assert_same(found.read(WIENER), wiener.velocity(*facts(store)))


def test_a_box_that_fits_stays_in_memory(store, serial_run, monkeypatch):
    monkeypatch.setattr(slabs, "add_flow", None)
    ensure_flows(store.url, (RADIUS,), make_filter("wiener-log"), serial_run())


def allow(run, memory):
    """Return a run whose workers may have so many bytes."""
    engine = run.settings.engine.model_copy(update={"memory": memory})
    return replace(run, settings=run.settings.model_copy(update={"engine": engine}))


def test_less_memory_means_narrower_bars_and_thinner_slabs(serial_run, monkeypatch):
    monkeypatch.setattr(SerialEngine, "cpus", 2)
    grid = Grid(512, 1024.0, 128, 64)
    plans = [
        plan_flow(grid, SETS["wiener"], allow(serial_run(), megabytes << 20))
        for megabytes in (340, 440, 1200, 9000)
    ]
    for less, more in itertools.pairwise(plans):
        assert less.worker_memory <= more.worker_memory
        assert less.planes <= more.planes
        assert less.bars >= more.bars
    assert plans[0].planes <= GROUP + 1
    # Chunks are read whole, unless memory is shorter still.
    assert plans[0].bars == 8 * 8
    assert plans[-1].bars == 4 * 4
    assert plans[-1].cut.whole_shards
    for plan, megabytes in zip(plans, (340, 440, 1200, 9000), strict=True):
        assert plan.worker_memory <= megabytes << 20


def test_too_little_memory_is_refused_and_nothing_is_begun(store, serial_run):
    before = sorted(path.name for path in Path(store.url).iterdir())
    run = allow(serial_run(), 100 << 10)
    with pytest.raises(ConfigError, match="memory"):
        ensure_flows(store.url, (RADIUS,), None, run)
    assert sorted(path.name for path in Path(store.url).iterdir()) == before


def test_what_a_failed_run_leaves_passes_for_nothing(store, serial_run, monkeypatch):
    """It dies while the last shards are written; the next run makes all of it."""
    monkeypatch.setattr(SerialEngine, "cpus", 2)
    wiener = make_filter("wiener-log")
    real = transform.finish_and_write
    calls = []

    def die(*arguments):
        calls.append(arguments)
        if len(calls) % 9 == 0:
            raise MemoryError
        return real(*arguments)

    monkeypatch.setattr(transform, "finish_and_write", die)
    for add in (add_linear, lambda *to: add_filtered(to[0], wiener, to[1])):
        with pytest.raises(MemoryError):
            add(store, serial_run())
    monkeypatch.undo()
    left = FieldStore(store.url)
    assert [np.isnan(scale) for scale in left.smoothing_scales()] == [True]
    assert filter_digest(left) == ""
    assert ensure_flows(store.url, (RADIUS,), wiener, serial_run()) == (WIENER, 0)
    found = FieldStore(store.url)
    assert found.smoothing_scales() == [RADIUS]
    assert_same(found.read("linear_velocity", lead=(0,)), linear_velocity(*facts(store), RADIUS))
    assert_same(found.read(WIENER), wiener.velocity(*facts(store)))


def test_a_damaged_density_is_reported(store, serial_run):
    shutil.rmtree(Path(store.url, "density", "c", "2"))
    with pytest.raises(DataError, match="density"):
        add_linear(store, serial_run(), thickness=5)
    assert not any(scale == RADIUS for scale in FieldStore(store.url).smoothing_scales())
