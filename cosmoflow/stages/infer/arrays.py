"""Inference in memory: on arrays, for notebooks, and on whole boxes, to evaluate models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.config.networks import InferConfig
from cosmoflow.engine import keeping_freed_buffers
from cosmoflow.errors import ConfigError
from cosmoflow.events import noting
from cosmoflow.model.names import DEFAULT_MODEL
from cosmoflow.model.sources import FieldSource, Flow, MemoryFields
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.blocks import Block, grid_blocks, place
from cosmoflow.numerics.field_table import LABELS, STORED
from cosmoflow.numerics.fourier import linear_velocity
from cosmoflow.stages.flows.checks import check_modes, check_weights, is_physical, refuse_flow
from cosmoflow.stages.infer.command import Models, listed, make_origin
from cosmoflow.stages.infer.ensemble import Ensemble, Floats, Member, Prediction
from cosmoflow.stages.infer.layout import choose_layout
from cosmoflow.stages.infer.request import Work, check_work, wanted_block
from cosmoflow.stages.infer.tiles import Layout
from cosmoflow.stages.infer.worker import compute, finish_fields
from cosmoflow.stages.inputs.condition import check_scatter
from cosmoflow.stages.inputs.density import check_array
from cosmoflow.stages.inputs.expansion import growth_rate_hubble
from cosmoflow.stages.inputs.notes import tell_assumed
from cosmoflow.stages.models import open_model
from cosmoflow.stages.run import Run
from cosmoflow.storage.finite import count_not_finite, not_finite
from cosmoflow.storage.metadata import Box, BoxMetadata, check_box, flat_attributes
from cosmoflow.storage.origins import WIENER
from cosmoflow.units import LENGTH

# xarray loads pandas, and stores that `infer` reads and writes do without.
if TYPE_CHECKING:
    import xarray as xr

SHARD = 128
"""Least cells per axis that are predicted at once."""

BLOCK_CELLS = 128
"""Cells per axis of a block of :func:`predict_box`."""


@dataclass(frozen=True, slots=True)
class ArrayBox:
    """A periodic box whose density is an array.

    Parameters
    ----------
    metadata : BoxMetadata
        Size, redshift and cosmology of the box.
    grid : int
        Cells per axis.
    """

    metadata: BoxMetadata
    grid: int
    url: str = "the density array"

    @property
    def cell_size(self) -> float:
        """Side of a cell, Mpc/h."""
        return self.metadata.box_size / self.grid

    @property
    def shard(self) -> int:
        """Least cells per axis that are predicted at once."""
        return min(SHARD, self.grid)

    @property
    def chunk(self) -> int:
        """Cells per axis of a stored chunk: the whole grid, as an array needs no decoding."""
        return self.grid


def infer_array(
    density: ArrayLike,
    box_size: float,
    model: Models = DEFAULT_MODEL,
    *,
    redshift: float | None = None,
    cosmology: CosmologyConfig | None = None,
    run: Run | None = None,
) -> xr.Dataset:
    """Predict the velocity (or momentum) of a box whose density is in memory.

    Parameters
    ----------
    density : array_like
        Matter density of a periodic box over its mean, shape ``(n, n, n)``.
    box_size : float
        Side of the box, Mpc/h.
    model : str or sequence of str
        As in :func:`cosmoflow.infer`.
    redshift : float, optional
        Redshift of the density; by default 0, with a warning.
    cosmology : CosmologyConfig, optional
        Cosmology of the box. Parameters that it does not state have cosmoflow's defaults, with a
        warning if it states others.
    run : Run, optional
        Settings (section ``infer``).

    Returns
    -------
    xr.Dataset
        The dataset that :func:`cosmoflow.infer` returns, in memory. Its provenance names the models
        and notes what was assumed.

    Raises
    ------
    DataError
        The array is not a density over its mean on a cubic grid, a model was made for another cell
        size, or a prediction is not finite.
    ConfigError
    """
    run, warned = run or Run(), list[str]()
    run = replace(run, listener=noting(run.listener, warned))
    check_box(box_size, 0.0 if redshift is None else redshift, "infer_array")
    if not isinstance(cosmology, CosmologyConfig | None):
        raise ConfigError(
            "this is not a cosmology",
            where="cosmology",
            value=repr(cosmology),
            limit="a mapping or a CosmologyConfig",
        )
    # Imported here: the readers of cubes load xarray and h5py.
    from cosmoflow.storage.cubes import IN_MEMORY, digest_array, order_array

    given = order_array(density, "the density array", box_size)
    check_array(given, "the density array")
    field: Floats = np.ascontiguousarray(given, np.float32)
    metadata, assumed = _describe_box(box_size, redshift, cosmology, run)
    box = ArrayBox(metadata, field.shape[0])
    if run.settings.infer.restore_power:
        raise ConfigError(
            "power is restored in stores only",
            where="infer.restore_power",
            remedy="leave it out, or use cosmoflow.infer",
        )
    names = listed(model)
    particles = run.settings.infer.particles_per_cell
    models = [open_model(name, box, particles_per_cell=particles) for name in names]
    work = check_work(box, names, models, run)
    check_scatter(MemoryFields({"density": field}), box, names, models, run.listener)
    work = replace(work, layout=choose_layout(work, box, models, run))
    with keeping_freed_buffers():
        source, flows = add_flows(field, box, models, names)
    work = replace(work, flows=tuple(flows))
    ensemble = Ensemble.load(models, work.flows, work.layout, work.config)
    with keeping_freed_buffers():
        fields = _predict_region(ensemble, source, work, box)
    origin = make_origin(work, models, (IN_MEMORY, digest_array(field)), notes=[*assumed, *warned])
    metadata = replace(metadata, provenance=origin)
    return _to_dataset(fields, work, replace(box, metadata=metadata))


def _describe_box(
    box_size: float, redshift: float | None, cosmology: CosmologyConfig | None, run: Run
) -> tuple[BoxMetadata, list[str]]:
    """Return the metadata of a box, and the notes on what was assumed."""
    given = cosmology or CosmologyConfig()
    assumed = {} if redshift is not None else {"redshift": 0.0}
    notes = tell_assumed(assumed | given.assumed, run.listener, warn=redshift is None)
    return BoxMetadata(box_size, redshift or 0.0, given), notes


def add_flows(
    density: Floats, box: Box, models: list[VelocityModel], names: Sequence[str]
) -> tuple[MemoryFields, list[tuple[Flow, ...]]]:
    """Make the global velocities of the models; return the box and the flows of each model."""
    size, rate = box.metadata.box_size, growth_rate_hubble(box.metadata)
    fields: dict[str, Floats] = {"density": density}
    source = torch.from_numpy(density)
    radii = sorted({radius for model in models for radius in model.smoothing})
    if radii:
        linear = [linear_velocity(source, size, rate, radius).numpy() for radius in radii]
        fields["linear_velocity"] = np.stack(linear)
    flows: list[tuple[Flow, ...]] = []
    for name, model in zip(names, models, strict=True):
        wiener = model.spec.filter
        if wiener is not None and WIENER not in fields:
            check_weights(wiener, name)
            flow = wiener.velocity(source, size, rate)
            if not is_physical(flow):
                check_modes(source, size, wiener.fields, box.url)
                raise refuse_flow(wiener, rate, box.url, size, name)
            fields[WIENER] = flow.numpy()
        first: tuple[Flow, ...] = () if wiener is None else (WIENER,)
        flows.append((*first, *(radii.index(radius) for radius in model.smoothing)))
    return MemoryFields(fields), flows


def _predict_region(
    ensemble: Ensemble, source: MemoryFields, work: Work, box: ArrayBox
) -> dict[str, Floats]:
    """Predict the blocks of the region one by one."""
    fields: dict[str, Floats] = {}
    blocks = grid_blocks(box.grid, work.layout.shard)
    for shards in work.tasks(box.grid, [True] * len(blocks)):
        block = wanted_block([blocks[shard] for shard in shards], work.region, 0)
        inputs = ensemble.read(source, wanted_block([block], work.region, work.halo))
        computed = compute(ensemble, inputs, work)
        found = finish_fields(ensemble, computed, block, work, box.cell_size)
        for name, values in found.items():
            if bad := count_not_finite(values):
                said = {"stage": "infer", "sources": {"models": " ".join(work.models)}}
                raise not_finite(bad, values.size, said, f"{name} of {box.url}")
            if name not in fields:
                fields[name] = np.empty((*values.shape[:-3], *work.region.shape), np.float32)
            fields[name][(..., *place(block, work.region))] = values
    return fields


def _to_dataset(fields: dict[str, Floats], work: Work, box: ArrayBox) -> xr.Dataset:
    """Return the fields of the region as a dataset like that of a store."""
    coordinates: dict[str, Any] = {}
    for axis, first, length in zip("xyz", work.region.origin, work.region.shape, strict=True):
        centres = (np.arange(first, first + length) + 0.5) * box.cell_size
        coordinates[axis] = (axis, centres, {"units": LENGTH})
    variables = {}
    own = work.attributes
    for name, values in fields.items():
        row = STORED[name]
        dims = ("x", "y", "z") if row.lead is None else (row.lead, "x", "y", "z")
        said = {"units": row.unit, "long_name": row.long_name, **own[name]}
        variables[name] = (dims, values, said)
    used = {lead for name in fields if (lead := STORED[name].lead) is not None}
    coordinates |= {lead: (lead, list(LABELS[lead])) for lead in used}
    import xarray as xr

    return xr.Dataset(variables, coordinates, flat_attributes(box.metadata.to_attributes("fields")))


def predict_box(
    members: Sequence[Member],
    source: FieldSource,
    config: InferConfig,
    device: torch.device,
) -> Prediction:
    """Predict a whole periodic box in memory.

    Parameters
    ----------
    members, config, device
        See :class:`Ensemble`.
    source : FieldSource
        The box.

    Returns
    -------
    Prediction
        Prediction of the box, shapes ``(3, n, n, n)``.
    """
    grid = source.grid
    mean = np.empty((3, grid, grid, grid), np.float32)
    spread = np.empty_like(mean) if config.spread else None
    size = np.empty_like(mean) if config.errors else None
    blocks = grid_blocks(grid, min(BLOCK_CELLS, grid))
    predictions = predict_blocks(members, source, blocks, config, device)
    for one, found in zip(blocks, predictions, strict=True):
        x, y, z = place(one, Block((0, 0, 0), (grid, grid, grid)))
        mean[:, x, y, z] = found.mean
        if spread is not None and found.spread is not None:
            spread[:, x, y, z] = found.spread
        if size is not None and found.size is not None:
            size[:, x, y, z] = found.size
    return Prediction(mean, spread, size)


def predict_blocks(
    members: Sequence[Member],
    source: FieldSource,
    blocks: Sequence[Block],
    config: InferConfig,
    device: torch.device,
) -> Iterator[Prediction]:
    """Yield the predictions of blocks of a box in memory; see :func:`predict_box`."""
    block = min(BLOCK_CELLS, source.grid)
    stride = math.lcm(*(member.model.geometry.stride for member in members))
    tile, batch = config.tile or -(-block // stride) * stride, config.batch or 1
    layout = Layout(block, (block, block, block), tile, batch, config.overlap)
    ensemble = Ensemble(members, layout, config, device)
    for one in blocks:
        yield ensemble.predict(ensemble.read(source, one))
