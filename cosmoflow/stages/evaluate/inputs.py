"""Stores to compare, their velocities, and checks that they are of one box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from cosmoflow.errors import ConfigError, DataError
from cosmoflow.events import Listener, Message, caution
from cosmoflow.numerics.comparison.readers import TRUTH
from cosmoflow.stages.evaluate.trainings import models_of
from cosmoflow.stages.evaluate.trust import find_intervals, note_trust, particles_of
from cosmoflow.stages.inputs.lineage import relate
from cosmoflow.stages.inputs.paintings import painting_of
from cosmoflow.stages.inputs.readers import Method, StoreReader, check_same_box
from cosmoflow.storage.fields import RESTORED, FieldStore
from cosmoflow.storage.urls import absolute

LEAST_CORRELATION: Final = 0.3
"""Least correlation of true and predicted velocities of one box. The velocities of two different
boxes are uncorrelated except by chance."""

Predictions = str | Sequence[str] | Mapping[str, str]
"""URLs of fields stores, each plain or as ``NAME=URL``; or URLs by name."""


@dataclass(frozen=True)
class Inputs:
    """Stores to compare.

    Parameters
    ----------
    true : FieldStore
        The truth.
    found : dict of FieldStore
        The predictions by name.
    methods : tuple of Method
        The velocities in them, in the order of the report.
    """

    true: FieldStore
    found: dict[str, FieldStore]
    methods: tuple[Method, ...]

    def readers(self, methods: Sequence[Method]) -> dict[str, StoreReader]:
        """Return the readers of the truth and of the given methods, by name."""
        first = StoreReader.of(self.true, TRUTH)
        first = replace(first, particles_per_cell=particles_of(self.true))
        return {TRUTH: first} | {one.name: replace(first, method=one) for one in methods}

    @property
    def box_size(self) -> float:
        """Box size, Mpc/h."""
        return self.true.metadata.box_size


def open_inputs(truth: str, predictions: Predictions, radii: Sequence[float]) -> Inputs:
    """Open all stores, and refuse those that cannot be compared.

    Parameters
    ----------
    truth : str
        URL of the fields store with ``density`` and ``velocity``.
    predictions : str, sequence or mapping of str
        URLs of the predictions.
    radii : sequence of float
        Smoothing radii of linear theory, Mpc/h. No prediction may have the name of one.

    Raises
    ------
    ConfigError
        There is no prediction, or two have the same name.
    DataError
        The stores are of different boxes, or lack a field.
    StorageError, IncompleteError
        A store is missing, or not complete.
    """
    true = FieldStore(absolute(truth))
    true.require("density", "velocity")
    _check_whole(true)
    taken = {TRUTH: true.url} | dict.fromkeys(map(linear_name, radii), "linear theory")
    found: dict[str, FieldStore] = {}
    methods: list[Method] = []
    for label, store in _open_predictions(predictions):
        _check_whole(store)
        check_same_box(true, store)
        own = _velocities(label, store)
        for method in own:
            if method.name in taken:
                raise ConfigError(
                    "two predictions have one name",
                    where="PREDICTION",
                    value=f"{taken[method.name]} and {store.url}, both {method.name!r}",
                    remedy="name them: first=URL second=URL",
                )
            taken[method.name] = store.url
        found[label] = store
        methods += own
    if not found:
        raise ConfigError("there is nothing to compare", remedy="name a prediction")
    return Inputs(true, found, tuple(methods))


def linear_name(radius: float) -> str:
    """Return the name of linear theory with a smoothing radius in the report."""
    return "linear theory" if radius == 0.0 else f"linear theory {radius:g} Mpc/h"


def _open_predictions(given: Predictions) -> list[tuple[str, FieldStore]]:
    """Open the predictions and name them.

    The default name is that of the model, or of the store if no model is known. Predictions with
    the same default name also get the end of their URL in brackets.
    """
    if isinstance(given, Mapping):
        pairs = [(str(name), str(url)) for name, url in given.items()]
    else:
        pairs = [_split(one) for one in ([given] if isinstance(given, str) else given)]
    stores = [(label, FieldStore(absolute(url))) for label, url in pairs]
    names = [label or _default_name(store) for label, store in stores]
    counts = Counter(names)
    alike = [
        store.url
        for (label, store), name in zip(stores, names, strict=True)
        if not label and counts[name] > 1
    ]
    ends = _distinct_ends(alike)
    return [
        (name if label or counts[name] == 1 else f"{name} ({ends[store.url]})", store)
        for (label, store), name in zip(stores, names, strict=True)
    ]


def _split(given: str) -> tuple[str, str]:
    """Split ``NAME=URL``; the name of a plain URL is empty."""
    label, equals, url = given.partition("=")
    # The path of a local store may contain =.
    if not equals or "/" in label or Path(given).exists():
        return "", given
    return label, url


def _default_name(store: FieldStore) -> str:
    """Return the names of the models of a prediction, or the name of its store."""
    models = [PurePosixPath(url).name for url, _ in models_of(store.metadata.provenance)]
    return " + ".join(models or [PurePosixPath(store.url).stem])


def _distinct_ends(urls: Sequence[str]) -> dict[str, str]:
    """Return the ends of URLs, without suffix, with as many folders as tell them apart."""
    parts = {url: PurePosixPath(url).with_suffix("").parts for url in urls}
    for count in range(1, 1 + max(map(len, parts.values()), default=0)):
        ends = {url: "/".join(one[-count:]) for url, one in parts.items()}
        if len(set(ends.values())) == len(ends):
            return ends
    return {url: url for url in urls}


def _velocities(label: str, store: FieldStore) -> list[Method]:
    """Return the velocities of a prediction; a momentum is divided by the density."""
    variable = next((name for name in ("velocity", "momentum") if name in store.variables), None)
    if variable is None:
        raise DataError(
            "the prediction holds neither velocity nor momentum",
            where=store.url,
            value=", ".join(store.variables),
        )
    methods = [Method(label, store.url, variable, intervals=find_intervals(store, variable))]
    if RESTORED in store.variables:
        methods.append(Method(f"{label}, power restored", store.url, RESTORED))
    return methods


def _check_whole(store: FieldStore) -> None:
    """Refuse a store that holds a part of the box."""
    if (region := store.region) is not None:
        raise DataError(
            "the store holds a region of the box only",
            where=store.url,
            value=f"{region.shape} cells from {region.origin}",
            limit=f"all {store.grid}^3 cells",
            remedy="predict the whole box: run infer without --region",
        )


@dataclass
class Origins:
    """Origin of the predictions.

    Parameters
    ----------
    notes : list of str
        Facts that the report keeps.
    unchecked : list of str
        Names of the predictions whose box is not known.
    """

    notes: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def check_origins(inputs: Inputs, listener: Listener, *, force: bool) -> Origins:
    """Refuse predictions that were made from another box than the truth, unless forced.

    The listener receives warnings, and messages about what could not be checked.

    Raises
    ------
    DataError
        A prediction was made from other particles.
    """
    found = Origins()
    found.notes += note_trust(inputs.true, list(inputs.found.values()), listener)
    space = painting_of(inputs.true)
    if space.redshift_space is not None:
        caution(
            listener,
            f"the truth {inputs.true.url} was painted in {space.space}: its velocities lie where "
            "redshifts put the particles",
        )
    for name, store in inputs.found.items():
        if absolute(store.url) == absolute(inputs.true.url):
            caution(listener, f"{name} ({store.url}) is the truth itself, so nothing is compared")
        relation = relate(inputs.true, store)
        if relation == "other":
            if not force:
                raise _refusal(inputs.true, store)
            caution(listener, f"{name} ({store.url}) was made from another box than the truth")
        elif relation == "unknown":
            note = f"that {name} ({store.url}) is of the truth's box could not be checked"
            found.notes.append(note)
            found.unchecked.append(name)
            listener(Message(note))
        painting = painting_of(store)
        if painting.redshift_space != space.redshift_space:
            caution(
                listener,
                f"{name} ({store.url}) is of a density in {painting.space}, the truth in "
                f"{space.space}",
            )
    return found


def _refusal(true: FieldStore, store: FieldStore) -> DataError:
    provenance = store.metadata.provenance
    inputs, sources = provenance.get("inputs", {}), provenance.get("sources", {})
    digest = inputs.get("fields", "unknown")
    source = sources.get("fields", "a fields store")
    return DataError(
        "the prediction was made from another box than the truth",
        where=store.url,
        value=f"made from {source}, digest {digest}",
        limit=f"{true.url}, digest {true.digest}, or fields painted from the same particles",
        remedy="name the truth of the same box; where the two are of one box all the same (files "
        "that were moved or read with other hints, particles that were sampled), "
        "--set evaluate.force=true",
    )


def check_agreement(
    residual: Mapping[str, Mapping[str, Any]], origins: Origins, listener: Listener
) -> None:
    """Warn of unchecked predictions whose correlation in ``residual`` is as low as by chance."""
    for name in origins.unchecked:
        found = residual.get(name, {}).get("correlation")
        if found is not None and found < LEAST_CORRELATION:
            caution(
                listener,
                f"{name} and the truth look like different boxes: the correlation of their "
                f"velocities is {found:.2f}",
            )
