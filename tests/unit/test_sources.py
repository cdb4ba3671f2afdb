"""Where training reads from: memory, a device or a stream give the same cells."""

import itertools
import threading

import numpy as np
import pytest
import torch

from cosmoflow.model.prefetch import Prefetcher
from cosmoflow.model.samples import TrainingBox, draw_batch, read_sample
from cosmoflow.model.sources import BlockFields, DeviceFields, MemoryFields, variable_of
from cosmoflow.model.streams import StreamedBoxes
from cosmoflow.numerics.blocks import Block, grow
from tests.cases import each
from tests.conftest import synthetic_fields
from tests.unit.crops import CROP, GEOMETRY

FLOWS = ("wiener_velocity", 1)


@pytest.fixture(scope="module")
def fields():
    return synthetic_fields(20)


def blocks():
    return [
        Block((0, 0, 0), (20, 20, 20)),
        Block((-3, 18, 5), (9, 7, 4)),
        Block((15, -30, 40), (31, 2, 12)),
    ]


@each("block", blocks())
@each(("name", "lead"), [("density", ()), ("linear_velocity", (1,))])
def test_a_device_holds_what_memory_holds(fields, name, lead, block):
    memory, device = MemoryFields(fields), DeviceFields(fields, "cpu")
    expected = memory.read_block(name, block, lead=lead)
    np.testing.assert_array_equal(device.read_block(name, block, lead=lead), expected)
    assert device.grid == memory.grid == 20


@each("origin", [(0, 0, 0), (17, -4, 9)])
def test_a_block_in_memory_has_the_crops_of_its_box(fields, origin):
    source = MemoryFields(fields)
    region = Block(origin, (16, 16, 16))
    variables = [("density", ()), ("velocity", ()), *map(variable_of, FLOWS)]
    held = BlockFields(source, variables, grow(region, 3))
    for offset in ((0, 0, 0), (8, 3, 8)):
        crop = Block(tuple(int(a + b) for a, b in zip(origin, offset, strict=True)), (8, 8, 8))
        found = read_sample(TrainingBox(held, FLOWS, region), "velocity", crop, 3)
        whole = TrainingBox.slab(source, FLOWS, 0, 20)
        expected = read_sample(whole, "velocity", crop, 3)
        for name in ("density", "flows", "target"):
            assert torch.equal(getattr(found, name), getattr(expected, name))


def streamed(fields, seed=1, cells=20):
    boxes = [TrainingBox.slab(MemoryFields(fields), FLOWS, 0, cells)]
    return StreamedBoxes(boxes, seed, CROP, 2, 3, "velocity")


def test_a_stream_gives_the_crops_of_its_boxes(fields):
    stream = streamed(fields, cells=12)
    steps = 2 * stream.steps + 1
    assert stream.steps > 1
    source = MemoryFields(fields)
    for step in range(0, steps, stream.steps):
        for box in stream.at(step):
            # A region of 12 cells along x: its blocks are no larger, and do not leave it.
            first, cells = box.region.origin[0], box.region.shape[0]
            assert first >= 0
            assert first + cells <= 12
            block = Block(box.region.origin, (4, 4, 4))
            np.testing.assert_array_equal(
                box.source.read_block("density", grow(block, 3)),
                source.read_block("density", grow(block, 3)),
            )


def test_seed_and_step_alone_decide_what_is_streamed(fields):
    """A run that is resumed reads what the uninterrupted one reads."""

    def draw(stream, step):
        options = {"crop": CROP, "crops": range(2), "augment": True, "key": (1, step)}
        return draw_batch(stream.at(step), "velocity", GEOMETRY, **options).target

    whole = streamed(fields)
    step = 2 * whole.steps + 1
    for before in range(0, step, 20):
        draw(whole, before)
    expected = draw(whole, step)
    assert torch.equal(draw(streamed(fields), step), expected)
    assert not torch.equal(draw(streamed(fields, seed=2), step), expected)


def test_a_stream_lets_go_of_what_lies_behind(fields):
    stream = streamed(fields)
    for step in range(0, 10 * stream.steps, stream.steps):
        stream.at(step)
        assert len(stream._windows) <= 3


@each("ahead", [1, 3])
def test_batches_come_in_order_and_not_too_early(ahead):
    drawn, lock = [], threading.Lock()

    def draw(step):
        with lock:
            drawn.append(step)
        return step

    with Prefetcher(draw, 4, 12, ahead) as batches:
        for step in range(4, 12):
            assert next(batches) == step
            assert max(drawn) <= step + ahead
        with pytest.raises(StopIteration):
            next(batches)
    assert sorted(drawn) == list(range(4, 12))


def test_an_error_in_drawing_reaches_the_loop():
    def draw(step):
        if step == 2:
            raise ValueError("torn")
        return step

    with Prefetcher(draw, 0, 5, 2) as batches:
        assert list(itertools.islice(iter(batches.__next__, None), 2)) == [0, 1]
        with pytest.raises(ValueError, match="torn"):
            next(batches)
