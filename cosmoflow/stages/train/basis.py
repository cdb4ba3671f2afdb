"""What a network is trained on: constants, Wiener filters, and the model that it starts from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cosmoflow.config.cosmology import EXTENSIONS, CosmologyConfig
from cosmoflow.config.loading import revise_settings
from cosmoflow.config.networks import TrainConfig
from cosmoflow.config.settings import Settings
from cosmoflow.cosmology.conditions import Condition, find_condition
from cosmoflow.errors import ConfigError
from cosmoflow.events import DETAIL, Message, ignore
from cosmoflow.model.description import read_family, read_filter
from cosmoflow.model.family import Family, FamilySpec, ModelFamily
from cosmoflow.model.folder import Model
from cosmoflow.model.names import is_named, model_folder
from cosmoflow.model.registry import Architecture, find_architecture
from cosmoflow.model.sources import Flow
from cosmoflow.model.starting import START_RATE, begin_model, choose_layers
from cosmoflow.model.velocity import ModelSpec, Reconstruction, VelocityModel, build_network
from cosmoflow.numerics.wiener import SETS, WienerFilter
from cosmoflow.stages.flows import ensure_flows
from cosmoflow.stages.inputs.condition import condition_of
from cosmoflow.stages.models import find_model, load_model, model_digest
from cosmoflow.stages.run import Progress, Run
from cosmoflow.stages.train.data import Split, fit_filter, normalise
from cosmoflow.stages.train.family import fit_constants, fit_family
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.identity import changed_input
from cosmoflow.storage.origins import noted_origin
from cosmoflow.storage.urls import has_file, read_bytes

FILTER = "filter.json"
"""File with the filter or family of a run, written at its start for runs that resume it."""

_FEWEST_ERROR_STEPS = 100
"""Default steps for the errors of a model that starts from one that knows its errors, at least."""

_OFTEN, _VALIDATIONS = 10, 10
"""Fewest steps between the validations of a tuning by default, and their number in a short one."""


@dataclass(frozen=True)
class Basis:
    """What a network is trained on.

    Parameters
    ----------
    split : Split
        The boxes, with their flows and frames.
    spec : ModelSpec or FamilySpec
        Description of the model to train.
    kept : WienerFilter, Family or None
        What runs that resume this one need to make the same flows.
    condition : Condition or None
        Condition of the model of one condition that a family starts from.
    """

    split: Split
    spec: ModelSpec | FamilySpec
    kept: WienerFilter | Family | None
    condition: Condition | None = None


@dataclass(frozen=True)
class Start:
    """The model that a training starts from.

    Parameters
    ----------
    name : str
        Identifier of the model that is valid on every node.
    digest : str
        Digest of the model.
    """

    name: str
    digest: str

    @classmethod
    def find(cls, config: TrainConfig) -> Start | None:
        """Return the model that the setting ``train.start`` names, if there is one."""
        if config.start is None:
            return None
        name = find_model(config.start)
        return cls(name, model_digest(name))

    @property
    def folders(self) -> tuple[str, ...]:
        """Folder that the training must not write to; none of a model that ships."""
        return () if is_named(self.name) else (self.name,)

    def load(self) -> Model:
        """Load the model, in the driver or in a worker; refuse one that has changed."""
        if (now := model_digest(self.name)) != self.digest:
            raise changed_input(self.name, self.digest, now)
        return load_model(model_folder(self.name))


def settle(config: TrainConfig, start: Model | None) -> TrainConfig:
    """Return the settings of a training.

    Settings that are not set follow from the model that it starts from: its architecture, its
    target, and learning rates that do not undo what it has learned.

    Raises
    ------
    ConfigError
        The model has another architecture or target than the one to train, or the architecture has
        no head for errors or no such layers.
    """
    if start is not None:
        config = _follow(config, start)
    architecture = find_architecture(config.model)
    if architecture.learns:
        # Before the training, and not at its end.
        network = build_network(architecture, errors=config.error_steps > 0)
        choose_layers(network, config.layers)
    return config


def _follow(config: TrainConfig, start: Model) -> TrainConfig:
    """Return settings that follow from a model where they are not set."""
    found: dict[str, Any] = {
        "model": start.spec.architecture,
        "target": start.spec.target,
    }
    found |= {name: START_RATE * getattr(config, name) for name in ("learning_rate", "muon_rate")}
    # Few steps are best early, so that a tuning looks more often.
    found["validate_every"] = min(config.validate_every, max(_OFTEN, config.steps // _VALIDATIONS))
    if start.spec.errors is not None:
        found["error_steps"] = max(_FEWEST_ERROR_STEPS, config.steps // 10)
    unset = {name: value for name, value in found.items() if name not in config.model_fields_set}
    stated = {**config.model_dump(exclude_unset=True), **unset}
    config = revise_settings(Settings(), {"train": stated}).train
    for name, value, expected in (
        ("model", start.spec.architecture, config.model),
        ("target", start.spec.target, config.target),
    ):
        if value != expected:
            raise ConfigError(
                f"the model to start from has another {name}",
                where="train.start",
                value=f"{value} of {config.start}",
                limit=expected,
                remedy=f"leave --{name} out, or set --{name} {value}",
            )
    return config


def differences(one: FieldStore, other: FieldStore) -> Iterator[tuple[str, float, float]]:
    """Yield quantities in which the conditions of two stores differ, with both values."""
    mine, theirs = one.metadata, other.metadata
    for name, value, expected in (
        ("cell size", one.cell_size, other.cell_size),
        ("redshift", mine.redshift, theirs.redshift),
        *(
            (name, getattr(mine.cosmology, name), getattr(theirs.cosmology, name))
            for name in ("Omega_m", "sigma8", *EXTENSIONS)
        ),
    ):
        if abs(value - expected) > 1e-6 * max(1.0, abs(expected)):
            yield name, value, expected


def needs_family(
    stores: Sequence[FieldStore], architecture: Architecture, start: Model | None
) -> bool:
    """Return whether a training makes a family of models.

    It does if the model that it starts from is one, and if the boxes differ and the architecture
    has a Wiener filter, whose flow tells the network the amplitude of the velocities.
    """
    if isinstance(start, ModelFamily):
        return True
    if architecture.filter is None or len(stores) == 1:
        return False
    return any(any(differences(store, stores[0])) for store in stores[1:])


def fits_filter(architecture: Architecture, start: Model | None, *, many: bool) -> bool:
    """Return whether a training fits a Wiener filter, and does not take that of its start."""
    taken = start is not None and not (many and isinstance(start, VelocityModel))
    return architecture.filter is not None and not taken


def find_basis(
    out: str,
    resumed: bool,
    split: Split,
    stores: Sequence[FieldStore],
    start: Model | None,
    run: Run,
    *,
    many: bool,
) -> Basis:
    """Fit or read what a network is trained on, and make the flows of the boxes.

    Parameters
    ----------
    out : str
        URL of the model folder.
    resumed : bool
        Whether the run continues the training in that folder.
    split : Split
        The boxes, without flows.
    stores : sequence of FieldStore
        The boxes, opened.
    start : Model or None
        Model that training starts from. Its filter and constants are taken over, unless a family
        starts from a model of one condition.
    run : Run
        Settings, engine, progress.
    many : bool
        Whether to make a family of models.
    """
    architecture = find_architecture(run.settings.train.model)
    if many:
        return _find_family(out, resumed, split, stores, start, run)
    assert start is None or isinstance(start, VelocityModel)
    wiener = None
    if architecture.filter is not None:
        if start is not None:
            wiener = start.spec.filter
        elif resumed and has_file(out, FILTER):
            wiener = read_filter(read_bytes(out, FILTER), out, FILTER)
        else:
            run.listener(Message("fitting the Wiener filter"))
            wiener = fit_filter(split, SETS[architecture.filter])
    filters = (wiener,) * len(stores)
    split = _add_flows(split, filters, architecture, run, out)
    target = run.settings.train.target
    spec = ModelSpec(
        architecture=architecture.name,
        target=target,
        cell_size=stores[0].cell_size,
        redshift=stores[0].metadata.redshift,
        cosmology=stores[0].metadata.cosmology.model_dump(mode="json"),
        normalisation=normalise(split, target, architecture.offset)
        if start is None
        else start.spec.normalisation,
        filter=wiener,
    )
    return Basis(split, spec, wiener)


def _find_family(
    out: str,
    resumed: bool,
    split: Split,
    stores: Sequence[FieldStore],
    start: Model | None,
    run: Run,
) -> Basis:
    """Return the basis of a family of models."""
    architecture = find_architecture(run.settings.train.model)
    assert architecture.filter is not None
    target = run.settings.train.target
    conditions = [condition_of(store) for store in stores]
    if isinstance(start, ModelFamily):
        # Its gain is that of its own predictions.
        family = replace(start.spec.family, gain=None, gain_symmetries=1, gain_reach=())
    elif resumed and has_file(out, FILTER):
        family = read_family(read_bytes(out, FILTER), out, FILTER)
    else:
        run.listener(Message("fitting the Wiener filter to the boxes"))
        family = fit_family(split, conditions, SETS[architecture.filter], run)
    filters = [family.filter(condition) for condition in conditions]
    split = _add_flows(split, filters, architecture, run, out)
    kept, condition = family, None
    if not isinstance(start, ModelFamily):
        family = fit_constants(family, split, conditions, target, architecture.offset)
        condition = None if start is None else _condition_of_model(start, family)
    spec = FamilySpec(architecture.name, target, family)
    frames = tuple(family.frame(condition) for condition in conditions)
    return Basis(replace(split, frames=frames), spec, kept, condition)


def _condition_of_model(model: VelocityModel, family: Family) -> Condition:
    """Return the condition of a model of one condition, with the particles of a family."""
    return find_condition(
        CosmologyConfig(**model.spec.cosmology),
        model.spec.redshift,
        model.spec.cell_size,
        family.particles_per_cell,
    )


def _add_flows(
    split: Split,
    filters: Sequence[WienerFilter | None],
    architecture: Architecture,
    run: Run,
    out: str,
) -> Split:
    """Make the flows of the boxes, and note their filters and origins."""
    flows, smoothing = list[tuple[Flow, ...]](), architecture.smoothing
    needed = bool(smoothing or architecture.filter)
    progress = Progress(run.listener if needed else ignore, "flows", len(split.fields), "boxes")
    for url, wiener in zip(split.fields, filters, strict=True):
        # A line for each of many boxes would bury the others.
        flows.append(ensure_flows(url, smoothing, wiener, run, model=out, level=DETAIL))
        progress.advance(note=url)
    digests = tuple(wiener.digest for wiener in filters if wiener is not None)
    origins = tuple(noted_origin(FieldStore(url)) for url in split.fields) if digests else ()
    return replace(split, flows=tuple(flows), filters=digests, origins=origins)


def begin_training(basis: Basis, start: Start | None, layers: str) -> Reconstruction:
    """Return the model that training begins with; called in each worker.

    Parameters
    ----------
    basis : Basis
        What the network is trained on.
    start : Start or None
        Model to start from.
    layers : str
        The setting ``train.layers``.

    Raises
    ------
    DataError
        The model to start from has changed since the run began.
    """
    model = begin_model(basis.spec, None if start is None else start.load(), basis.condition)
    choose_layers(model.network, layers)
    return model
