"""Derived fields through the real command: the same for all shards and engines, and right."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

from cosmoflow.numerics import fourier
from cosmoflow.numerics.blocks import grid_blocks
from cosmoflow.stages.derive import derive
from cosmoflow.stages.derive import slabs as derive_slabs
from cosmoflow.stages.paint import paint
from cosmoflow.storage.field_writing import create_fields, write_block
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.sampling import Sampling
from cosmoflow.storage.urls import open_group_for_writing
from tests import derivatives
from tests.cases import each
from tests.conftest import cut, make_metadata, synthetic_fields

pytestmark = pytest.mark.e2e

GRID, SHARD, CELL = 18, 9, 2.0
BOX = GRID * CELL
RADIUS = 3.0
PLAIN = ("count", "divergence", "momentum", "velocity", "velocity_shear", "vorticity")
SMOOTHED = (
    "smoothed_density", "smoothed_divergence", "smoothed_velocity", "smoothed_velocity_shear",
    "smoothed_vorticity",
)  # fmt: skip
ALL = [*(f"--field={name}" for name in (*PLAIN, *SMOOTHED)), f"--smoothing={RADIUS}"]


def make_store(url, fields, *, finish=True):
    metadata = replace(make_metadata(BOX), sampling=Sampling(2.0, 0.1, "background"))
    create_fields(url, metadata, GRID, tuple(fields), shard=SHARD, chunk=SHARD)
    for index, block in enumerate(grid_blocks(GRID, SHARD)):
        write_block(url, block, index, {name: cut(field, block) for name, field in fields.items()})
    if finish:
        finish_group(open_group_for_writing(url))


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    """A store of 18^3 cells in shards of 9, some cells empty, and its fields."""
    url = str(tmp_path_factory.mktemp("box") / "fields.zarr")
    fields = {
        name: field
        for name, field in synthetic_fields(GRID, CELL, seed=5).items()
        if name != "linear_velocity"
    }
    empty = np.random.default_rng(1).random(fields["density"].shape) < 0.1
    fields["density"][empty] = 0.0
    fields["momentum"][:, empty] = 0.0
    mean = fields["density"].mean(dtype=np.float64)
    for name in ("density", "momentum"):
        fields[name] = (fields[name] / mean).astype(np.float32)
    make_store(url, fields)
    return url, fields


@pytest.fixture(scope="module")
def one_shard(box, tmp_path_factory):
    """Everything, by differences, as one task."""
    from cosmoflow.cli.app import run_app

    out = str(tmp_path_factory.mktemp("whole") / "derived.zarr")
    assert run_app(["derive", box[0], out, *ALL, "--engine=serial", "--set=derive.shard=18"]) == 0
    return opened(out).load()


def opened(path):
    return xr.open_zarr(path, consolidated=False)


def in_memory(fields, method, radius=0.0):
    """The same fields from the whole box in memory, by other code where there is any."""
    density, momentum, velocity = (
        torch.from_numpy(fields[name]).double() for name in ("density", "momentum", "velocity")
    )

    def smooth(field):
        modes = fourier.smooth_gaussian(fourier.forward(field), BOX, radius)
        return fourier.inverse(modes, GRID)

    if radius:
        density, momentum, velocity = smooth(density), smooth(momentum), smooth(velocity)
    slopes = torch.stack([derivatives.gradient(part, BOX, method) for part in velocity]).numpy()
    strain = 0.5 * (slopes + slopes.swapaxes(0, 1))
    eigenvalues = np.linalg.eigvalsh(np.moveaxis(strain, (0, 1), (-2, -1)))
    return {
        "density": density.numpy(),
        "count": 2.0 * density.numpy(),
        "momentum": (density * velocity).numpy(),
        "velocity": velocity.numpy(),
        "divergence": derivatives.divergence(velocity, BOX, method).numpy(),
        "vorticity": derivatives.curl(velocity, BOX, method).numpy(),
        "velocity_shear": np.moveaxis(eigenvalues, -1, 0),
    }


def test_differences_are_those_of_the_box_in_memory(box, one_shard):
    """To the last bit where the arithmetic is the same, to rounding where it is not."""
    _, fields = box
    velocity = torch.from_numpy(fields["velocity"])
    for name, operation in (
        ("divergence", derivatives.divergence),
        ("vorticity", derivatives.curl),
    ):
        expected = operation(velocity, BOX, "difference").numpy()
        np.testing.assert_array_equal(one_shard[name], expected)
    np.testing.assert_array_equal(one_shard["momentum"], fields["density"] * fields["velocity"])
    expected = in_memory(fields, "difference")["velocity_shear"]
    np.testing.assert_allclose(one_shard["velocity_shear"], expected, atol=2e-5)
    assert np.abs(expected).max() > 10.0


def test_empty_cells_move_with_the_mean_flow(box, one_shard):
    _, fields = box
    mass = fields["density"].sum(dtype=np.float64)
    mean = fields["momentum"].sum(axis=(1, 2, 3), dtype=np.float64) / mass
    empty = fields["density"] == 0.0
    expected = np.where(empty, mean.reshape(3, 1, 1, 1), fields["velocity"])
    assert empty.any()
    np.testing.assert_allclose(one_shard["velocity"], expected, rtol=5e-7)


def test_smoothed_fields_are_those_of_fourier_space(box, one_shard):
    expected = in_memory(box[1], "difference", RADIUS)
    for name in SMOOTHED:
        value = expected[name.removeprefix("smoothed_")]
        scale = np.abs(value).max()
        np.testing.assert_allclose(one_shard[name], value, atol=2e-4 * scale)


@each("options", [[], ["--set=derive.shard=6"], ["--set=derive.shard=12"]])
def test_shards_do_not_change_a_bit(box, one_shard, tmp_path, cosmoflow, options):
    """8 shards, 27, and shards that do not divide the box."""
    derive_again(box, one_shard, tmp_path, cosmoflow, options)


@pytest.mark.cluster
def test_ray_does_not_change_a_bit(box, one_shard, tmp_path, cosmoflow):
    derive_again(box, one_shard, tmp_path, cosmoflow, ["--engine=ray"])


def derive_again(box, one_shard, tmp_path, cosmoflow, options):
    out = tmp_path / "derived.zarr"
    names = {"velocity", "momentum", "vorticity", "velocity_shear", "smoothed_velocity_shear"}
    fields = [f"--field={name}" for name in names]
    code, events, err = cosmoflow(
        "derive", box[0], out, *fields, ALL[-1], "--engine=serial", *options, "--json"
    )
    assert code == 0, err
    found = opened(out)
    assert set(found.data_vars) == names
    for name in found.data_vars:
        np.testing.assert_array_equal(found[name], one_shard[name])
    shards = [event["done"] for event in events if event["event"] == "advanced"]
    assert len(shards) == shards[-1]


@pytest.mark.parametrize(
    "engine", ["serial", pytest.param("ray", marks=[pytest.mark.cluster, pytest.mark.slow])]
)
def test_spectral_is_the_box_in_memory(box, tmp_path, cosmoflow, engine):
    out = tmp_path / "derived.zarr"
    code, _, err = cosmoflow("derive", box[0], out, *ALL, "--method=spectral", f"--engine={engine}")
    assert code == 0, err
    found = opened(out)
    for radius, names in ((0.0, set(PLAIN) - {"velocity"}), (RADIUS, SMOOTHED)):
        expected = in_memory(box[1], "spectral", radius)
        for name in names:
            value = expected[name.removeprefix("smoothed_")]
            np.testing.assert_allclose(found[name], value, atol=1e-5 * np.abs(value).max())
            assert found[name].attrs.get("smoothing_radius", 0.0) == radius


@pytest.mark.parametrize(
    "engine", ["serial", pytest.param("ray", marks=[pytest.mark.cluster, pytest.mark.slow])]
)
def test_spectral_in_slabs_is_the_box_in_memory(box, tmp_path, cosmoflow, monkeypatch, engine):
    """Of a box that one process has no room for: the same fields, and the plan says how."""
    paths = [tmp_path / "whole.zarr", tmp_path / "slabs.zarr"]
    options = ["--method=spectral", f"--engine={engine}", "--json"]
    assert cosmoflow("derive", box[0], paths[0], *ALL, *options)[0] == 0
    monkeypatch.setattr("cosmoflow.stages.run.FREE_SHARE", 0.0)
    code, events, err = cosmoflow(
        "derive", box[0], paths[1], *ALL, *options, "--set=derive.shard=9"
    )
    assert code == 0, err
    assert {event["unit"] for event in events if event["event"] == "started"} == {"tasks"}
    whole, found = map(opened, paths)
    assert set(found.data_vars) == set(whole.data_vars)
    for name in whole.data_vars:
        expected = whole[name].values
        np.testing.assert_allclose(found[name], expected, atol=1e-5 * np.abs(expected).max())
        assert found[name].attrs == whole[name].attrs


def test_slabs_go_on_where_they_were_stopped(box, tmp_path, cosmoflow, monkeypatch):
    monkeypatch.setattr("cosmoflow.stages.run.FREE_SHARE", 0.0)
    options = [*ALL, "--method=spectral", "--engine=serial", "--set=derive.shard=9"]
    assert cosmoflow("derive", box[0], tmp_path / "whole.zarr", *options)[0] == 0
    written, real = [], derive_slabs.write_block

    def stop_later(url, block, shard, fields, **how):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(shard)
        real(url, block, shard, fields, **how)

    out = tmp_path / "stopped.zarr"
    monkeypatch.setattr(derive_slabs, "write_block", stop_later)
    assert cosmoflow("derive", box[0], out, *options)[0] == 130
    again = []
    monkeypatch.setattr(
        derive_slabs, "write_block", lambda *a, **how: (again.append(a[2]), real(*a, **how))
    )
    # With room for the box by now it still goes on as it began.
    monkeypatch.setattr("cosmoflow.stages.run.FREE_SHARE", 0.5)
    assert cosmoflow("derive", box[0], out, *options, "--resume")[0] == 0
    # Of the bar that was not whole only the other shard is written.
    assert sorted(again) == sorted(set(range(8)) - set(written))
    xr.testing.assert_equal(opened(out), opened(tmp_path / "whole.zarr"))


def test_the_output_says_what_it_is(box, one_shard):
    source = opened(box[0])
    shear = one_shard["smoothed_velocity_shear"]
    assert shear.dims == ("eigenvalue", "x", "y", "z")
    assert one_shard["eigenvalue"].values.tolist() == [1, 2, 3]
    assert (np.diff(shear, axis=0) >= 0.0).all()
    assert shear.attrs["units"] == "km/s/(Mpc/h)"
    assert shear.attrs["smoothing_radius"] == RADIUS
    assert shear.attrs["derivatives"] == "difference"
    assert one_shard["vorticity"].dims == ("component", "x", "y", "z")
    assert one_shard["component"].values.tolist() == ["x", "y", "z"]
    np.testing.assert_array_equal(one_shard["x"], source["x"])
    assert one_shard.attrs["box_size"] == BOX
    provenance = one_shard.attrs["provenance"]
    assert provenance["stage"] == "derive"
    assert provenance["inputs"] == {"fields": FieldStore(box[0]).digest}
    assert provenance["config"]["derive"]["smoothing"] == RADIUS


def test_painted_fields_come_back(particle_store, tmp_path, serial_run):
    """From momentum and density the painted velocity, and from that the momentum."""
    particles = particle_store(10, mass=True)
    fields = str(tmp_path / "fields.zarr")
    run = serial_run(paint={"grid": 16, "shard": 8})
    painted = paint(particles.url, fields, run).load()
    assert float((painted["density"] == 0.0).sum()) > 0
    found = derive(fields, str(tmp_path / "derived.zarr"), ["velocity", "momentum"], run)
    scale = float(np.abs(painted["velocity"]).max())
    np.testing.assert_allclose(found["velocity"], painted["velocity"], atol=2e-7 * scale)
    np.testing.assert_allclose(found["momentum"], painted["momentum"], atol=2e-7 * 20 * scale)


def test_derived_fields_of_derived_fields(box, tmp_path, cosmoflow):
    """A derived store is a fields store like any other: its spectra, its own divergence."""
    momentum, velocity = tmp_path / "m.zarr", tmp_path / "v.zarr"
    power = tmp_path / "power.zarr"
    assert cosmoflow("derive", box[0], momentum, "--field=momentum")[0] == 0
    assert cosmoflow("derive", box[0], velocity, "--field=velocity")[0] == 0
    code, _, err = cosmoflow("derive", velocity, tmp_path / "d.zarr", "--field=divergence")
    assert code == 0, err
    code, _, err = cosmoflow("spectra", tmp_path / "d.zarr", "--field=divergence", "--out", power)
    assert code == 0, err
    code, _, err = cosmoflow("derive", momentum, tmp_path / "x.zarr", "--field=divergence")
    assert code == 3
    assert "velocity" in err


@each("method", ["difference", "spectral"])
def test_a_run_goes_on_where_it_stopped(box, one_shard, tmp_path, cosmoflow, method):
    arguments = ["--field=vorticity", "--field=velocity", f"--method={method}", "--json"]
    out = tmp_path / "derived.zarr"
    assert cosmoflow("derive", box[0], out, *arguments)[0] == 0
    whole = opened(out).load()
    shards = {name: out / name / "c" / "0" for name in ("vorticity", "velocity")}
    flags = out / "ledger" / "fields" / "c"
    assert len(list(flags.iterdir())) == 8
    for shard, place in ((5, "1/0/1"), (7, "1/1/1")):
        (flags / str(shard)).unlink()
        for folder in shards.values():
            (folder / place).unlink()
    zarr.open_group(out).attrs["status"] = "incomplete"
    kept = shards["vorticity"] / "0/0/0"
    before = kept.stat().st_mtime_ns
    code, _, err = cosmoflow("derive", out, tmp_path / "more.zarr", "--field=divergence")
    assert code == 5
    code, _, err = cosmoflow("derive", box[0], out, *arguments, "--field=divergence", "--resume")
    assert code == 2
    code, events, err = cosmoflow("derive", box[0], out, *arguments, "--resume")
    assert code == 0, err
    assert opened(out).load().identical(whole)
    assert kept.stat().st_mtime_ns == before
    assert next(e["done"] for e in events if e["event"] == "advanced") == 6
    if method == "difference":
        np.testing.assert_array_equal(whole["velocity"], one_shard["velocity"])


@each(
    ("arguments", "expected", "words"),
    [
        (["--field=pressure"], 2, ["pressure", "divergence", "smoothed_density"]),
        (["--field=divergance"], 2, ["did you mean 'divergence'?"]),
        (["--field=smoothed_linear_velocity", "--smoothing=4"], 2, ["no such field"]),
        (["--field=smoothed_displacement", "--smoothing=4"], 3, ["'displacement'", "velocity"]),
        (["--field=smoothed_density"], 2, ["--smoothing", "Mpc/h"]),
        (["--field=divergence", "--smoothing=4"], 2, ["no field is smoothed"]),
        (["--field=smoothed_density", "--smoothing=6.5"], 2, ["too large", "36", "6 Mpc/h"]),
        (["--field=smoothed_density", "--smoothing=2.5"], 2, ["spectral", "3 Mpc/h"]),
        (["--field=smoothed_density", "--smoothing=-1"], 2, ["smoothing"]),
        (["--field=smoothed_density", "--smoothing=nan"], 2, ["smoothing"]),
        (["--field=divergence", "--memory=1MiB"], 2, ["memory", "derive.shard"]),
        (["--field=divergence", "--memory=1MiB", "--method=spectral"], 2, ["difference"]),
        ([], 2, ["--field"]),
    ],
)
def test_what_cannot_be_derived_is_refused(box, tmp_path, cosmoflow, arguments, expected, words):
    out = tmp_path / "out.zarr"
    code, _, err = cosmoflow("derive", box[0], out, "--engine=serial", *arguments)
    assert code == expected
    for word in words:
        assert word in err
    assert not out.exists()


def test_a_narrow_gaussian_is_for_fourier_space(box, tmp_path, cosmoflow):
    out = tmp_path / "out.zarr"
    code, _, err = cosmoflow(
        "derive", box[0], out, "--field=smoothed_density", "--smoothing=1", "--method=spectral"
    )
    assert code == 0, err


def test_inputs_that_are_not_fit_are_refused(box, tmp_path, cosmoflow):
    _, fields = box
    broken, out = str(tmp_path / "broken.zarr"), tmp_path / "out.zarr"
    make_store(broken, fields, finish=False)
    assert cosmoflow("derive", broken, out, "--field=divergence")[0] == 5

    finish_group(open_group_for_writing(broken))
    group = zarr.open_group(broken)
    group["velocity"][1, 3, 4, 5] = np.inf
    code, _, err = cosmoflow("derive", broken, out, "--field=divergence")
    assert code == 3
    assert "not finite" in err
    # The shards before it are whole: mending the input and --resume would finish the rest.
    shutil.rmtree(out)
    group["density"][:] = 0.0
    code, _, err = cosmoflow("derive", broken, out, "--field=velocity")
    assert code == 3
    assert "no mass" in err
    assert not out.exists()

    for name in ("density", "momentum", "velocity"):
        group[name].resize((*group[name].shape[:-1], 16))
    code, _, err = cosmoflow("derive", broken, out, "--field=divergence")
    assert code == 3
    assert "cubic" in err

    code, _, err = cosmoflow("derive", tmp_path / "nothing.zarr", out, "--field=divergence")
    assert code == 4
    assert not out.exists()


def test_outputs_that_are_there_are_kept(box, tmp_path, cosmoflow):
    out = tmp_path / "out.zarr"
    assert cosmoflow("derive", box[0], out, "--field=divergence")[0] == 0
    code, _, err = cosmoflow("derive", box[0], out, "--field=vorticity")
    assert code == 2
    assert "--overwrite" in err
    assert cosmoflow("derive", box[0], out, "--field=vorticity", "--overwrite")[0] == 0
    assert list(opened(out).data_vars) == ["vorticity"]
    arguments = ["--field=divergence", "--overwrite", "--memory=1MiB", "--engine=serial"]
    assert cosmoflow("derive", box[0], out, *arguments)[0] == 2
    assert list(opened(out).data_vars) == ["vorticity"]
    code, _, err = cosmoflow("derive", box[0], box[0], "--field=vorticity", "--overwrite")
    assert code == 2
    assert "input" in err


def test_the_plan_counts_tasks_bytes_and_memory(box, tmp_path, cosmoflow):
    out = tmp_path / "out.zarr"
    arguments = ["derive", box[0], out, *ALL, "--dry-run", "--json"]
    code, events, err = cosmoflow(*arguments)
    assert code == 0, err
    assert not out.exists()
    plan = next(event for event in events if event["event"] == "result")
    # 8 sums and their total for the mean flow, 8 shards.
    assert plan["tasks"] == 17
    assert plan["details"]["halo"] == 8
    # Plain density, momentum and velocity; smoothed density and velocity; the sums.
    assert plan["read"] == 4 * (8 * 25**3 * (7 + 4) + 4 * 18**3)
    assert plan["written"] == 4 * 18**3 * (2 + 3 * 4 + 1 + 1 + 3 * 3)
    assert plan["worker_memory"] > 4 * 25**3
    code, events, err = cosmoflow(*arguments, "--method=spectral")
    spectral = next(event for event in events if event["event"] == "result")
    assert spectral["tasks"] == 10
