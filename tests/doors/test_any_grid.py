"""Grids of any size: one answer for every layout, advice that can be followed."""

import re

import numpy as np
import pytest
import torch
import xarray as xr

from cosmoflow.config import CosmologyConfig
from cosmoflow.config.networks import InferConfig
from cosmoflow.config.settings import choose_chunk
from cosmoflow.errors import DataError
from cosmoflow.events import ignore
from cosmoflow.model.sources import MemoryFields
from cosmoflow.model.velocity import UNIT, ModelSpec, Normalisation, VelocityModel
from cosmoflow.numerics.blocks import Block, grid_blocks
from cosmoflow.stages.derive import derive
from cosmoflow.stages.infer import infer
from cosmoflow.stages.infer.arrays import ArrayBox, infer_array, predict_box
from cosmoflow.stages.infer.ensemble import Ensemble, Member
from cosmoflow.stages.infer.tiles import Layout
from cosmoflow.stages.models import check_fits, fitting_grid, save_model
from cosmoflow.storage.metadata import BoxMetadata
from tests.cases import each
from tests.conftest import FLOWS, UNIT_FILTER, narrow_networks, synthetic_fields

CPU = torch.device("cpu")
EXACT = InferConfig(precision="float32")


@pytest.fixture(scope="module")
def model():
    """A narrow residual network whose answer matters."""
    torch.manual_seed(2)
    cosmology = CosmologyConfig().model_dump(mode="json")
    constants = Normalisation(0.0, 0.5, 200.0, 150.0)
    with narrow_networks():
        spec = ModelSpec(
            "residual-tiny", "velocity", 2.0, 0.0, cosmology, constants, filter=UNIT_FILTER
        )
        made = VelocityModel(spec)
        torch.nn.init.normal_(made.network.output.weight, std=0.3)
        yield made.eval()


def one_tile(model, fields):
    """The answer of one pass over the box, unrolled from cell 0 on: NumPy's padding, no tiling."""
    grid, halo = fields["density"].shape[-1], model.geometry.halo
    after = halo + -grid % model.geometry.stride

    def unroll(field):
        lead = [(0, 0)] * (field.ndim - 3)
        return torch.from_numpy(np.pad(field, lead + [(halo, after)] * 3, mode="wrap"))[None]

    with torch.inference_mode():
        flows = unroll(fields["wiener_velocity"]).unsqueeze(1)
        found = model(unroll(fields["density"]), flows)[0].numpy()
    return found[:, :grid, :grid, :grid]


def blockwise(model, fields, shard, tile, batch=1):
    """The answer of shards, each predicted on its own."""
    grid = fields["density"].shape[-1]
    layout = Layout(shard, (shard,) * 3, tile, batch)
    ensemble = Ensemble([Member(model, FLOWS)], layout, EXACT, CPU)
    source, out = MemoryFields(fields), np.empty((3, grid, grid, grid), np.float32)
    for block in grid_blocks(grid, shard):
        cells = [slice(o, o + n) for o, n in zip(block.origin, block.shape, strict=True)]
        out[(slice(None), *cells)] = ensemble.predict(ensemble.read(source, block)).mean
    return out


@each(
    ("grid", "shard", "tile"),
    [(18, 7, 8), (18, 18, 20), (22, 15, 12), (25, 13, 16), (10, 10, 8), (16, 6, 8)],
)
def test_every_layout_gives_the_answer_of_one_tile(model, grid, shard, tile):
    fields = synthetic_fields(grid, seed=grid)
    expected = one_tile(model, fields)
    scale = expected.std()
    found = blockwise(model, fields, shard, tile, batch=2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5 * scale)
    whole = predict_box([Member(model, FLOWS)], MemoryFields(fields), EXACT, CPU).mean
    np.testing.assert_allclose(whole, expected, rtol=0, atol=3e-5 * scale)


def test_cells_around_a_block_are_those_of_the_other_side_of_the_box(model):
    """On a grid that the stride does not divide, cell -1 is predicted as cell n - 1 is."""
    grid, fields = 18, synthetic_fields(18, seed=3)
    layout = Layout(grid, (grid,) * 3, 20)
    ensemble = Ensemble([Member(model, FLOWS)], layout, EXACT, CPU)
    expected = one_tile(model, fields)
    wide = Block((-2,) * 3, (grid + 4,) * 3)
    found = ensemble.predict(ensemble.read(MemoryFields(fields), wide)).mean
    wrapped = np.pad(expected, [(0, 0)] + [(2, 2)] * 3, mode="wrap")
    np.testing.assert_allclose(found, wrapped, rtol=0, atol=3e-5 * expected.std())


