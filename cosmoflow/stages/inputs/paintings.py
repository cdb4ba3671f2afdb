"""The painting of a density, and whether it matches the training of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, get_args

from cosmoflow.config.settings import Scheme
from cosmoflow.errors import DataError
from cosmoflow.events import Listener, caution
from cosmoflow.model.names import is_linear
from cosmoflow.model.velocity import VelocityModel
from cosmoflow.storage.fields import FieldStore

PAINTING: Final = "painting"
"""Key of a provenance: the painting of the density that an output descends from."""


@dataclass(frozen=True, slots=True)
class Painting:
    """The painting of a density.

    Parameters
    ----------
    scheme : str or None
        Mass-assignment scheme; None if not stated.
    redshift_space : {"x", "y", "z"} or None
        Axis along which velocities displaced the particles; None for real space.
    """

    scheme: str | None = None
    redshift_space: str | None = None

    @property
    def space(self) -> str:
        """Space of the particle positions, for messages."""
        if self.redshift_space is None:
            return "real space"
        return f"redshift space along {self.redshift_space}"

    def as_facts(self) -> dict[str, Any]:
        """Return the provenance entry of the painting; empty if nothing is known."""
        return {} if self == Painting() else {PAINTING: asdict(self)}


REAL_CIC: Final = Painting("cic")
"""Painting assumed for models that do not state one: the shipped models, and older ones."""


def painting_of(store: FieldStore) -> Painting:
    """Return the painting of the density of a painted, predicted, derived or imported store.

    Raises
    ------
    DataError
        The mass-assignment scheme is unknown.
    """
    provenance = store.metadata.provenance
    config = provenance.get("config")
    painted = config.get("paint") if isinstance(config, dict) else None
    if not isinstance(painted, dict):
        painted = provenance.get(PAINTING)
    if not isinstance(painted, dict):
        painted = {}
    axis = store.metadata.redshift_space or painted.get("redshift_space")
    scheme = painted.get("scheme")
    if scheme is not None and scheme not in get_args(Scheme):
        raise DataError(
            "unknown mass-assignment scheme",
            where=store.url,
            value=scheme,
            limit=", ".join(get_args(Scheme)),
        )
    return Painting(scheme, axis)


def check_painting(
    store: FieldStore, names: Sequence[str], models: Sequence[VelocityModel], listener: Listener
) -> Painting:
    """Warn if a density was painted in another way than the training densities of models.

    Returns
    -------
    Painting
        Painting of the store.
    """
    painting = painting_of(store)
    for name, model in zip(names, models, strict=True):
        trained = trained_on(model)
        if painting.redshift_space != trained.redshift_space:
            made_in = "linear theory is of" if is_linear(name) else f"{name} was trained in"
            caution(
                listener,
                f"the density of {store.url} was painted in {painting.space}, and {made_in} "
                f"{trained.space}: the error of its velocities there is unknown",
            )
        if is_linear(name) or painting.scheme is None or trained.scheme is None:
            continue
        if painting.scheme != trained.scheme:
            caution(
                listener,
                f"the density of {store.url} was painted by {painting.scheme.upper()}, and {name} "
                f"was trained on {trained.scheme.upper()}: paint with "
                f"--scheme {trained.scheme} for velocities as good as its card says",
            )
    return painting


def trained_on(model: VelocityModel) -> Painting:
    """Return the painting of the densities that a model was trained on."""
    found = model.spec.provenance.get(PAINTING)
    if not isinstance(found, dict):
        return REAL_CIC
    return Painting(found.get("scheme"), found.get("redshift_space"))


def check_painted_alike(stores: Sequence[FieldStore], listener: Listener) -> Painting:
    """Warn if training fields were painted in different ways; return the first painting."""
    paintings = [painting_of(store) for store in stores]
    first = paintings[0]
    for store, painting in zip(stores, paintings, strict=True):
        for mine, theirs in (
            (first.space, painting.space),
            ((first.scheme or "").upper(), (painting.scheme or "").upper()),
        ):
            if mine and theirs and mine != theirs:
                caution(
                    listener,
                    f"the training fields are mixed: {store.url} was painted in {theirs}, "
                    f"{stores[0].url} in {mine}",
                )
    return first
