"""The global flows: what the whole box says of the velocity at every point."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cosmoflow.errors import DataError, StorageError
from cosmoflow.events import Message, caution
from cosmoflow.model.sources import Flow
from cosmoflow.numerics.fourier import linear_velocity
from cosmoflow.numerics.wiener import WienerFilter
from cosmoflow.stages.flows.checks import check_modes, check_weights, is_physical, refuse_flow
from cosmoflow.stages.flows.slabs import FlowSource, LinearTheory, add_flow
from cosmoflow.stages.inputs.expansion import growth_rate_hubble
from cosmoflow.stages.run import Run, memory_here
from cosmoflow.storage.claims import Claim, claim
from cosmoflow.storage.fields import FLOWS, FieldStore
from cosmoflow.storage.flows import (
    add_linear_velocity,
    add_wiener_velocity,
    adding_linear_velocity,
    adding_wiener_velocity,
    filter_digest,
)
from cosmoflow.storage.identity import changed_input
from cosmoflow.storage.origins import WIENER, describe_origin, is_same_origin, noted_origin
from cosmoflow.storage.urls import join

LINEAR_BYTES, WIENER_BYTES = 40, 68
"""A cell, of what linear theory and a Wiener filter hold at once in memory (measured)."""


def ensure_flows(
    url: str,
    radii: Sequence[float],
    wiener: WienerFilter | None,
    run: Run,
    *,
    model: str | None = None,
) -> tuple[Flow, ...]:
    """Make the global velocities that a model wants, where a fields store lacks them.

    They are kept in the store, so the next run finds them. One that was made from another density,
    box size, redshift or cosmology than the store has now, or that does not say, is made again in
    its place. Those of a box whose transforms this process has memory for are made here, those of a
    larger one slab by slab on the run's engine.

    Parameters
    ----------
    url : str
        Of a fields store with ``density``.
    radii : sequence of float
        Gaussian radii of linear velocities, Mpc/h.
    wiener : WienerFilter, optional
        Whose velocity comes first.
    run : Run
        Settings, engine, and who hears of what is made.
    model : str, optional
        Name or URL of the model that the filter is of, for errors.

    Returns
    -------
    tuple of Flow
        What to read, in the order of a model's inputs.

    Raises
    ------
    ConfigError
        Neither this process nor the engine's workers have the memory.
    SupersededError
        This run slept for so long that another one has taken over.
    DataError
        The density is missing or damaged, it changed meanwhile, or the flow is not finite. Then no
        flow is kept.
    StorageError
        The store cannot be written, and lacks a flow or has one that was made from something else.

    Notes
    -----
    A store that cannot be written may have flows that do not say what they were made from: these
    are used, with a warning.
    """
    if not radii and wiener is None:
        return ()
    if wiener is not None:
        check_weights(wiener, model)
    if _lacks(FieldStore(url), radii, wiener):
        try:
            # Another run may be about to make the same: then they are there when it lets go.
            with claim(url, wait=True, listener=run.listener) as held:
                _make_missing(url, radii, wiener, run, model, held)
        except StorageError:
            if _lacks(FieldStore(url), radii, wiener, unnoted=False):
                raise
            caution(
                run.listener,
                f"the flows in {url} do not say what they were made from, and the store cannot be "
                "written: they are used as they are",
            )
    scales = FieldStore(url).smoothing_scales()
    linear = tuple(scales.index(radius) for radius in radii)
    return linear if wiener is None else (WIENER, *linear)


def current_scales(store: FieldStore) -> list[float]:
    """Return the radii of the linear velocities that are of a store's present density, Mpc/h.

    Others, and those that do not say what they were made from, are NaN.
    """
    scales = store.smoothing_scales()
    origin = _origin(store) if scales else None
    return [
        radius if is_same_origin(noted_origin(store, radius), origin) else float("nan")
        for radius in scales
    ]


def identify_flows(store: FieldStore, names: Iterable[str]) -> dict[str, str]:
    """Return name and checksum of the kept flows among the variables that a stage reads.

    Raises
    ------
    DataError
        One was made from another density, redshift or cosmology than the store has now.
    """
    kept = sorted({*FLOWS} & {*names})
    for name in kept:
        radii: list[float | None] = [None] if name == WIENER else [*store.smoothing_scales()[:1]]
        for radius in radii:
            noted = noted_origin(store, radius)
            if noted is None:
                continue
            now = _origin(store)
            if not is_same_origin(noted, now):
                raise DataError(
                    "the stored velocity was made from another density, redshift or cosmology than "
                    "the store has now",
                    where=f"{store.url}, {name}",
                    value=_describe(noted, now),
                    limit=_describe(now, noted),
                    remedy="run `cosmoflow infer` with the model that uses it, which makes it "
                    f"again, or delete {join(store.url, name)}",
                )
    return {name: store.checksum(name) for name in kept}


def check_flows(store: FieldStore, before: Mapping[str, str]) -> None:
    """Refuse kept flows that were replaced since :func:`identify_flows` was asked for them.

    Raises
    ------
    DataError
    """
    for name, checksum in identify_flows(FieldStore(store.url), before).items():
        if checksum != before[name]:
            raise changed_input(f"{store.url}, {name}", before[name], checksum)


def _origin(store: FieldStore) -> dict[str, Any]:
    """Return what flows that are made now are made from."""
    return describe_origin(store, growth_rate_hubble(store.metadata))


def _lacks(
    store: FieldStore,
    radii: Sequence[float],
    wiener: WienerFilter | None,
    *,
    unnoted: bool = True,
) -> bool:
    """Tell whether a flow is not there or was made from something else.

    ``unnoted`` says whether one that does not say what it was made from counts as lacking.
    """
    origin = _origin(store)

    def lacks(radius: float | None) -> bool:
        noted = noted_origin(store, radius)
        return unnoted if noted is None else not is_same_origin(noted, origin)

    if wiener is not None and (filter_digest(store) != wiener.digest or lacks(None)):
        return True
    scales = store.smoothing_scales()
    return any(radius not in scales or lacks(radius) for radius in radii)


def _make_missing(
    url: str,
    radii: Sequence[float],
    wiener: WienerFilter | None,
    run: Run,
    model: str | None,
    held: Claim,
) -> None:
    for radius in radii:
        if _lacks(store := FieldStore(url), (radius,), None):
            again = ", again" if radius in store.smoothing_scales() else ""
            run.listener(Message(f"linear velocity of {url}, smoothed at {radius:g} Mpc/h{again}"))
            _make_linear(store, radius, run, held)
    if wiener is not None and _lacks(store := FieldStore(url), (), wiener):
        again = ", again" if filter_digest(store) == wiener.digest else ""
        run.listener(Message(f"Wiener-filtered velocity of {url}{again}"))
        _make_wiener(store, wiener, run, model, held)


def _make_linear(store: FieldStore, radius: float, run: Run, held: Claim) -> None:
    url, rate, origin = store.url, growth_rate_hubble(store.metadata), _origin(store)
    source = LinearTheory(radius)
    if not _fits(LINEAR_BYTES, store, run):
        adding = adding_linear_velocity(url, radius, held, origin)
        check = partial(_check_origin, url, origin)
        add_flow(store, source, rate, adding, run, claim=held, check=check)
        return
    density, size = _density(store), store.metadata.box_size

    def make() -> NDArray[np.float32]:
        flow = linear_velocity(density, size, rate, radius)
        return _checked(flow, density, source, store, origin)

    add_linear_velocity(url, radius, make, held, origin)


def _make_wiener(
    store: FieldStore, wiener: WienerFilter, run: Run, model: str | None, held: Claim
) -> None:
    url, rate, origin = store.url, growth_rate_hubble(store.metadata), _origin(store)
    if not _fits(WIENER_BYTES, store, run):
        adding = adding_wiener_velocity(url, wiener.digest, held, origin)
        check = partial(_check_origin, url, origin)
        add_flow(store, wiener, rate, adding, run, claim=held, check=check, model=model)
        return
    density, size = _density(store), store.metadata.box_size

    def make() -> NDArray[np.float32]:
        flow = wiener.velocity(density, size, rate)
        return _checked(flow, density, wiener, store, origin, model)

    add_wiener_velocity(url, wiener.digest, make, held, origin)


def _checked(
    flow: torch.Tensor,
    density: torch.Tensor,
    source: FlowSource,
    store: FieldStore,
    origin: dict[str, Any],
    model: str | None = None,
) -> NDArray[np.float32]:
    """Return a flow that may be kept.

    Raises
    ------
    DataError
        It is not finite, or what it was made from has changed meanwhile.
    """
    if not is_physical(flow):
        check_modes(density, store.metadata.box_size, source.fields, store.url)
        raise refuse_flow(source, origin["growth_rate_hubble"], store.url, model)
    _check_origin(store.url, origin)
    found: NDArray[np.float32] = flow.numpy()
    return found


def _check_origin(url: str, origin: dict[str, Any]) -> None:
    """Refuse to keep a flow whose density or cosmology has changed while it was made."""
    now = _origin(FieldStore(url))
    if not is_same_origin(now, origin):
        raise changed_input(url, _describe(origin, now), _describe(now, origin))


def _describe(origin: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return what a flow was made from, as far as another one was made from something else."""
    unlike = {name: value for name, value in origin.items() if value != other.get(name)}
    return ", ".join(f"{name} {value}" for name, value in unlike.items())


def _density(store: FieldStore) -> torch.Tensor:
    store.require("density")
    return torch.from_numpy(store.read("density"))


def _fits(bytes_per_cell: int, store: FieldStore, run: Run) -> bool:
    """Tell whether this process may have the memory for a box's transforms."""
    return bytes_per_cell * store.grid**3 <= memory_here(run)