def test_stores_and_arrays_of_any_grid_agree(model, fields_store, serial_run, tmp_path):
    store = fields_store(18, shard=9, chunk=9)
    folder = str(tmp_path / "model")
    save_model(folder, model)
    settings = {"precision": "float32", "fields": "divergence", "shard": 10, "tile": 12}
    found = infer(store.url, str(tmp_path / "a"), folder, serial_run(infer=settings)).load()
    stored = xr.open_zarr(store.url, consolidated=False)["wiener_velocity"].values
    expected = one_tile(model, {"density": store.density, "wiener_velocity": stored})
    scale = expected.std()
    np.testing.assert_allclose(found["velocity"], expected, rtol=0, atol=3e-5 * scale)
    array = infer_array(
        store.density, 36.0, folder, redshift=0.0, run=serial_run(infer={"precision": "float32"})
    )
    np.testing.assert_allclose(array["velocity"], expected, rtol=0, atol=1e-4 * scale)
    # Central differences of the answer: across the periodic border too, they are those of `derive`.
    slopes = sum(np.roll(expected[i], -1, i) - np.roll(expected[i], 1, i) for i in range(3)) / 4.0
    np.testing.assert_allclose(found["divergence"], slopes, rtol=0, atol=3e-5 * scale)
    own = derive(str(tmp_path / "a"), str(tmp_path / "b"), ["divergence"], serial_run())
    np.testing.assert_allclose(found["divergence"], own["divergence"], rtol=0, atol=3e-5 * scale)


ONE_CONDITION = VelocityModel(
    ModelSpec("wiener-linear", "velocity", 2.0, 0.0, {}, UNIT, filter=UNIT_FILTER)
)
"""A model that fits cells of one size."""


def advice_for(box_size, grid, cell=2.0):
    """What `infer` says of a box, and None if it takes it."""
    box = ArrayBox(BoxMetadata(box_size, 0.0, CosmologyConfig()), grid)
    try:
        check_fits(ONE_CONDITION, "one", box, ignore)
    except DataError as error:
        return error
    return None


def test_advice_for_boxes_of_any_size_can_be_followed():

    def refusal(box_size, grid):
        try:
            box = ArrayBox(BoxMetadata(box_size, 0.0, CosmologyConfig()), grid)
            check_fits(ONE_CONDITION, "one", box, ignore)
        except DataError as error:
            return error
        return None

    none = []
    for size in np.arange(25.0, 501.0, 2.5).tolist():
        error = refusal(size, 64) or refusal(size, 96)
        assert error is not None
        assert "--model linear or linear:R" in error.remedy
        grids = [int(grid) for grid in re.findall(r"--grid (\d+)", error.remedy)]
        if grids:
            assert [refusal(size, grid) for grid in grids] == [None]
            assert abs(size / grids[0] - 2.0) <= 2e-3
        else:
            none.append(size)
            # No grid at all fits, and those that are called the nearest are.
            assert all(refusal(size, grid) for grid in range(2, 400))
            boxes = re.search(r"such as (\S+) or (\S+) Mpc/h", error.remedy).groups()
            for other in map(float, boxes):
                assert refusal(other, fitting_grid(other, 2.0)) is None
                assert abs(other - size) <= 2.0
    assert {25.0, 75.0, 205.0} <= set(none)
    assert not {50.0, 100.0, 250.0, 500.0} & set(none)


def test_a_box_of_half_a_cell_too_much_is_told_that_no_grid_fits():
    error = advice_for(25.0, 64)
    assert error.exit_code == 3
    assert "no grid of this box" in error.limit
    assert "2.08333 Mpc/h on 12^3" in error.limit
    assert "1.92308 Mpc/h on 13^3" in error.limit
    assert "24 or 26 Mpc/h" in error.remedy


@each("grid", [64, 67, 90, 103, 127, 128, 134, 250])
def test_no_grid_is_kept_in_chunks_of_a_few_cells(grid):
    chunk = choose_chunk(grid)
    assert grid % chunk == 0
    assert 8 <= chunk <= 127
