"""Flows that are kept in a store: of its density and cosmology, finite, or not there."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

from cosmoflow.errors import DataError, IncompleteError, StorageError
from cosmoflow.numerics.fourier import linear_velocity
from cosmoflow.numerics.wiener import WienerFilter
from cosmoflow.stages.derive import derive
from cosmoflow.stages.evaluate.plan import lacking
from cosmoflow.stages.flows import ensure_flows
from cosmoflow.stages.flows import stored as stage
from cosmoflow.stages.infer import command as inference
from cosmoflow.stages.infer import infer, infer_array
from cosmoflow.stages.inputs.expansion import growth_rate_hubble
from cosmoflow.stages.models import save_model
from cosmoflow.stages.spectra import spectra
from cosmoflow.stages.train import command as training
from cosmoflow.stages.train import train
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.flows import (
    WIENER,
    adding_wiener_velocity,
    check_filter,
    filter_digest,
)
from cosmoflow.storage.origins import noted_origin
from cosmoflow.storage.urls import write_bytes
from tests.cases import each
from tests.conftest import UNIT_FILTER, keep_linear_velocity, refused, synthetic_fields

pytestmark = pytest.mark.usefixtures("quick_claims")

GRID, RADIUS = 8, 2.0
LINEAR = "linear_velocity"


@pytest.fixture
def quick_claims(monkeypatch):
    from cosmoflow.storage.claims import Claim

    monkeypatch.setattr(Claim, "PERIOD", 0.2)


@pytest.fixture
def url(fields_store):
    return fields_store(GRID, shard=8, chunk=4).url


@pytest.fixture(params=["memory", "slabs"])
def how(request, monkeypatch):
    """Flows that are made in memory, or in slabs."""
    monkeypatch.setattr(stage, "_fits", lambda *arguments: request.param == "memory")
    return request.param


def expected(url, radius=RADIUS):
    """Return linear theory of what the store holds now."""
    store = FieldStore(url)
    with xr.open_zarr(url, consolidated=False) as data:
        density = torch.from_numpy(data["density"].values)
    rate = growth_rate_hubble(store.metadata)
    return linear_velocity(density, store.metadata.box_size, rate, radius).numpy()


def correlation(one, other):
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


def correct_density(url):
    zarr.open_group(url, mode="r+")["density"][:] = synthetic_fields(GRID, seed=9)["density"]


CORRECTIONS = [
    correct_density,
    lambda url: zarr.open_group(url, mode="r+").attrs.update(redshift=2.0),
    lambda url: zarr.open_group(url, mode="r+").attrs.update(cosmology={"h": 0.7, "Omega_m": 0.6}),
    lambda url: zarr.open_group(url, mode="r+").attrs.update(box_size=48.0),
]


def contents(url):
    return {
        str(path.relative_to(url)): path.read_bytes()
        for path in sorted(Path(url).rglob("*"))
        if path.is_file()
    }


def test_flows_follow_what_was_corrected(url, serial_run, how):
    """One correction after the other, each in place."""
    heard = []
    run = serial_run(listener=heard.append)
    for _ in range(2):
        assert ensure_flows(url, (RADIUS, 4.0), UNIT_FILTER, run) == (WIENER, 0, 1)
    assert sum("velocity of" in getattr(event, "text", "") for event in heard) == 3
    for correct in CORRECTIONS if how == "memory" else [correct_density]:
        old = FieldStore(url).read(LINEAR, lead=(0,))
        correct(url)
        assert ensure_flows(url, (RADIUS, 4.0), UNIT_FILTER, run) == (WIENER, 0, 1)
        store = FieldStore(url)
        assert store.smoothing_scales() == [RADIUS, 4.0]
        for lead, radius in ((0, RADIUS), (1, 4.0)):
            found, right = store.read(LINEAR, lead=(lead,)), expected(url, radius)
            np.testing.assert_allclose(found, right, atol=1e-4 * right.std())
        right = expected(url, 0.0)
        np.testing.assert_allclose(store.read(WIENER), right, atol=1e-4 * right.std())
        assert np.abs(old - store.read(LINEAR, lead=(0,))).max() > 0.1 * old.std()


def test_infer_takes_the_flow_of_the_corrected_density(url, serial_run, tmp_path):
    """The flow of the first density correlates with the right answer by far less than 1."""
    options = {"infer": {"tile": 8, "shard": 8}}
    first = infer(url, str(tmp_path / "a.zarr"), "linear:2", serial_run(**options))
    first = first["velocity"].values
    assert correlation(first, expected(url)) == pytest.approx(1.0, abs=1e-6)
    correct_density(url)
    assert correlation(first, expected(url)) < 0.6
    found = infer(url, str(tmp_path / "b.zarr"), "linear:2", serial_run(**options))
    right = expected(url)
    assert correlation(found["velocity"].values, right) == pytest.approx(1.0, abs=1e-6)
    assert found["velocity"].values.std() == pytest.approx(right.std(), rel=1e-5)


def test_what_a_flow_was_made_from_is_noted(url, serial_run):
    ensure_flows(url, (RADIUS,), UNIT_FILTER, serial_run())
    with xr.open_zarr(url, consolidated=False) as data:
        wiener, linear = data[WIENER].attrs["made_from"], data[LINEAR].attrs["made_from"]
    assert linear == {"2.0": wiener}
    assert wiener["redshift"] == 0.0
    assert wiener["box_size"] == 2.0 * GRID
    assert wiener["cosmology"]["Omega_m"] == FieldStore(url).metadata.cosmology.Omega_m
    assert wiener["density"] == FieldStore(url).checksum("density")
    # f H = Omega_m^0.55 100 km/s/(Mpc/h) at z = 0, by Linder's fit.
    rate = 100.0 * wiener["cosmology"]["Omega_m"] ** 0.55
    assert wiener["growth_rate_hubble"] == pytest.approx(rate, rel=0.01)


def test_flows_that_do_not_say_what_they_are_of_are_not_used(url, serial_run):
    """Such as those of older versions, or a variable of this name that xarray wrote."""
    wrong = np.full((1, 3, GRID, GRID, GRID), 7.0, np.float32)
    dims = ("component", "x", "y", "z")
    with xr.open_zarr(url, consolidated=False) as data:
        added = xr.Dataset(
            {LINEAR: (("smoothing", *dims), wrong), WIENER: (dims, wrong[0])},
            {"smoothing": [RADIUS], **{name: data[name].values for name in ("x", "y", "z")}},
        )
        added.attrs = data.attrs
    added[WIENER].attrs["filter"] = UNIT_FILTER.digest
    added.to_zarr(url, mode="a", consolidated=False, zarr_format=3)
    assert FieldStore(url).smoothing_scales() == [RADIUS]
    assert lacking(FieldStore(url), [RADIUS]) == [RADIUS]
    assert ensure_flows(url, (), UNIT_FILTER, serial_run()) == (WIENER,)
    # Its scales are the user's: they are not dropped for one of ours.
    refused(
        DataError, 3, lambda: ensure_flows(url, (4.0,), None, serial_run()), "another program", url
    )
    np.testing.assert_array_equal(FieldStore(url).read(LINEAR, lead=(0,)), wrong[0])
    # The remedy of the message.
    shutil.rmtree(f"{url}/{LINEAR}")
    assert ensure_flows(url, (RADIUS,), UNIT_FILTER, serial_run()) == (WIENER, 0)
    right = expected(url)
    found = FieldStore(url).read(LINEAR, lead=(0,))
    np.testing.assert_allclose(found, right, atol=1e-4 * right.std())
    assert correlation(FieldStore(url).read(WIENER), expected(url, 0.0)) > 0.9999


def test_a_store_that_cannot_be_written(url, serial_run, monkeypatch):
    """Flows without a note are used with a warning; those of another density are not."""
    keep_linear_velocity(url, RADIUS, expected(url))

    def refuse(*arguments, **options):
        raise StorageError("read-only file system", where=url)

    monkeypatch.setattr(stage, "claim", refuse)
    run = serial_run()
    heard = []
    assert ensure_flows(url, (RADIUS,), None, serial_run(listener=heard.append)) == (0,)
    assert [event.level for event in heard] == ["warning"]
    assert "the origin of the flows" in heard[0].text
    with pytest.raises(StorageError):
        ensure_flows(url, (RADIUS, 4.0), None, run)
    monkeypatch.undo()
    ensure_flows(url, (RADIUS,), None, run)
    correct_density(url)
    monkeypatch.setattr(stage, "claim", refuse)
    with pytest.raises(StorageError):
        ensure_flows(url, (RADIUS,), None, run)


# Flows that are not finite


def make_filter(weight):
    return WienerFilter(("contrast",), 0.1, ((1.0,), (1.0,), (weight,)))


@each("weight", [float("nan"), 1e39, 1e38])
def test_a_bad_filter_leaves_the_store_as_it_was(url, serial_run, how, weight):
    before = contents(url)
    refused(
        DataError, 3,
        lambda: ensure_flows(url, (), make_filter(weight), serial_run(), model="my-model"),
        "filter of the model", "my-model", "another model",
    )  # fmt: skip
    assert contents(url) == before


def test_a_bad_filter_leaves_the_flow_of_a_good_one(url, serial_run):
    ensure_flows(url, (), UNIT_FILTER, serial_run())
    before = contents(url)
    for weight in (float("nan"), 1e38):
        with pytest.raises(DataError):
            ensure_flows(url, (), make_filter(weight), serial_run())
        assert contents(url) == before


@each("wanted", [((RADIUS,), None), ((), UNIT_FILTER)])
def test_a_density_that_overflows_is_blamed(url, serial_run, how, wanted):
    zarr.open_group(url, mode="r+")["density"][:] = np.float32(3e38)
    before = contents(url)
    refused(
        DataError, 3, lambda: ensure_flows(url, *wanted, serial_run(), model="my-model"),
        f"{url}, density", "contrast is not finite",
    )  # fmt: skip
    assert contents(url) == before


def test_a_scale_that_is_refused_leaves_the_others(url, serial_run, monkeypatch):
    ensure_flows(url, (RADIUS,), None, serial_run())
    before = contents(url)
    monkeypatch.setattr(stage, "_fits", lambda *arguments: False)
    monkeypatch.setattr(stage, "growth_rate_hubble", lambda metadata: 1e38)
    with pytest.raises(DataError, match="not finite"):
        ensure_flows(url, (4.0,), None, serial_run())
    store = FieldStore(url)
    assert store.smoothing_scales() == [RADIUS]
    left = contents(url)
    assert {key for key in left if "/c/" in key} == {key for key in before if "/c/" in key}


def test_infer_and_infer_array_blame_the_model(url, serial_run, tmp_path):
    model = str(tmp_path / "model")
    boxes = [url, url]
    trained = train(boxes, model, serial_run(train={"model": "wiener", "crop": 8}))
    wiener = trained.spec.filter
    # Finite, so that the description of the model passes; the velocities are above that of light.
    weights = ((1e6,) * len(wiener.fields),) * len(wiener.weights)
    trained.spec = replace(trained.spec, filter=replace(wiener, weights=weights))
    save_model(model, trained)
    before = contents(url)
    density = FieldStore(url).read("density")
    for predict in (
        lambda: infer(url, str(tmp_path / "out.zarr"), model, serial_run()),
        lambda: infer_array(density, 2.0 * GRID, model=model, redshift=0.0, run=serial_run()),
    ):
        refused(DataError, 3, predict, "filter of the model", model)
    assert contents(url) == before
    assert not (tmp_path / "out.zarr").exists()
    # A filter as it should be is not to blame: velocities grow with the box, in whatever unit.
    wrong = 3e4
    sound = replace(wiener, weights=((0.9,) * len(wiener.fields),) * len(wiener.weights))
    trained.spec = replace(trained.spec, filter=sound, cell_size=wrong / GRID)
    save_model(model, trained)
    zarr.open_group(url).attrs["box_size"] = wrong
    blamed = ["check the box size", f"a box of {wrong:g} Mpc/h", model]
    for predict in (
        lambda: infer(url, str(tmp_path / "out.zarr"), model, serial_run()),
        lambda: infer_array(density, wrong, model=model, redshift=0.0, run=serial_run()),
    ):
        refused(DataError, 3, predict, *blamed)


# Readers


def test_a_reader_notices_a_flow_of_another_density(url, serial_run):
    """Of the same filter: its workers stop, in whatever order they read."""
    ensure_flows(url, (), UNIT_FILTER, serial_run())
    origin = noted_origin(FieldStore(url))
    check_filter(url, UNIT_FILTER.digest, origin)
    correct_density(url)
    ensure_flows(url, (), UNIT_FILTER, serial_run())
    assert filter_digest(FieldStore(url)) == UNIT_FILTER.digest
    with pytest.raises(IncompleteError, match="another density") as caught:
        check_filter(url, UNIT_FILTER.digest, origin)
    assert "--overwrite" in caught.value.remedy


def test_infer_stops_if_another_run_replaces_the_flow_that_it_reads(
    url, serial_run, tmp_path, monkeypatch
):
    made = inference.ensure_flows

    def replaced(*arguments, **options):
        flows = made(*arguments, **options)
        with adding_wiener_velocity(url, "another") as array:
            array.write(np.zeros((3, GRID, GRID, GRID), np.float32))
        return flows

    monkeypatch.setattr(inference, "ensure_flows", replaced)
    out = str(tmp_path / "out.zarr")
    refused(IncompleteError, 5, lambda: infer(url, out, "wiener", serial_run()), "another filter")


def test_spectra_are_of_the_first_linear_velocity_that_is_finished(url, serial_run, tmp_path):
    ensure_flows(url, (RADIUS, 4.0), None, serial_run())
    right = spectra(url, str(tmp_path / "a.zarr"), LINEAR, serial_run())
    assert right.attrs["smoothing"] == [RADIUS]
    zarr.open_group(url)["smoothing"][0] = np.nan
    found = spectra(url, str(tmp_path / "b.zarr"), LINEAR, serial_run())
    assert found.attrs["smoothing"] == [4.0]
    assert (found.power < right.power).all()
    # What it was made from is checked, too.
    correct_density(url)
    again = str(tmp_path / "c.zarr")
    refused(DataError, 3, lambda: spectra(url, again, LINEAR, serial_run()), "another density")


def test_a_density_that_changes_while_its_flow_is_made(url, serial_run, how, monkeypatch):
    """Such a flow is not kept: it may be a mixture."""
    real = stage._check_origin
    monkeypatch.setattr(
        stage, "_check_origin", lambda *arguments: (correct_density(url), real(*arguments))
    )
    with pytest.raises(DataError, match="changed while"):
        ensure_flows(url, (RADIUS,), None, serial_run())
    assert RADIUS not in FieldStore(url).smoothing_scales()


def test_a_note_that_makes_no_sense_says_nothing(url, serial_run):
    ensure_flows(url, (RADIUS,), None, serial_run())
    right = expected(url)
    for note in ("yes", 3, {"2.0": "yes"}, {"2.0": {"growth_rate_hubble": "x"}}):
        array = zarr.open_group(url, mode="r+")[LINEAR]
        array[:] = 0.0
        array.attrs["made_from"] = note
        ensure_flows(url, (RADIUS,), None, serial_run())
        found = FieldStore(url).read(LINEAR, lead=(0,))
        np.testing.assert_allclose(found, right, atol=1e-4 * right.std())


def test_spectra_and_derive_refuse_a_flow_of_another_density(url, serial_run, tmp_path):
    ensure_flows(url, (RADIUS,), UNIT_FILTER, serial_run())
    power = spectra(url, str(tmp_path / "a.zarr"), LINEAR, serial_run())["power"].values
    correct_density(url)
    smoothing = {"derive": {"smoothing": 2.5, "method": "spectral"}}
    calls = [
        lambda: spectra(url, str(tmp_path / "b.zarr"), LINEAR, serial_run()),
        lambda: spectra(url, str(tmp_path / "c.zarr"), WIENER, serial_run()),
        lambda: derive(
            url, str(tmp_path / "d.zarr"), [f"smoothed_{WIENER}"], serial_run(**smoothing)
        ),
    ]
    for call in calls:
        refused(DataError, 3, call, "made from another density", "cosmoflow infer", "delete")
    # Both remedies work.
    ensure_flows(url, (RADIUS,), None, serial_run())
    again = spectra(url, str(tmp_path / "b.zarr"), LINEAR, serial_run())["power"].values
    assert not np.allclose(again, power, rtol=0.01)
    shutil.rmtree(Path(url, WIENER))
    ensure_flows(url, (), UNIT_FILTER, serial_run())
    for call in calls[1:]:
        call()


def test_evaluate_makes_linear_theory_of_the_corrected_density(url, serial_run):
    ensure_flows(url, (RADIUS,), None, serial_run())
    assert lacking(FieldStore(url), [RADIUS]) == []
    correct_density(url)
    assert lacking(FieldStore(url), [RADIUS]) == [RADIUS]


def test_train_takes_the_flow_of_the_corrected_density(url, serial_run, tmp_path, fields_store):
    """A model that is trained reads the flow of the present density."""
    other = fields_store(GRID, shard=8, chunk=4, seed=3).url
    settings = {"train": {"model": "wiener", "crop": 8}}
    first = train([url, other], str(tmp_path / "a"), serial_run(**settings)).spec.filter
    ensure_flows(url, (), first, serial_run())
    correct_density(url)
    second = train([other, url], str(tmp_path / "b"), serial_run(**settings)).spec.filter
    density = torch.from_numpy(FieldStore(url).read("density"))
    metadata = FieldStore(url).metadata
    right = second.velocity(density, metadata.box_size, growth_rate_hubble(metadata)).numpy()
    assert correlation(FieldStore(url).read(WIENER), right) == pytest.approx(1.0, abs=1e-5)


@each(("data", "words"), [("stream", "replaced"), ("memory", "did not finish")])
def test_a_flow_that_is_replaced_while_a_model_learns(
    fields_store, serial_run, tmp_path, monkeypatch, data, words
):
    """Of a model that reads on no trace is left; one that has all in memory is not disturbed."""
    boxes = [fields_store(GRID, shard=8, chunk=4, seed=seed).url for seed in (1, 2)]
    out = str(tmp_path / "model")

    def learn(loop, **options):
        """Learn nothing; leave what a run leaves."""
        ensure_flows(boxes[0], (), UNIT_FILTER, serial_run())
        write_bytes(f"{out}/checkpoints", "1", b"weights")
        if data == "stream":
            write_bytes(out, "model.json", b"{}")

    engine = SimpleNamespace(name="serial", train=learn)
    monkeypatch.setattr(training, "start_engine", lambda *a, **k: engine)
    settings = {"model": "residual-tiny", "crop": 8, "data": data, "measure_gain": 0}
    with pytest.raises(IncompleteError, match=words):
        train(boxes, out, serial_run(train=settings))
    left = {path.name for path in Path(out).iterdir()}
    assert left - {"checkpoints"} == {"run.json", "filter.json"}
    assert ("checkpoints" in left) == (data == "memory")
