"""The same field for every tiling, engine and place in the box."""

import numpy as np
import pytest
import xarray as xr
import zarr

from tests.e2e.conftest import SMALL

pytestmark = pytest.mark.e2e


def velocity(path):
    return xr.open_zarr(path, consolidated=False)["velocity"].values


@pytest.mark.parametrize(
    "options",
    [
        ["--set=infer.tile=8"],
        ["--set=infer.tile=20", "--set=infer.batch=3"],
        ["--set=infer.shard=48", "--set=infer.tile=48"],
        pytest.param(["--engine=ray", "--workers=2"], marks=pytest.mark.cluster),
    ],
    ids=["tile 8", "tile 20 batch 3", "one tile", "two actors"],
)
def test_the_tiling_does_not_change_the_field(chain, tmp_path, cosmoflow, options):
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
    for name in ("density", "linear_velocity"):
        group[name][:] = np.roll(group[name][:], shift, axis=(-3, -2, -1))
    code, _, err = cosmoflow("infer", fields, out, "--model", chain / "model", *SMALL)
    assert code == 0, err
    expected = np.roll(velocity(chain / "prediction.zarr"), shift, axis=(-3, -2, -1))
    np.testing.assert_allclose(velocity(out), expected, atol=2e-6 * np.abs(expected).max())


def test_a_box_that_is_turned_gives_the_turned_linear_velocity(chain, copy_of, cosmoflow, tmp_path):
    """The linear velocity that `infer` adds to a store does not prefer an axis."""
    fields = copy_of("fields.zarr")
    group = zarr.open_group(fields, mode="r+")
    before = group["linear_velocity"][:]
    group["density"][:] = group["density"][:].transpose(2, 0, 1)
    del group["linear_velocity"]
    del group["smoothing"]
    out = tmp_path / "out.zarr"
    assert cosmoflow("infer", fields, out, "--model", chain / "model", *SMALL)[0] == 0
    turned = before.transpose(0, 1, 4, 2, 3)[:, [2, 0, 1]]
    found = zarr.open_group(fields)["linear_velocity"][:]
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
