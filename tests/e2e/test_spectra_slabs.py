"""Spectra through slabs: those of the whole box in NumPy, whatever the shards and the engine."""

import gc
import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

from cosmoflow.errors import ConfigError, DataError, IncompleteError, OutputExistsError
from cosmoflow.numerics import fourier
from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.comparison import QUANTITIES
from cosmoflow.numerics.slabs import GROUP, plane_blocks
from cosmoflow.numerics.spectra import Products, Term, WaveBins, join_interlaced, sum_products
from cosmoflow.stages.derive import derive
from cosmoflow.stages.inputs.readers import Method, StoreReader
from cosmoflow.stages.paint import paint
from cosmoflow.stages.slabs.plan import Grid
from cosmoflow.stages.slabs.sources import Derived, Variable
from cosmoflow.stages.spectra import command as stage
from cosmoflow.stages.spectra import spectra
from cosmoflow.stages.spectra.plan import plan_power
from cosmoflow.stages.spectra.power import measure_power, sum_power
from cosmoflow.storage.fields import FieldStore
from tests import derivatives
from tests.cases import each
from tests.conftest import refused

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
]

GRID, CELL = 24, 2.0
SIZE = GRID * CELL
SHARDS = {1: 24, 8: 12, 27: 8}


def numpy_power(a, b=None):
    """Bin ``Re a b*`` of full complex transforms, one mode at a time; sum over components."""
    a = np.asarray(a, np.float64).reshape(-1, GRID, GRID, GRID)
    b = a if b is None else np.asarray(b, np.float64).reshape(a.shape)
    product = sum(np.fft.fftn(x) * np.conj(np.fft.fftn(y)) for x, y in zip(a, b, strict=True))
    m = np.fft.fftfreq(GRID, 1.0 / GRID)
    length = np.sqrt(m[:, None, None] ** 2 + m[None, :, None] ** 2 + m[None, None, :] ** 2)
    index = np.rint(length).astype(int).ravel()
    count = np.bincount(index)
    mean = np.bincount(index, product.real.ravel()) / count
    k = np.bincount(index, length.ravel()) / count * 2.0 * np.pi / SIZE
    return k[1 : GRID // 2 + 1], mean[1 : GRID // 2 + 1] * SIZE**3 / GRID**6, count


def assert_power(found, expected, atol=0.0):
    """To 1e-5 in every bin, and to the rounding of float32 transforms in amplitude.

    That shows where a power is 1e-9 of the largest or less, as in the steepest synthetic fields.
    """
    rounding = 2e-9 * np.sqrt(expected * np.max(expected)) if np.min(expected) >= 0.0 else 0.0
    assert (np.abs(found - expected) <= 1e-5 * np.abs(expected) + rounding + atol).all()


@pytest.fixture
def store(fields_store):
    return FieldStore(fields_store(GRID, shard=12, chunk=6, cell=CELL).url)


@each("shards", SHARDS)
@each("name", ["density", "velocity"])
def test_spectra_are_those_of_numpy(fields_store, serial_run, tmp_path, shards, name):
    shard = SHARDS[shards]
    url = fields_store(GRID, shard=shard, chunk=shard // 2, cell=CELL).url
    found = spectra(url, str(tmp_path / "p.zarr"), name, serial_run(), compensate="none")
    k, power, count = numpy_power(FieldStore(url).read(name))
    np.testing.assert_allclose(found.k, k, rtol=1e-12)
    np.testing.assert_array_equal(found.modes, count[1 : GRID // 2 + 1])
    assert_power(found.power, power)
    with xr.open_zarr(str(tmp_path / "p.zarr"), consolidated=False) as stored:
        xr.testing.assert_identical(stored.load().drop_attrs(), found.drop_attrs())
        assert stored.attrs["status"] == "complete"


@each("thickness", [3, 5, 24])
def test_bars_and_slabs_of_any_size_give_the_same(store, serial_run, thickness):
    """Of a stored field, and of fields made from cells around each bar."""
    run, grid, bins = serial_run(), Grid.of(store), WaveBins.linear(GRID, SIZE)
    names = ("divergence", "theta_p", "momentum_curl", "speed")
    reader = StoreReader.of(store)
    sources = [Variable(store.url, "density", 1), Derived(reader, CELL, names)]
    products = [Products((Term((index,)),), ((0, 0),), bins) for index in range(1 + len(names))]
    plan = plan_power(sources, grid, run, stage="spectra", thickness=thickness)
    density, *found = sum_power(sources, products, plan, run)
    assert_power(density.power(), numpy_power(store.read("density"))[1])
    for name, power in zip(names, found, strict=True):
        whole = Derived(reader, CELL, (name,)).read(Block((0, 0, 0), (GRID,) * 3))
        assert_power(power.power(), numpy_power(whole)[1])


def test_slabs_that_begin_with_groups_of_planes_give_the_same_bit_for_bit(store, serial_run):
    """However wide bars and thick slabs are; and with any memory slabs begin with a group."""
    source = Variable(store.url, "velocity", 3)
    products = Products((Term((0,)),), ((0, 0),), WaveBins.linear(GRID, SIZE), axis=2)
    run, found = serial_run(), []
    for thickness in (4, 8, 24):
        plan = plan_power([source], Grid.of(store), run, stage="spectra", thickness=thickness)
        found += sum_power([source], [products], plan, run)
    for other in found[1:]:
        np.testing.assert_array_equal(other.products, found[0].products)
        np.testing.assert_array_equal(other.k, found[0].k)
    for megabytes in (200, 300, 1000):
        run = allow(serial_run(), megabytes << 20)
        plan = plan_power([source], Grid(256, 512.0, 128, 64), run, stage="spectra")
        assert all(slab.start % GROUP == 0 for slab in plan.cut.slabs)


@each("cells", [16, 100, 256, 1024])
@each("planes", [slice(0, 16), slice(16, 21), slice(3, 30), slice(64, 128)])
def test_blocks_of_planes_cover_a_slab_once_and_lie_in_one_group(cells, planes):
    blocks = plane_blocks(planes, cells)
    covered = [plane for block in blocks for plane in range(block.start, block.stop)]
    assert covered == list(range(planes.stop - planes.start))
    for block in blocks:
        first, last = planes.start + block.start, planes.start + block.stop - 1
        assert first // GROUP == last // GROUP


@each("thickness", [5, 8, 24])
def test_interlaced_pairs_are_joined_plane_by_plane(fields_store, serial_run, thickness):
    """As in memory, where the whole transforms are joined."""
    stores = [FieldStore(fields_store(GRID, cell=CELL, shard=12, seed=seed).url) for seed in (1, 2)]
    products = Products((Term((0, 1), window=2),), ((0, 0),), WaveBins.linear(GRID, SIZE))
    sources = [Variable(one.url, "density", 1, offset=1.0) for one in stores]
    run = serial_run()
    plan = plan_power(sources, Grid.of(stores[0]), run, stage="spectra", thickness=thickness)
    (found,) = sum_power(sources, [products], plan, run)
    first, second = (fourier.forward(torch.from_numpy(s.read("density") - 1.0)) for s in stores)
    joined = join_interlaced(first, second)
    expected = sum_products([joined], [(0, 0)], WaveBins.linear(GRID, SIZE), windows=[2])
    assert_power(found.power(), expected.power())


def test_nothing_of_a_measurement_waits_for_a_garbage_collection(store, serial_run):
    """Cycles would hold the parts, which are as large as the boxes, until then."""
    truth = StoreReader.of(store, "truth")
    linear = replace(truth, method=Method("linear theory", store.url, radius=4.0))
    readers = {"truth": truth, "linear theory": linear}
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        measure_power(readers, ["divergence"], Grid.of(store), serial_run())
        gc.collect()
        held = [
            one for one in gc.garbage if getattr(one, "__module__", "") == measure_power.__module__
        ]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert not held


@pytest.mark.cluster
@each("shards", [8, 27])
def test_ray_gives_the_same_bit_for_bit(fields_store, serial_run, ray_session, tmp_path, shards):
    shard = SHARDS[shards]
    url = fields_store(GRID, shard=shard, chunk=shard // 2, cell=CELL).url
    here = serial_run()
    there = replace(here, session=ray_session)
    how = {"cross": "divergence", "compensate": "none"}
    first, second = (
        spectra(url, str(tmp_path / f"{run.session is ray_session}.zarr"), "density", run, **how)
        for run in (here, there)
    )
    xr.testing.assert_equal(first, second)


def test_cross_spectra_of_two_stores(fields_store, serial_run, tmp_path):
    one = FieldStore(fields_store(GRID, cell=CELL, shard=12, seed=1).url)
    two = FieldStore(fields_store(GRID, cell=CELL, shard=8, seed=2).url)
    found = spectra(
        one.url, str(tmp_path / "p.nc"), "velocity", serial_run(),
        cross_fields=two.url, compensate="none",
    )  # fmt: skip
    a, b = one.read("velocity"), two.read("velocity")
    cross, first, second = (numpy_power(*pair)[1] for pair in ((a, b), (a,), (b,)))
    # Bins of little correlation are differences of large products.
    assert_power(found.power, cross, atol=1e-5 * np.sqrt(first * second).max())
    assert_power(found.power_first, first)
    assert_power(found.power_second, second)
    # Rounding of the steepest powers would count twice here.
    np.testing.assert_allclose(found.transfer, found.power_second / found.power_first, rtol=1e-12)
    assert_power(found.correlation, cross / np.sqrt(first * second), atol=1e-5)


def test_the_window_is_that_of_the_painting_also_where_a_field_was_derived(
    particle_store, serial_run, tmp_path
):
    painted, derived = (str(tmp_path / f"{name}.zarr") for name in ("painted", "derived"))
    paint(particle_store(GRID).url, painted, serial_run(paint={"grid": GRID}))
    derive(painted, derived, ["momentum"], serial_run())
    one, two = (
        spectra(url, str(tmp_path / f"{number}.nc"), "momentum", serial_run())
        for number, url in enumerate((painted, derived))
    )
    assert one.attrs["window"] == two.attrs["window"] == "cic divided out"
    np.testing.assert_allclose(two.power, one.power, rtol=1e-4)
    out = str(tmp_path / "both.nc")
    both = spectra(painted, out, "velocity", serial_run(), cross="momentum")
    assert both.attrs["window"] == "velocity: none, momentum: cic divided out"


@each("shards", [8, 27])
def test_every_quantity_is_that_of_the_box_in_memory(fields_store, serial_run, shards):
    shard = SHARDS[shards]
    stores = [
        FieldStore(fields_store(GRID, cell=CELL, shard=shard, seed=seed).url) for seed in (1, 2)
    ]
    readers = {store.url: StoreReader.of(store) for store in stores}
    sums = measure_power(readers, tuple(QUANTITIES.values()), Grid.of(stores[0]), serial_run())
    boxes = [{name: torch.from_numpy(s.read(name)).double() for name in ("density", "velocity")}
             for s in stores]  # fmt: skip
    expected = {
        "speed": lambda rho, v: v.norm(dim=0),
        "momentum_speed": lambda rho, v: v.norm(dim=0) * (rho - 1.0),
        "theta_p": lambda rho, v: derivatives.curl(rho * v, SIZE, "difference").norm(dim=0),
        "divergence": lambda rho, v: derivatives.divergence(v, SIZE),
        "vorticity": lambda rho, v: derivatives.curl(v, SIZE),
        "momentum": lambda rho, v: rho * v,
        "momentum_curl": lambda rho, v: derivatives.curl(rho * v, SIZE),
    }
    assert set(expected) == set(QUANTITIES.values())
    for name, make in expected.items():
        a, b = (make(box["density"], box["velocity"]).numpy() for box in boxes)
        found = sums[name].spectrum(0, 1)
        first, second, cross = (numpy_power(*pair)[1] for pair in ((a,), (b,), (a, b)))
        small = 1e-5 * np.sqrt(first * second)
        # A potential flow has no curl but rounding.
        floor = 1e-9 * numpy_power(boxes[0]["velocity"].numpy())[1].max()
        assert_power(found.auto_a, first, atol=floor)
        assert_power(found.auto_b, second, atol=floor)
        assert (np.abs(found.cross - cross) < small + floor).all(), name


def test_sub_boxes_average_to_the_spectrum_of_all(store, serial_run, tmp_path):
    run = serial_run(spectra={"subbox": 24.0})
    found = spectra(store.url, str(tmp_path / "p.zarr"), "density", run, compensate="none")
    assert found.sizes["box"] == 8
    assert found.attrs["side"] == 24.0
    np.testing.assert_allclose(found.power, found.box_power.mean("box"), rtol=1e-12)
    standard = found.box_power.std("box", ddof=1) / np.sqrt(8)
    np.testing.assert_allclose(found.power_error, standard, rtol=1e-9)
    corner = store.read_block("density", Block((12, 0, 12), (12, 12, 12)))
    alone = np.abs(np.fft.fftn(corner.astype(np.float64))) ** 2
    lowest = [alone[1, 0, 0], alone[0, 1, 0], alone[0, 0, 1], alone[1, 1, 0], alone[1, 0, 1],
              alone[0, 1, 1], alone[1, -1, 0], alone[1, 0, -1], alone[0, 1, -1]]  # fmt: skip
    assert float(found.box_power[5, 0]) == pytest.approx(
        np.mean(lowest) * 24.0**3 / 12**6, rel=1e-5
    )


def test_multipoles_and_logarithmic_bins(store, serial_run, tmp_path):
    plain = spectra(store.url, str(tmp_path / "a.zarr"), "density", serial_run())
    run = serial_run(spectra={"multipoles": "z"})
    poles = spectra(store.url, str(tmp_path / "b.zarr"), "density", run)
    assert poles.pole.values.tolist() == [0, 2, 4]
    np.testing.assert_allclose(poles.power.sel(pole=0), plain.power, rtol=1e-12)
    run = serial_run(spectra={"bins": "log", "per_decade": 8})
    coarse = spectra(store.url, str(tmp_path / "c.zarr"), "density", run)
    assert float(coarse.modes.sum()) == float(plain.modes.sum())
    total = float((coarse.power * coarse.modes).sum())
    assert total == pytest.approx(float((plain.power * plain.modes).sum()), rel=1e-12)


def test_a_spectrum_is_resumed_replaced_and_kept_as_others_are(
    store, serial_run, tmp_path, monkeypatch
):
    out = tmp_path / "p.zarr"
    made = spectra(store.url, str(out), "density", serial_run())
    for existing, field, error in (
        ("error", "density", OutputExistsError),
        ("resume", "velocity", ConfigError),
    ):
        with pytest.raises(error):
            spectra(store.url, str(out), field, serial_run(existing=existing))
    # One that was stopped is made anew.
    group = zarr.open_group(str(out))
    group.attrs["status"] = "incomplete"
    del group["power"]
    again = spectra(store.url, str(out), "density", serial_run(existing="resume"))
    xr.testing.assert_equal(again, made)
    stored = zarr.open_group(str(out))
    assert stored.attrs["status"] == "complete"
    assert stored.attrs["provenance"]["stage"] == "spectra"
    # One that is complete is returned; nothing is measured or deleted.
    monkeypatch.setattr(stage, "measure", None)
    kept = spectra(store.url, str(out), "density", serial_run(existing="resume"))
    xr.testing.assert_identical(kept, made)
    (out / "power" / "c" / "0").write_bytes(b"damaged")
    with pytest.raises(DataError, match="damaged"):
        spectra(store.url, str(out), "density", serial_run(existing="resume"))
    monkeypatch.undo()
    spectra(store.url, str(out), "velocity", serial_run(existing="overwrite"))
    assert zarr.open_group(str(out)).attrs["field"] == "velocity"


def test_what_comes_to_lie_in_its_place_meanwhile_is_left_alone(
    store, serial_run, tmp_path, monkeypatch
):
    out = tmp_path / "p.nc"
    real = stage.measure

    def disturbed(*arguments):
        found = real(*arguments)
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").write_text("two years of work")
        return found

    monkeypatch.setattr(stage, "measure", disturbed)
    with pytest.raises(OutputExistsError):
        spectra(store.url, str(out), "density", serial_run())
    assert (out / "thesis.txt").read_text() == "two years of work"


def allow(run, memory):
    """Return a run whose workers may have so many bytes."""
    engine = run.settings.engine.model_copy(update={"memory": memory})
    return replace(run, settings=run.settings.model_copy(update={"engine": engine}))


def test_less_memory_means_narrower_bars_and_thinner_slabs_until_it_is_refused(serial_run):
    source = Variable("nowhere", "velocity", 3)
    grid = Grid(1024, 2048.0, 128, 64)
    plans = []
    for gigabytes in (1, 2, 4, 8):
        run = allow(serial_run(), gigabytes << 30)
        plans.append(plan_power([source], grid, run, stage="spectra"))
        assert plans[-1].worker_memory <= gigabytes << 30
    for less, more in itertools.pairwise(plans):
        assert less.bars >= more.bars
        assert less.slabs >= more.slabs
    # As wide as one write covers, and no more: other cores want bars as well.
    assert plans[-1].bars == 8 * 8
    plan = plan_power([source], grid, allow(serial_run(), 1 << 28), stage="spectra")
    assert plan.worker_memory > 1 << 28


def test_too_little_memory_is_refused_and_leaves_nothing(store, serial_run, tmp_path):
    out = tmp_path / "p.zarr"
    run = allow(serial_run(), 100 << 10)
    refused(ConfigError, 2, lambda: spectra(store.url, str(out), "density", run), "memory")
    assert not out.exists()


def damaged(fields_store, cell):
    """A store with one value that is no number."""
    store = fields_store(GRID, shard=12, chunk=6, cell=CELL)
    zarr.open_group(store.url)["density"][cell] = np.nan
    return store.url


def test_what_is_no_number_is_refused(fields_store, serial_run, tmp_path):
    url, out = damaged(fields_store, (3, 4, 20)), tmp_path / "p.zarr"
    call = lambda: spectra(url, str(out), "density", serial_run())  # noqa: E731
    refused(DataError, 3, call, "not finite", "density", "1 cells")
    assert not out.exists()


def test_a_missing_chunk_is_refused(store, serial_run, tmp_path):
    shutil.rmtree(Path(store.url, "velocity", "c", "0", "1"))
    out = tmp_path / "p.zarr"
    call = lambda: spectra(store.url, str(out), "velocity", serial_run())  # noqa: E731
    refused(DataError, 3, call, "velocity")
    assert not out.exists()


@each(
    ("field", "how", "error", "code", "words"),
    [
        ("densety", {}, ConfigError, 2, ["densety", "density", "speed"]),
        ("density", {"cross": "velocity"}, ConfigError, 2, ["scalar", "vector"]),
        ("vorticity", {"subbox": 24.0}, ConfigError, 2, ["periodic", "derive"]),
        ("density", {"subbox": 500.0}, ConfigError, 2, ["500 Mpc/h", "48"]),
    ],
)
def test_bad_requests(store, serial_run, tmp_path, field, how, error, code, words):
    own = {"spectra": {"subbox": how.pop("subbox")}} if "subbox" in how else {}
    out = tmp_path / "p.zarr"
    refused(
        error, code, lambda: spectra(store.url, str(out), field, serial_run(**own), **how), *words
    )
    assert not out.exists()


@each("what", ["grid", "box_size", "redshift"])
def test_stores_of_unlike_boxes_are_not_crossed(fields_store, serial_run, tmp_path, what):
    one = fields_store(GRID, cell=CELL).url
    changed = {"grid": (20, 2.4), "box_size": (GRID, 3.0), "redshift": (GRID, CELL)}[what]
    two = fields_store(changed[0], cell=changed[1]).url
    if what == "redshift":
        zarr.open_group(two).attrs["redshift"] = 1.0
    call = lambda: spectra(  # noqa: E731
        one, str(tmp_path / "p.zarr"), "density", serial_run(), cross_fields=two
    )
    refused(DataError, 3, call, what, two, one)


def test_an_unfinished_store_is_refused(fields_store, serial_run, tmp_path):
    url = fields_store(GRID, cell=CELL, finish=False).url
    call = lambda: spectra(url, str(tmp_path / "p.zarr"), "density", serial_run())  # noqa: E731
    with pytest.raises((IncompleteError, DataError), match=r"finish|incomplete|whole"):
        call()
