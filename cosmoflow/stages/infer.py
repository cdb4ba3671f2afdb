"""From fields and a model to the velocity of the whole box."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import xarray as xr

from cosmoflow.config.settings import InferConfig
from cosmoflow.engine import available_memory
from cosmoflow.errors import ConfigError
from cosmoflow.events import Message, StageFinished
from cosmoflow.model.precision import best_device
from cosmoflow.model.registry import count_flops, widest_layer
from cosmoflow.model.sources import Flow
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.tiles import grid_blocks
from cosmoflow.stages.flows import ensure_flows
from cosmoflow.stages.models import (
    DEFAULT_MODEL,
    check_fits,
    find_model,
    is_named,
    model_digest,
    open_model,
)
from cosmoflow.stages.prediction import Layout, predict_block
from cosmoflow.stages.run import (
    Plan,
    Progress,
    Run,
    discarding_failures,
    require_memory,
    start_engine,
)
from cosmoflow.storage.fields import (
    RESTORED,
    FieldStore,
    create_fields,
    finished_shards,
    open_fields,
    write_block,
    write_whole,
)
from cosmoflow.storage.metadata import make_provenance
from cosmoflow.storage.outputs import check_output, finish_group
from cosmoflow.storage.urls import absolute, open_group_for_writing

_FLOPS_PER_SECOND = 1.5e11


def plan_infer(fields: str, model: str, run: Run) -> Plan:
    """Say what :func:`infer` would do."""
    store, found = FieldStore(fields), find_model(model)
    return _plan(store, open_model(found, store), found, run)


def _plan(store: FieldStore, model: VelocityModel, model_url: str, run: Run) -> Plan:
    check_fits(model, model_url, store)
    config = run.settings.infer
    layout = Layout.choose(config, model.geometry, store)
    per_axis = -(-layout.shard // layout.tile)
    shards = len(grid_blocks(store.grid, layout.shard))
    tiles = shards * per_axis**3
    cells = model.geometry.input_cells(layout.tile) ** 3
    region = model.geometry.input_cells(per_axis * layout.tile) ** 3
    channels = 1 + 3 * model.flows
    flops = config.symmetries * count_flops(model.spec.architecture, layout.tile)
    widest = widest_layer(model.network)
    return Plan(
        stage="infer",
        tasks=shards,
        unit="shards",
        # The shard's output and its inputs with halo, and of a batch the inputs and three of the
        # widest activations at full resolution, alive at once.
        worker_memory=3 * 4 * layout.shard**3
        + 4 * channels * region
        + config.batch * cells * 4 * (2 * channels + 3 * min(widest, 64)),
        read=shards * region * channels * 4,
        written=store.grid**3 * 12 * (1 + config.restore_power),
        cpu_seconds=tiles * flops / _FLOPS_PER_SECOND,
        details={
            "grid": store.grid,
            "shard": layout.shard,
            "tile": layout.tile,
            "halo": model.geometry.halo,
            "tiles": tiles,
            "flops": tiles * flops,
            "input_cells_per_output_cell": round(cells / layout.tile**3, 3),
        },
    )


def infer(fields: str, out: str, model: str = DEFAULT_MODEL, run: Run | None = None) -> xr.Dataset:
    """Predict the velocity (or momentum) of a whole box.

    Parameters
    ----------
    fields : str
        URL of a fields store with ``density``.
    out : str
        URL of the fields store to write.
    model : str
        The name of a model that comes with cosmoflow, by default its best network; ``linear`` or
        ``linear:R`` for linear theory smoothed at R Mpc/h; or the URL of a model folder.
    run : Run, optional
        Settings (section ``infer``), engine, progress.

    Returns
    -------
    xr.Dataset
        The model's target, lazy.

    Raises
    ------
    DataError
        The model was made for other cells, or a store or model is damaged.
    OutputExistsError, StorageError, ConfigError
    """
    run = run or Run()
    config = run.settings.infer
    fields, out, model = absolute(fields), absolute(out), find_model(model)
    check_output(out, run.existing, [fields] if is_named(model) else [fields, model])
    store = FieldStore(fields)
    network = open_model(model, store)
    store.require("density")
    check_fits(network, model, store, run.listener)
    if config.restore_power:
        _check_restorable(network, model, store, run)
    plan = _plan(store, network, model, run)
    target = network.spec.target
    layout = Layout.choose(config, network.geometry, store)
    flows = ensure_flows(fields, network.smoothing, network.spec.filter, run.listener)
    metadata = replace(
        store.metadata,
        provenance=make_provenance(
            "infer",
            # Tiles and batches change a result by rounding alone: a run that did not fit into
            # memory may be resumed with smaller ones.
            {
                "infer": config.model_dump(mode="json", exclude={"tile", "batch"}),
                "model": network.spec.architecture,
            },
            {"fields": store.digest, "model": model_digest(model)},
        ),
    )
    blocks = grid_blocks(store.grid, layout.shard)
    chunk = max(size for size in range(1, 65) if layout.shard % size == 0)
    finished = create_fields(
        out,
        metadata,
        store.grid,
        (target, RESTORED) if config.restore_power else (target,),
        shard=layout.shard,
        chunk=chunk,
        existing=run.existing,
    )
    todo = np.flatnonzero(~finished).tolist()
    progress = Progress(run.listener, "infer", len(blocks), "shards", len(blocks) - len(todo))
    if todo:
        with discarding_failures(out, begun_before=run.existing == "resume"):
            engine = start_engine(
                run, plan, remedy="a smaller infer.tile, infer.shard or infer.batch"
            )
            engine.map(
                partial(make_predictor, fields, model, flows, out, layout, config),
                todo,
                lambda shard, result: progress.advance(),
                workers=run.settings.engine.workers,
            )
    if not finished_shards(out).all():
        raise RuntimeError(f"{out}: the actors ended with unfinished shards")
    if config.restore_power:
        _restore(out, network, run)
    finish_group(open_group_for_writing(out))
    run.listener(StageFinished("infer", {"out": out, **plan.details}))
    return open_fields(out)


def _check_restorable(network: VelocityModel, model: str, store: FieldStore, run: Run) -> None:
    """Refuse to restore power without gains, or without the memory for it.

    Raises
    ------
    ConfigError
    """
    config = run.settings.infer
    if network.spec.gain is None or network.spec.target != "velocity":
        raise ConfigError(
            "the model has no gains to restore power with",
            where="infer.restore_power", value=model,
            remedy="leave it out, or train a velocity model on two boxes or more",
        )  # fmt: skip
    if network.spec.gain.symmetries != config.symmetries:
        raise ConfigError(
            "the gains were measured with another number of symmetries",
            where="infer.symmetries", value=config.symmetries, limit=network.spec.gain.symmetries,
            remedy=f"--set infer.symmetries={network.spec.gain.symmetries}",
        )  # fmt: skip
    cells = store.grid**3
    plan = Plan("restoring power", 1, "box", 64 * cells, 12 * cells, 12 * cells, 0.0)
    require_memory(run, plan, available_memory(), remedy="leave infer.restore_power out")


def _restore(out: str, network: VelocityModel, run: Run) -> None:
    """Add the velocity with the power of the true one beside the predicted one."""
    gain = network.spec.gain
    assert gain is not None
    run.listener(Message("restoring the power of small scales"))
    store = FieldStore(out, unfinished=True)
    velocity = torch.from_numpy(store.read("velocity"))
    write_whole(out, RESTORED, gain.restore(velocity, store.metadata.box_size).numpy())


def make_predictor(
    fields: str,
    model_url: str,
    flows: tuple[Flow, ...],
    out: str,
    layout: Layout,
    config: InferConfig,
) -> Callable[[int], int]:
    """Load the model in a worker and return what predicts and writes one shard there."""
    device = best_device()
    store = FieldStore(fields)
    model = open_model(model_url, store).to(device)
    model.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    blocks = grid_blocks(store.grid, layout.shard)

    def predict_shard(shard: int) -> int:
        values = predict_block(model, store, flows, blocks[shard], layout.tile, config, device)
        write_block(out, blocks[shard], shard, {model.spec.target: values})
        return shard

    return predict_shard
