"""Prediction of the velocity of a box, or of a region, from fields and models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cosmoflow.config.settings import choose_chunk
from cosmoflow.engine import available_memory
from cosmoflow.errors import ConfigError
from cosmoflow.events import Message, StageFinished, noting
from cosmoflow.model.names import DEFAULT_MODEL, is_named
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.numerics.blocks import grid_blocks, intersect
from cosmoflow.numerics.rounding import round_to
from cosmoflow.stages.flows import ensure_flows
from cosmoflow.stages.infer.layout import choose_layout, count_workers, one_local_worker
from cosmoflow.stages.infer.plan import InferPlan, plan_work
from cosmoflow.stages.infer.request import Work, check_work
from cosmoflow.stages.infer.worker import make_predictor
from cosmoflow.stages.inputs.condition import check_scatter
from cosmoflow.stages.inputs.density import check_contents
from cosmoflow.stages.inputs.lineage import descent_of
from cosmoflow.stages.inputs.notes import input_notes
from cosmoflow.stages.inputs.paintings import check_painting, painting_of
from cosmoflow.stages.models import find_model, model_digest, open_model, warn_of_namesake
from cosmoflow.stages.run import (
    Plan,
    Progress,
    Run,
    claiming,
    require_memory,
    start_engine,
)
from cosmoflow.storage.field_writing import create_fields, finished_shards, write_whole
from cosmoflow.storage.fields import RESTORED, FieldStore, open_fields
from cosmoflow.storage.identity import changed_input
from cosmoflow.storage.metadata import make_provenance
from cosmoflow.storage.origins import noted_origin
from cosmoflow.storage.outputs import begun_config, check_output, finish_group
from cosmoflow.storage.sampling import MODEL, Sampling
from cosmoflow.storage.urls import absolute, exists, open_group_for_writing

# xarray loads pandas, and only the result needs it.
if TYPE_CHECKING:
    import xarray as xr

Models = str | Sequence[str]


def plan_infer(fields: str, model: Models, run: Run) -> InferPlan:
    """Plan :func:`infer`."""
    store = FieldStore(fields)
    work, models = _prepare(store, listed(model), run)
    return plan_work(work, store, models, workers=count_workers(run))


def infer(
    fields: str, out: str, model: Models = DEFAULT_MODEL, run: Run | None = None
) -> xr.Dataset:
    """Predict the velocity (or momentum) of a box.

    Parameters
    ----------
    fields : str
        URL of a fields store that has ``density``.
    out : str
        URL of the fields store to write.
    model : str or sequence of str
        Name of a model that comes with cosmoflow, by default its best network; ``linear`` or
        ``linear:R`` for linear theory smoothed at R Mpc/h; or the URL of a model folder. The
        predictions of several models are averaged.
    run : Run, optional
        Settings (section ``infer``), engine, progress.

    Returns
    -------
    xr.Dataset
        The target of the models and the other requested fields, lazy; of the region, if one is set.

    Raises
    ------
    DataError
        A model was made for another cell size, a store or model is damaged, or a prediction is not
        finite.
    OutputExistsError, StorageError, ConfigError
    """
    infer_store(fields, out, model, run or Run())
    return open_fields(out)


def infer_store(fields: str, out: str, model: Models, run: Run) -> None:
    """Do what :func:`infer` does without opening the output, which takes xarray a second."""
    warned = list[str]()
    run = replace(run, listener=noting(run.listener, warned))
    fields, out = absolute(fields), absolute(out)
    names = listed(model)
    inputs = [fields, *(name for name in names if not is_named(name))]
    check_output(out, run.existing, inputs)
    store = FieldStore(fields)
    run = _keep_precision(out, run)
    work, models = _prepare(store, names, run)
    if work.config.restore_power:
        _check_restorable(work, models, store, run)
    plan = plan_work(work, store, models, measured=False, workers=count_workers(run))
    check_contents(store, ["density"], run)
    check_scatter(store, store, names, models, run.listener)
    # Before anything is written, so that a refused run leaves an older output unchanged.
    engine = start_engine(
        run,
        plan,
        remedy="a smaller infer.tile, infer.shard or infer.batch",
        cpu_seconds=0.0 if one_local_worker(run) else None,
    )
    # Before the flows are made, so that a later change of the density is noticed at the end.
    provenance = make_origin(
        work,
        models,
        (store.url, store.digest),
        notes=[*input_notes({"fields": store}), *warned],
        facts=descent_of(store),
    )
    flows = tuple(
        ensure_flows(fields, one.smoothing, one.spec.filter, run, model=name)
        for name, one in zip(names, models, strict=True)
    )
    provenance["notes"] = list(dict.fromkeys([*provenance["notes"], *warned]))
    # Workers compare filter and origin with those of the flow they read, and stop if it was
    # replaced. They do not compute the digest themselves: their processors may round differently.
    digest = next((one.spec.filter.digest for one in models if one.spec.filter is not None), None)
    work = replace(work, flows=flows, filter=digest, origin=noted_origin(FieldStore(fields)))
    blocks = grid_blocks(store.grid, work.layout.shard)
    wanted = np.array([intersect(block, work.region) is not None for block in blocks])
    with claiming(out, run) as claim:
        finished = create_fields(
            out,
            replace(
                store.metadata,
                provenance=provenance,
                redshift_space=painting_of(store).redshift_space,
                sampling=_sampling(store, work.config.particles_per_cell),
            ),
            store.grid,
            (*work.variables, RESTORED) if work.config.restore_power else work.variables,
            shard=work.layout.shard,
            chunk=choose_chunk(work.layout.shard),
            existing=run.existing,
            attributes=work.attributes,
            region=None if work.config.region is None else work.region,
        )
        done = int((finished & wanted).sum())
        progress = Progress(run.listener, "infer", int(wanted.sum()), "shards", done, claim=claim)
        if tasks := work.tasks(store.grid, (~finished).tolist()):
            engine.map(
                partial(make_predictor, fields, work, out, provenance["digest"]),
                tasks,
                lambda task, result: progress.advance(len(task)),
                run_of=partial(work.column_of, store.grid) if work.layout.columns else None,
                name="infer",
                workers=run.settings.engine.workers,
                memory=plan.worker_memory,
                accelerated=True,
            )
        if not finished_shards(out)[wanted].all():
            raise RuntimeError(f"{out}: the actors ended with unfinished shards")
        claim.check()
        if work.config.restore_power:
            _restore(out, models[0], run)
        store.check_unchanged()
        _check_models(work, provenance)
        claim.check()
        finish_group(open_group_for_writing(out))
    run.listener(StageFinished("infer", {"out": out, **plan.details}))


def _keep_precision(out: str, run: Run) -> Run:
    """Return a run that resumes with the precision it began with, on any machine."""
    if run.existing != "resume" or run.settings.infer.precision != "auto" or not exists(out):
        return run
    config = begun_config(out).get("infer", {})
    infer = run.settings.infer.model_copy(update={"precision": config.get("precision", "auto")})
    return replace(run, settings=run.settings.model_copy(update={"infer": infer}))


def listed(model: Models) -> tuple[str, ...]:
    """Return the names or URLs of one or several models that are valid on every node."""
    names = (model,) if isinstance(model, str) else model
    if not names:
        raise ConfigError("no model is given", where="model", remedy="name one, or leave it out")
    return tuple(map(find_model, names))


def _prepare(store: FieldStore, names: Sequence[str], run: Run) -> tuple[Work, list[VelocityModel]]:
    """Open the models, check the request, and cut the box."""
    particles = run.settings.infer.particles_per_cell
    for name in names:
        warn_of_namesake(name, run.listener)
    models = [open_model(name, store, particles_per_cell=particles) for name in names]
    store.require("density")
    work = check_work(store, names, models, run)
    check_painting(store, names, models, run.listener)
    return replace(work, layout=choose_layout(work, store, models, run)), models


def make_origin(
    work: Work,
    models: Sequence[VelocityModel],
    density: tuple[str, str],
    *,
    notes: Sequence[str],
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the provenance of a prediction.

    Parameters
    ----------
    work : Work
        The validated request.
    models : sequence of VelocityModel
        The models.
    density : tuple of str
        URL and digest of the density.
    notes : sequence of str
        Assumptions and warnings.
    facts : mapping, optional
        Facts that the density passes on.
    """
    url, digest = density
    # Tiles and batches change a result only by rounding, so a run that did not fit into memory can
    # be resumed with smaller ones.
    config = work.config.model_dump(mode="json", exclude={"tile", "batch"})
    return make_provenance(
        "infer",
        {"infer": config, "models": [model.spec.architecture for model in models]},
        {"fields": digest, "models": _digest_models(work)},
        sources={"fields": url, "models": " ".join(work.models)},
        notes=notes,
        facts=facts,
    )


