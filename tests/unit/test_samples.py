"""Crops of boxes for training, and the blocks for validation, of which training sees no cell."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmoflow.errors import DataError
from cosmoflow.model.samples import (
    TrainingBox,
    draw_batch,
    measure_normalisation,
    split_lone_box,
    validation_blocks,
)
from cosmoflow.model.sources import MemoryFields
from tests.cases import each
from tests.unit.crops import CROP, GEOMETRY, Watched


def batch(source, key=(1, 0), crops=range(3), **changes):
    options = {"crop": CROP, "crops": crops, "augment": True, **changes}
    boxes = [TrainingBox.slab(source, (0,), 0, 24)]
    return draw_batch(boxes, "velocity", GEOMETRY, key=key, **options)


def same(one, other):
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("density", "flows", "target")
    )


def test_seed_step_and_number_alone_decide_a_crop(synthetic_box):
    assert same(batch(synthetic_box), batch(synthetic_box))
    for key in ((2, 0), (1, 1)):
        assert not same(batch(synthetic_box), batch(synthetic_box, key))
    keys = list(itertools.product(range(3), repeat=2))
    drawn = {batch(synthetic_box, key).target.numpy().tobytes() for key in keys}
    assert len(drawn) == len(keys)
    # Workers share a batch: whatever their number, its crops are the same.
    whole = batch(synthetic_box, crops=range(4)).target
    shares = [batch(synthetic_box, crops=range(r, r + 2)).target for r in (0, 2)]
    assert torch.equal(torch.cat(shares), whole)


def test_shapes_of_a_batch(synthetic_box):
    drawn = batch(synthetic_box)
    assert drawn.density.shape == (3, 14, 14, 14)
    assert drawn.flows.shape == (3, 1, 3, 14, 14, 14)
    assert drawn.target.shape == (3, 3, 8, 8, 8)


@each("augment", [False, True])
def test_a_crop_keeps_input_and_target_together(augment):
    """In a box whose target is its linear velocity, every turned crop still has them equal."""
    rng = np.random.default_rng(0)
    flow = rng.normal(size=(3, 16, 16, 16)).astype(np.float32)
    source = MemoryFields(
        {"density": flow[0] ** 2, "linear_velocity": flow[None], "velocity": flow}
    )
    for step in range(10):
        drawn = draw_batch(
            [TrainingBox.slab(source, (0,), 0, 16)], "velocity", GEOMETRY,
            crop=4, crops=range(2), augment=augment, key=(0, step),
        )  # fmt: skip
        inner = drawn.flows[:, 0, :, 3:-3, 3:-3, 3:-3]
        assert torch.equal(inner, drawn.target)
        if not augment:
            assert torch.equal(drawn.density, drawn.flows[:, 0, 0] ** 2)


def uniform(grid, density=1.0):
    cube = (grid,) * 3
    fields = {"density": np.full(cube, density), "velocity": np.zeros((3, *cube))}
    return MemoryFields({name: field.astype(np.float32) for name, field in fields.items()})


def test_boxes_are_drawn_in_proportion_to_their_cells():
    boxes = [TrainingBox.slab(uniform(n, float(n)), (), 0, n) for n in (8, 16)]
    drawn = draw_batch(
        boxes, "velocity", GEOMETRY, crop=4, crops=range(900), augment=False, key=(0, 0)
    )
    share = float((drawn.density[:, 0, 0, 0] == 16.0).float().mean())
    assert share == pytest.approx(8.0 / 9.0, abs=0.04)


def cells_along_x(block, grid):
    return {(block.origin[0] + i) % grid for i in range(block.shape[0])}


@settings(max_examples=60)
@given(
    st.integers(4, 24).map(lambda n: 4 * n),
    st.sampled_from([0.05, 0.125, 0.2, 0.34, 0.45]),
    st.integers(1, 12).map(lambda n: 4 * n),
)
def test_a_lone_box_never_validates_on_what_it_learns_from(grid, fraction, crop):
    try:
        slab = split_lone_box(grid, fraction, crop, GEOMETRY)
    except DataError as error:
        assert error.where == "train.crop"  # noqa: PT017
        assert crop > grid - grid * fraction - GEOMETRY.stride
        return
    source = Watched(uniform(grid))
    box = TrainingBox.slab(source, (), 0, grid - slab)
    draw_batch(
        [box], "velocity", GEOMETRY, crop=crop, crops=range(12), augment=False, key=(grid, crop)
    )
    learned = set()
    for name, block in source.read:
        if name == "velocity":
            learned |= cells_along_x(block, grid)
    blocks = validation_blocks(grid, grid - slab, slab, crop, GEOMETRY, 8)
    assert 1 <= len(blocks) <= 8
    for block in blocks:
        assert not cells_along_x(block, grid) & learned
        assert cells_along_x(block, grid) <= set(range(grid - slab, grid))


def test_a_box_too_small_for_a_crop_is_refused():
    with pytest.raises(DataError) as caught:
        split_lone_box(32, 0.125, 32, GEOMETRY)
    assert caught.value.where == "train.crop"
    assert caught.value.limit == 28


def test_validation_blocks_of_whole_boxes_lie_apart():
    blocks = validation_blocks(48, 0, 48, 16, GEOMETRY, 8)
    assert len(blocks) == 8
    assert all(block.shape == (16, 16, 16) for block in blocks)
    assert len({block.origin for block in blocks}) == 8
    assert all(max(block.origin) + 16 <= 48 for block in blocks)


def test_fields_that_do_not_vary_are_refused():
    cube = (3, 8, 8, 8)
    flow = np.random.default_rng(0).normal(size=cube).astype(np.float32)
    for density, velocity in ((np.ones_like(flow[0]), flow), (flow[0] ** 2, np.zeros_like(flow))):
        source = MemoryFields({"density": density, "velocity": velocity})
        with pytest.raises(DataError, match="vary"):
            measure_normalisation([TrainingBox.slab(source, (), 0, 8)], "velocity", 0.1)
