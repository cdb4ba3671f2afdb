"""How boxes of any size are cut: within memory, with little halo, and at once."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from cosmoflow.config import load_settings
from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.engine import Resources
from cosmoflow.errors import ConfigError
from cosmoflow.model.velocity import UNIT, ModelSpec, VelocityModel
from cosmoflow.numerics.blocks import Block, grid_blocks
from cosmoflow.stages.infer.layout import choose_layout, count_workers, worker_memory
from cosmoflow.stages.infer.request import Device, check_work, wanted_block
from cosmoflow.stages.infer.tiles import cut_tiles
from cosmoflow.stages.run import Run
from cosmoflow.storage.metadata import BoxMetadata
from tests.cases import each
from tests.unit.test_networks import UNIT_FILTER

GIB = 1 << 30


class Box:
    """A box of any size that nobody reads."""

    url, shard, chunk = "a box", 128, 64

    def __init__(self, grid):
        self.grid = grid
        self.metadata = BoxMetadata(2.0 * grid, 0.0, CosmologyConfig())
        self.cell_size = 2.0


def model_of(name):
    wiener = UNIT_FILTER if name.startswith("residual") else None
    cosmology = CosmologyConfig().model_dump(mode="json")
    return VelocityModel(ModelSpec(name, "velocity", 2.0, 0.0, cosmology, UNIT, filter=wiener))


def cut(name, grid, memory="4GiB", **infer):
    settings = load_settings(
        options={"infer": {"precision": "bfloat16"} | infer, "engine": {"memory": memory}}
    )
    run, box, models = Run(settings), Box(grid), [model_of(name)]
    work = check_work(box, [name], models, run)
    layout = choose_layout(work, box, models, run)
    return replace(work, layout=layout), models


@each("name", ["linear", "paper", "residual-small"])
@each("grid", [128, 1024, 8192])
def test_boxes_of_any_size_are_cut_at_once(name, grid):
    begun = time.process_time()
    work, models = cut(name, grid)
    assert time.process_time() - begun < 10.0
    assert worker_memory(work, models) <= 4 * GIB
    assert all(side % 128 == 0 for side in work.layout.block)


def test_what_has_no_halo_goes_in_one_pass():
    work, _ = cut("linear", 512)
    assert work.layout.tile >= max(work.layout.block)


def test_the_tile_of_the_papers_network_is_its_own():
    work, _ = cut("paper", 512)
    assert work.layout.tile == 20
    assert work.layout.batch > 1


@each("memory", [600, 800, 1000, 2000])
def test_a_worker_keeps_within_its_memory(memory):
    work, models = cut("residual-small", 1024, f"{memory}MB")
    assert worker_memory(work, models) <= memory * 10**6


def test_more_memory_means_less_halo():
    tiles = [cut("residual-small", 1024, memory)[0].layout.tile for memory in ("600MB", "2GB")]
    assert tiles[0] < tiles[1]


def test_one_tile_takes_a_block_and_what_derivatives_need_around_it():
    work, models = cut("residual-small", 128, fields=("divergence",))
    shards = grid_blocks(128, 128)
    block = wanted_block([shards[0]], work.region, work.halo)
    assert block.shape == (130, 130, 130)
    tiles = cut_tiles(block, models[0].geometry, work.layout)
    assert len(tiles) == 1
    assert tiles.shape == (136, 136, 136)


def test_a_small_region_needs_little_memory_and_few_tasks():
    whole, models = cut("residual-small", 1024)
    part, _ = cut("residual-small", 1024, region="300:364,300:364,300:364")
    assert worker_memory(part, models) < 0.3 * worker_memory(whole, models)
    assert len(part.tasks(1024, [True] * 8**3)) <= 8
    assert len(whole.tasks(1024, [True] * 8**3)) >= 8


@each(("free", "tile"), [(0.5, (64, 64, 64)), (2.5, (128, 128, 256)), (4, (128, 256, 256))])
def test_a_gpu_limits_the_tile(monkeypatch, free, tile):
    device = Device("bfloat16", int(free * GIB))
    monkeypatch.setattr(Device, "here", classmethod(lambda cls: device))
    work, models = cut("residual-small", 1024)
    block = Block((0, 0, 0), work.extent)
    assert cut_tiles(block, models[0].geometry, work.layout).shape == tile


def test_workers_with_gpus_are_as_many_as_there_are_gpus():
    """Cores of a pool without GPUs make no more of them."""
    settings = load_settings(options={"engine": {"address": "10.0.0.1:6379"}})
    pools = SimpleNamespace(cpus=528, gpus=2, share=lambda *args, **how: Resources(8, 1))
    session = SimpleNamespace(engine=lambda seconds: pools)
    assert count_workers(Run(settings, session)) == 2
    pools.share = lambda *args, **how: Resources(8)
    assert count_workers(Run(settings, session)) == 66


def test_slopes_of_a_padded_network_are_left_to_derive():
    with pytest.raises(ConfigError, match="without padding") as caught:
        cut("paper", 128, fields=("momentum", "divergence"))
    assert caught.value.value == "divergence"
    assert cut("paper", 128, fields=("momentum",))[0].halo == 0


@each(("name", "tile"), [("paper", 24), ("residual-small", 30)])
def test_tiles_that_a_network_does_not_have_are_refused(name, tile):
    with pytest.raises(ConfigError) as caught:
        cut(name, 128, tile=tile)
    assert caught.value.where == "infer.tile"


def test_more_than_half_a_tile_cannot_be_shared():
    with pytest.raises(ConfigError, match="more than half"):
        cut("paper", 128, overlap=11)
    assert cut("paper", 128, overlap=10)[0].layout.overlap == 10
