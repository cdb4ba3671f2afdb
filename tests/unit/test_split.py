"""What a lone box keeps for validation, and the constants of its normalisation."""

from types import SimpleNamespace

import numpy as np
import pytest

from cosmoflow.config.networks import TrainConfig
from cosmoflow.errors import ConfigError, DataError
from cosmoflow.model.registry import find_architecture, summarise
from cosmoflow.model.samples import (
    TrainingBox,
    draw_batch,
    measure_normalisation,
    split_lone_box,
    validation_blocks,
)
from cosmoflow.model.sources import MemoryFields
from cosmoflow.stages.train.basis import settle
from cosmoflow.stages.train.plan import plan_training
from tests.cases import each

NAMES = ("residual-tiny", "residual-medium", "paper")


def geometry_of(name):
    import torch

    with torch.device("meta"):
        return find_architecture(name).build().geometry


class Recorder(MemoryFields):
    """A box whose velocity reads are noted."""

    def __init__(self, fields):
        super().__init__(fields)
        self.targets = []

    def read_block(self, name, block, *, lead=()):
        if name == "velocity":
            self.targets.append(block)
        return super().read_block(name, block, lead=lead)


@each("name", NAMES)
@each("grid", [40, 52, 61, 64])
@each("fraction", [0.05, 0.125, 0.3])
def test_no_target_cell_is_both_learned_from_and_validated_on(name, grid, fraction):
    geometry = geometry_of(name)
    crop = geometry.fixed_output or 12
    slab = split_lone_box(grid, fraction, crop, geometry)
    assert slab >= fraction * grid
    fields = {
        "density": np.ones((grid,) * 3, np.float32),
        "velocity": np.zeros((3, *(grid,) * 3), np.float32),
    }
    source = Recorder(fields)
    box = TrainingBox.slab(source, (), 0, grid - slab)
    for step in range(6):
        draw_batch(
            [box], "velocity", geometry, crop=crop, crops=range(4), augment=True, key=(1, step)
        )  # fmt: skip
    learned = np.zeros(grid, bool)
    assert len(source.targets) == 24
    for block in source.targets:
        learned[np.arange(block.origin[0], block.origin[0] + block.shape[0]) % grid] = True
    blocks = validation_blocks(grid, grid - slab, slab, crop, geometry, 8)
    assert 1 <= len(blocks) <= 8
    assert len({block.origin for block in blocks}) == len(blocks)
    for block in blocks:
        x = np.arange(block.origin[0], block.origin[0] + block.shape[0])
        assert x.max() < grid
        assert not learned[x].any()
        for length in block.shape:
            assert geometry.check_output(length, "validation") == length


@each("name", NAMES)
def test_every_crop_position_beside_the_slab_can_be_drawn(name):
    """The last crop ends at the slab: one cell fewer loses data, one more learns the slab."""
    geometry = geometry_of(name)
    crop = geometry.fixed_output or 12
    grid = crop + 23
    slab = split_lone_box(grid, 0.1, crop, geometry)
    fields = {
        "density": np.ones((grid,) * 3, np.float32),
        "velocity": np.zeros((3, *(grid,) * 3), np.float32),
    }
    source = Recorder(fields)
    box = TrainingBox.slab(source, (), 0, grid - slab)
    # The geometry's halo is of no matter here, so only the target is read in full.
    draw_batch([box], "velocity", geometry, crop=crop, crops=range(120), augment=False, key=(0, 0))
    starts = {block.origin[0] for block in source.targets}
    assert starts == set(range(grid - slab - crop + 1))


def test_the_paper_keeps_one_whole_tile_or_refuses():
    geometry = geometry_of("paper")
    tile = summarise("paper").output_cells
    assert split_lone_box(2 * tile, 0.125, tile, geometry) == tile
    with pytest.raises(DataError) as caught:
        split_lone_box(2 * tile - 1, 0.125, tile, geometry)
    assert caught.value.exit_code == 3
    assert caught.value.limit == tile - 1


