"""Regions, ensembles, derived fields, rounding, blending, arrays: each against a plain run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

import cosmoflow as package
from cosmoflow.cli.app import run_app
from cosmoflow.config import load_settings
from cosmoflow.errors import DataError
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.stages.infer import caches, infer_store, plan_infer
from cosmoflow.stages.models import load_model, save_model
from cosmoflow.storage import transfer
from cosmoflow.storage.fields import FieldStore, open_fields
from tests.cases import each
from tests.e2e.conftest import SMALL

pytestmark = pytest.mark.e2e


@pytest.fixture
def infer(chain, tmp_path, cosmoflow):
    """Return a function that predicts the chain's box with some options and opens the result."""

    def run(*options, model=chain / "model", name="out.zarr", fails=None):
        out = tmp_path / name
        models = model if isinstance(model, list) else [model]
        chosen = [part for one in models for part in ("--model", one)]
        code, _, err = cosmoflow("infer", chain / "fields.zarr", out, *chosen, *SMALL, *options)
        if fails is not None:
            assert code == fails, err
            assert not out.exists()
            return err
        assert code == 0, err
        return xr.open_zarr(out, consolidated=False)

    return run


@pytest.fixture(scope="session")
def second_model(chain, tmp_path_factory):
    """The chain's model with its weights disturbed."""
    model = load_model(str(chain / "model"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    url = str(tmp_path_factory.mktemp("models") / "second")
    save_model(url, model)
    return url


@pytest.fixture(scope="module")
def predictions(chain, second_model, tmp_path_factory):
    """The velocities that the chain's model and the second one predict, each by itself."""
    out = str(tmp_path_factory.mktemp("predictions") / "second.zarr")
    fields = str(chain / "fields.zarr")
    assert run_app(["infer", fields, out, "--model", second_model, "--quiet", *SMALL]) == 0
    stores = (str(chain / "prediction.zarr"), out)
    return [xr.open_zarr(url, consolidated=False)["velocity"].values for url in stores]


def close(found, expected, part=4e-6):
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=part * np.abs(expected).max())


def test_a_plan_counts_the_chunks_that_are_read(chain, tmp_path, serial_run, monkeypatch):
    """With and without room to keep those that the next block needs."""
    fields, out, model = (
        str(tmp_path / "fields.zarr"),
        str(tmp_path / "out"),
        str(chain / "model"),
    )
    cut = ["--set=paint.chunk=12", "--quiet", *SMALL]
    assert run_app(["paint", str(chain / "particles.zarr"), fields, *cut]) == 0
    # The first run makes the flow that the model needs.
    infer_store(fields, out, model, serial_run())
    chunks, put = [], transfer._Reading.put

    def count(reading, content, part):
        chunks.append(part)
        return put(reading, content, part)

    monkeypatch.setattr(transfer._Reading, "put", count)
    read = []
    for kept in (0, 1):
        monkeypatch.setattr(caches, "_USEFUL_LAYER", kept << 30)
        run = serial_run(existing="overwrite", infer={"shard": 24})
        read.append(plan_infer(fields, model, run).read)
        chunks.clear()
        infer_store(fields, out, model, run)
        assert read[-1] == 4 * 12**3 * len(chunks)
    assert read[1] < read[0]


# --- a part of the box ----------------------------------------------------------------------------


def test_a_region_is_the_same_cells_of_the_whole(chain, infer, tmp_path):
    whole = open_fields(str(chain / "prediction.zarr"))["velocity"].values
    # Cells of 2 Mpc/h: those whose centres lie within, over shards of 24 cells.
    found = infer("--region=10:52,0:96,61.5:70")
    cells = (slice(None), slice(5, 26), slice(0, 48), slice(31, 35))
    stored = found["velocity"].values
    close(stored[cells], whole[cells])
    outside = np.ones(stored.shape, bool)
    outside[cells] = False
    assert np.isnan(stored[outside]).all()
    assert found.attrs["status"] == "complete"
    assert found.attrs["region"] == [[5, 26], [0, 48], [31, 35]]
    opened = package.open_fields(str(tmp_path / "out.zarr"))
    assert dict(opened.sizes) == {"component": 3, "x": 21, "y": 48, "z": 4}
    assert float(opened.x[0]) == 11.0
    close(opened["velocity"].values, whole[cells])


def test_shards_without_a_wanted_cell_are_not_written(infer, copy_of, tmp_path, cosmoflow):
    infer("--region=0:20,0:20,0:20")
    files = list((tmp_path / "out.zarr" / "velocity" / "c").rglob("*"))
    assert sum(file.is_file() for file in files) == 1
    assert package.info(tmp_path / "out.zarr")["shards"] == {"fields": "1 of 1"}
    # The command names the grid of the box and the cells of the region.
    arguments = [copy_of("fields.zarr"), tmp_path / "linear.zarr", "--region=10:52,0:96,61.5:70"]
    code, events, _ = cosmoflow("infer", *arguments, "--model=linear", "--json", *SMALL)
    assert (code, events[-1]["grid"], events[-1]["region"]) == (0, 48, [21, 48, 4])


def test_the_next_stage_is_told_that_a_store_holds_a_region(chain, infer, tmp_path, cosmoflow):
    infer("--region=0:20,0:20,0:20")
    out = tmp_path / "report"
    code, _, err = cosmoflow(
        "evaluate", chain / "fields.zarr", tmp_path / "out.zarr", "--out", out, *SMALL
    )
    assert code == 3
    assert "region" in err
    assert not (out / "report.html").exists()
    store = FieldStore(str(tmp_path / "out.zarr"))
    with pytest.raises(DataError, match="region"):
        store.read("velocity")


@each(
    ("region", "words"),
    [
        ("0:100,0:96,0:96", "0:96 Mpc/h"),
        ("0:96,-2:96,0:96", "0:96 Mpc/h"),
        ("0:96,0:96,3.1:4.9", "no cell"),
        ("0:96,0:96", "from:to"),
        ("0:96,96:0,0:96", "empty"),
        ("a:b,0:1,0:1", "region"),
    ],
)
def test_regions_that_make_no_sense_are_refused(infer, region, words):
    assert words in infer(f"--region={region}", fails=2)


# --- ensembles ------------------------------------------------------------------------------------


def test_models_are_averaged_and_their_spread_is_told(chain, infer, second_model, predictions):
    one, two = predictions
    both = infer("--set=infer.spread=true", model=[chain / "model", second_model])
    close(both["velocity"], (one + two) / 2.0)
    close(both["velocity_spread"], np.abs(one - two) / np.sqrt(2.0), part=1e-4)
    assert both["velocity_spread"].attrs["predictions"] == 2
    assert both["velocity_spread"].attrs["units"] == "km/s"


def test_the_spread_is_over_models_and_turned_frames(chain, infer, second_model, predictions):
    frames = []
    for model, first in zip((chain / "model", second_model), predictions, strict=True):
        mean = infer("--set=infer.symmetries=2", model=model, name=f"{len(frames)}.zarr")
        # The mean of two frames and the first of them give the second.
        frames += [first, 2.0 * mean["velocity"].values - first]
    members = ["--set=infer.spread=true", "--set=infer.symmetries=2"]
    both = infer(*members, model=[chain / "model", second_model])
    close(both["velocity"], np.mean(frames, axis=0))
    close(both["velocity_spread"], np.std(frames, axis=0, ddof=1), part=1e-4)
    assert both["velocity_spread"].attrs["predictions"] == 4


def test_one_prediction_has_no_spread(infer):
    assert "infer.symmetries=8" in infer("--set=infer.spread=true", fails=2)


def test_models_with_different_filters_are_refused(chain, infer):
    assert "Wiener filters" in infer(model=[chain / "model", "residual-small"], fails=2)


# --- derived in the same pass ---------------------------------------------------------------------


@each(
    "name, options",
    [
        ("whole", []),
        ("tiles", ["--set=infer.tile=12"]),
        ("region", ["--region=4:60,0:96,30:96"]),
    ],
)
def test_what_is_derived_in_the_same_pass_is_what_derive_makes(
    chain, infer, tmp_path, cosmoflow, name, options
):
    names = ("momentum", "divergence", "vorticity", "velocity_shear")
    asked = [f"--field={name}" for name in names]
    found = infer(*asked, *options, name=f"{name}.zarr")
    fields = tmp_path / "fields.zarr"
    whole = zarr.open_group(chain / "prediction.zarr")
    attributes = dict(whole.attrs)
    group = zarr.create_group(fields, attributes=attributes)
    for name, source in (("velocity", whole), ("density", zarr.open_group(chain / "fields.zarr"))):
        group.create_array(
            name, data=source[name][:], chunks=source[name].chunks,
            dimension_names=source[name].metadata.dimension_names,
        )  # fmt: skip
    code, _, err = cosmoflow("derive", fields, tmp_path / "derived.zarr", *asked, *SMALL)
    assert code == 0, err
    derived = xr.open_zarr(tmp_path / "derived.zarr", consolidated=False)
    for name in names:
        inside = np.isfinite(found[name].values)
        assert inside.any()
        close(found[name].values[inside], derived[name].values[inside], part=2e-5)
        assert found[name].attrs.get("derivatives") == derived[name].attrs.get("derivatives")


def test_nothing_is_derived_from_a_momentum(infer, momentum_model):
    assert "cosmoflow derive" in infer("--field=divergence", model=momentum_model, fails=2)


# --- rounding -------------------------------------------------------------------------------------


def size_of(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_rounding_keeps_its_promise_and_pays(chain, infer, tmp_path):
    exact = xr.open_zarr(chain / "prediction.zarr", consolidated=False)
    rounded = infer("--set=infer.rounding=1", "--field=divergence", name="rounded.zarr")
    step = rounded["velocity"].attrs["rounded_to_multiples_of"]
    assert step == 2.0
    found, expected = rounded["velocity"].values, exact["velocity"].values
    np.testing.assert_array_equal(found % step, 0.0)
    assert 0.5 < np.abs(found - expected).max() <= 1.001
    assert "rounded_to_multiples_of" not in exact["velocity"].attrs
    assert "rounded_to_multiples_of" not in rounded["divergence"].attrs
    # Derivatives are those of the velocity before it was rounded.
    assert np.unique(rounded["divergence"].values).size > 10_000
    folders = [url / "velocity" for url in (chain / "prediction.zarr", tmp_path / "rounded.zarr")]
    assert size_of(folders[1]) < 0.6 * size_of(folders[0])


# --- networks with padding ------------------------------------------------------------------------


@pytest.fixture(scope="session")
def padded_model(chain, tmp_path_factory):
    """The paper's network, narrow and untrained: what it gives depends on the tile."""
    spec = load_model(str(chain / "model")).spec
    torch.manual_seed(2)
    model = VelocityModel(replace(spec, architecture="paper-narrow", filter=None, gain=None))
    url = str(tmp_path_factory.mktemp("models") / "padded")
    save_model(url, model.eval())
    return url


@pytest.mark.parametrize("overlap", [0, pytest.param(6, marks=pytest.mark.slow)])
def test_seams_are_blended_alike_for_all_shards(infer, padded_model, overlap):
    options = [f"--set=infer.overlap={overlap}", "--set=infer.precision=float32"]
    whole = infer(*options, "--set=infer.shard=48", model=padded_model, name="whole.zarr")
    cut = infer(*options, "--set=infer.shard=20", model=padded_model, name="cut.zarr")
    close(cut["velocity"], whole["velocity"])
    # On the lattice of cell 0: the first tile of the box, computed alone, is the stored one where
    # no other tile reaches.
    first = infer(*options, "--region=0:40,0:40,0:40", model=padded_model, name="first.zarr")
    lone = slice(overlap, 20 - overlap)
    close(first["velocity"][:, lone, lone, lone], whole["velocity"][:, lone, lone, lone])


def test_what_a_padded_network_cannot_do_is_refused(infer, padded_model):
    assert "more than half" in infer("--set=infer.overlap=11", model=padded_model, fails=2)
    slopes = infer("--field=divergence", model=padded_model, fails=2)
    assert "cosmoflow derive" in slopes


def test_an_unpadded_network_has_nothing_to_blend(infer):
    assert "nothing to blend" in infer("--set=infer.overlap=4", fails=2)


# --- arrays ---------------------------------------------------------------------------------------


def test_arrays_in_memory_give_what_stores_give(chain, infer):
    options = {"symmetries": 2, "spread": True, "fields": ("momentum", "divergence")}
    told = [f"--set=infer.symmetries={options['symmetries']}", "--set=infer.spread=true"]
    stored = infer(*told, *(f"--field={name}" for name in options["fields"]))
    fields = open_fields(str(chain / "fields.zarr"))
    run = package.Run(load_settings(options={"infer": options}))
    found = package.infer_array(
        fields["density"].values, 96.0, str(chain / "model"), redshift=0.0, run=run
    )
    assert set(found) == {"velocity", "velocity_spread", "momentum", "divergence"}
    for name in found:
        close(found[name], stored[name], part=2e-4 if name == "velocity_spread" else 2e-5)
        assert found[name].dims == stored[name].dims
        assert found[name].attrs["units"] == stored[name].attrs["units"]
    for axis in ("x", "y", "z", "component"):
        np.testing.assert_array_equal(found[axis], stored[axis])


def test_linear_theory_of_an_array_is_that_of_a_store(copy_of, tmp_path, cosmoflow):
    fields, out = copy_of("fields.zarr"), tmp_path / "linear.zarr"
    code, _, err = cosmoflow("infer", fields, out, "--model=linear:4", *SMALL)
    assert code == 0, err
    stored = xr.open_zarr(out, consolidated=False)
    density = open_fields(str(fields))["density"].values
    found = package.infer_array(density, 96.0, "linear:4", redshift=0.0)
    close(found["velocity"], stored["velocity"], part=2e-5)
    part = package.infer_array(
        density, 96.0, "linear:4", redshift=0.0,
        run=package.Run(load_settings(options={"infer": {"region": "0:96,0:48,10:20"}})),
    )  # fmt: skip
    assert part["velocity"].shape == (3, 48, 24, 5)
    np.testing.assert_array_equal(part["velocity"], found["velocity"][:, :, :24, 5:10])


@each(
    ("density", "words"),
    [
        (np.ones((4, 4)), "shape"),
        (np.ones((4, 4, 6)), "shape"),
        (np.full((4, 4, 4), 2.0), "mean"),
        (np.full((4, 4, 4), np.nan), "finite"),
        (np.ones((4, 4, 4)) - 2.0 * (np.indices((4, 4, 4)).sum(0) == 0), "below 0"),
    ],
)
def test_arrays_that_are_no_density_are_refused(density, words):
    with pytest.raises(DataError, match=words):
        package.infer_array(density, 8.0, "linear")


def test_a_resumed_run_keeps_its_arithmetic(chain, infer, tmp_path, cosmoflow):
    """On a machine that is fast at another one it would be refused otherwise."""
    found = infer("--set=infer.precision=float32")
    expected = found["velocity"].values
    group = zarr.open_group(tmp_path / "out.zarr", mode="r+")
    group.attrs["status"] = "incomplete"
    group["ledger/fields"][0] = 0
    code, _, err = cosmoflow(
        "infer", chain / "fields.zarr", tmp_path / "out.zarr", "--model", chain / "model", *SMALL,
        "--resume",
    )  # fmt: skip
    assert code == 0, err
    np.testing.assert_array_equal(group["velocity"][:], expected)