def _digest_models(work: Work) -> str:
    return " ".join(model_digest(name) for name in work.models)


def _check_models(work: Work, provenance: dict[str, Any]) -> None:
    """Refuse models that changed while workers loaded them."""
    before, now = provenance["inputs"]["models"], _digest_models(work)
    if before != now:
        raise changed_input(" ".join(work.models), before, now)


def _sampling(store: FieldStore, stated: float | None) -> Sampling | None:
    """Return the sampling of the density, with the model as the fill of empty cells.

    The stated number of particles counts where the density does not tell it, as for the models.
    """
    found = store.metadata.sampling
    if found is None:
        return None
    if found.particles_per_cell is None and stated is not None:
        found = replace(found, particles_per_cell=stated, stated=True)
    return replace(found, fill=MODEL)


def _check_restorable(
    work: Work, models: Sequence[VelocityModel], store: FieldStore, run: Run
) -> None:
    """Refuse to restore power without gains or without enough memory."""
    gain = models[0].spec.gain
    if len(models) > 1 or gain is None or work.target != "velocity":
        raise ConfigError(
            "gains apply to one model only"
            if len(models) > 1
            else "the model has no gains to restore power with",
            where="infer.restore_power",
            value=", ".join(work.models),
            remedy="leave it out, or train a velocity model on two boxes or more, with "
            "train.measure_gain above 0 and enough memory to transform a box",
        )
    if gain.symmetries != work.config.symmetries:
        raise ConfigError(
            "the gains were measured with another number of symmetries",
            where="infer.symmetries",
            value=work.config.symmetries,
            limit=gain.symmetries,
            remedy=f"--set infer.symmetries={gain.symmetries}",
        )
    cells = store.grid**3
    plan = Plan("restoring power", 1, "box", 64 * cells, 12 * cells, 12 * cells, 0.0)
    require_memory(run, plan, available_memory(), remedy="leave infer.restore_power out")


def _restore(out: str, model: VelocityModel, run: Run) -> None:
    """Add the velocity with restored power beside the predicted one."""
    gain, rounding = model.spec.gain, run.settings.infer.rounding
    assert gain is not None
    run.listener(Message("restoring the power of small scales"))
    store = FieldStore(out, unfinished=True)
    velocity = torch.from_numpy(store.read("velocity"))
    restored = gain.restore(velocity, store.metadata.box_size).numpy()
    write_whole(out, RESTORED, restored if rounding is None else round_to(restored, rounding))