@each("target", ["velocity", "momentum"])
@each("scales", [(), (0, 1), (1, 0)])
@each(("first", "cells"), [(0, 20), (3, 11)])
def test_normalisation_is_numpys(target, scales, first, cells):
    rng = np.random.default_rng(3)
    grid, offset = 20, 0.1
    rho = rng.lognormal(0.0, 1.0, (grid,) * 3).astype(np.float32)
    flows = (rng.normal(size=(2, 3, *(grid,) * 3)) * [[[[[200.0]]]], [[[[90.0]]]]]).astype(
        np.float32
    )
    # A gradient along x, so that the wrong slab gives the wrong numbers.
    rho *= np.linspace(0.2, 2.0, grid, dtype=np.float32)[:, None, None]
    field = (flows[0] * 1.3 + 40.0 * rng.normal(size=flows[0].shape)).astype(np.float32)
    field *= np.linspace(1.0, 3.0, grid, dtype=np.float32)[:, None, None]
    source = MemoryFields({"density": rho, "linear_velocity": flows, target: field})
    found = measure_normalisation([TrainingBox.slab(source, scales, first, cells)], target, offset)

    part = slice(first, first + cells)
    logarithm = np.log(rho[part].astype(float) + offset)
    assert found.density_mean == pytest.approx(logarithm.mean(), rel=1e-5)
    assert found.density_std == pytest.approx(logarithm.std(), rel=1e-5)
    wanted = field[:, part].astype(float)
    if not scales:
        expected_flow = expected_residual = np.sqrt((wanted**2).mean())
    else:
        flow = flows[scales[0]][:, part].astype(float)
        expected_flow = np.sqrt((flow**2).mean())
        linear = flow if target == "velocity" else flow * rho[part]
        expected_residual = np.sqrt(((wanted - linear) ** 2).mean())
    assert found.velocity_scale == pytest.approx(expected_flow, rel=1e-5)
    assert found.target_scale == pytest.approx(expected_residual, rel=1e-5)


def test_normalisation_of_a_box_read_in_many_slabs_is_that_of_the_whole():
    """A grid whose slabs do not divide it: 2**22 cells a read are 18 layers of 480^2."""
    grid = 480

    class Striped:
        """A box that varies along x only and is made when read."""

        line = np.exp(np.sin(np.arange(grid) * 0.37)).astype(np.float32)

        def __init__(self):
            self.grid = grid
            self.layers = []

        def read_block(self, name, block, *, lead=()):
            x = np.arange(block.origin[0], block.origin[0] + block.shape[0])
            self.layers.extend(x.tolist() if name == "density" else [])
            values = self.line[x][:, None, None] * (1.0 if name == "density" else 300.0)
            shape = block.shape if name == "density" else (3, *block.shape)
            return np.broadcast_to(values.astype(np.float32), shape)

    source = Striped()
    found = measure_normalisation([TrainingBox.slab(source, (), 5, 50)], "velocity", 1.0)
    assert source.layers == list(range(5, 55))
    line = source.line[5:55].astype(float)
    assert found.density_mean == pytest.approx(np.log1p(line).mean(), rel=1e-5)
    assert found.density_std == pytest.approx(np.log1p(line).std(), rel=1e-5)
    assert found.target_scale == pytest.approx(300.0 * np.sqrt((line**2).mean()), rel=1e-5)


@each(("grids", "crop"), [((48,), 40), ((32,), 28), ((96,), 48), ((48, 48), 48)])
def test_the_default_crop_leaves_room_for_the_slab_of_a_lone_box(serial_run, grids, crop):
    assert plan_training(grids, serial_run()).crop == crop


def test_settings_that_follow_from_a_start_are_checked_like_others():
    """The target of the start was not known when the settings were read."""
    spec = SimpleNamespace(architecture="residual-small", target="momentum", errors=None)
    config = TrainConfig(density_weight=1.0)
    with pytest.raises(ConfigError, match="density_weight is for velocities"):
        settle(config, SimpleNamespace(spec=spec))
