"""The same field for every tiling, engine and place in the box."""

import numpy as np
import pytest
import xarray as xr
import zarr

from cosmoflow.stages.inputs.expansion import growth_rate_hubble
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.origins import describe_origin
from tests.cases import each
from tests.e2e.conftest import SMALL

pytestmark = pytest.mark.e2e


def velocity(path):
    return xr.open_zarr(path, consolidated=False)["velocity"].values


@each(
    "options",
    [
        ["--set=infer.tile=12"],
        ["--set=infer.tile=20", "--set=infer.batch=3"],
        ["--set=infer.shard=48", "--set=infer.tile=48"],
    ],
)
def test_the_tiling_does_not_change_the_field(chain, tmp_path, cosmoflow, options):
    infer_again(chain, tmp_path, cosmoflow, options)


@pytest.mark.cluster
def test_two_ray_actors_do_not_change_the_field(chain, tmp_path, cosmoflow):
    infer_again(chain, tmp_path, cosmoflow, ["--engine=ray", "--workers=2"])


def infer_again(chain, tmp_path, cosmoflow, options):
    out = tmp_path / "out.zarr"
    code, _, err = cosmoflow(
        "infer", chain / "fields.zarr", out, "--model", chain / "model", *SMALL, *options
    )
    assert code == 0, err
    expected = velocity(chain / "prediction.zarr")
    np.testing.assert_allclose(velocity(out), expected, atol=2e-6 * np.abs(expected).max())


def test_a_shift_by_the_stride_shifts_the_output(chain, copy_of, tmp_path, cosmoflow):
    fields, out = copy_of("fields.zarr"), tmp_path / "out.zarr"
    group = zarr.open_group(fields, mode="r+")
    shift = (4, -8, 20)
    for name in ("density", "wiener_velocity"):
        group[name][:] = np.roll(group[name][:], shift, axis=(-3, -2, -1))
    # Else the flow is made again, and the rounding of its transforms is looked at as well.
    store = FieldStore(str(fields))
    group["wiener_velocity"].attrs["made_from"] = describe_origin(
        store, growth_rate_hubble(store.metadata)
    )
    code, _, err = cosmoflow("infer", fields, out, "--model", chain / "model", *SMALL)
    assert code == 0, err
    expected = np.roll(velocity(chain / "prediction.zarr"), shift, axis=(-3, -2, -1))
    np.testing.assert_allclose(velocity(out), expected, atol=2e-6 * np.abs(expected).max())


@each("kind", ["linear", "wiener"])
def test_a_box_that_is_turned_gives_the_turned_flow(chain, copy_of, cosmoflow, tmp_path, kind):
    """The global velocity that `infer` adds to a store does not prefer an axis."""
    fields, out = copy_of("fields.zarr"), tmp_path / "out.zarr"
    model = {"linear": "linear:2", "wiener": chain / "model"}[kind]
    infer = ["infer", fields, out, "--model", model, "--overwrite", *SMALL]
    assert cosmoflow(*infer)[0] == 0
    group = zarr.open_group(fields, mode="r+")
    before = group[f"{kind}_velocity"][:]
    group["density"][:] = group["density"][:].transpose(2, 0, 1)
    for name in (f"{kind}_velocity", "smoothing"):
        if name in group:
            del group[name]
    assert cosmoflow(*infer)[0] == 0
    found = zarr.open_group(fields)[f"{kind}_velocity"][:]
    spatial = tuple(before.ndim - 3 + axis for axis in (2, 0, 1))
    turned = before.transpose(*range(before.ndim - 3), *spatial)[..., [2, 0, 1], :, :, :]
    np.testing.assert_allclose(found, turned, atol=1e-4 * np.abs(turned).max())


@pytest.mark.cluster
def test_painting_on_ray_is_painting_in_this_process(chain, tmp_path, cosmoflow):
    out = tmp_path / "fields.zarr"
    code, _, err = cosmoflow(
        "paint", chain / "particles.zarr", out, *SMALL, "--engine=ray",
        "--set=paint.particles_per_task=9000",
    )  # fmt: skip
    assert code == 0, err
    fields = xr.open_zarr(out, consolidated=False)
    expected = xr.open_zarr(chain / "fields.zarr", consolidated=False)
    for name in ("density", "momentum", "velocity"):
        np.testing.assert_array_equal(fields[name].values, expected[name].values)
