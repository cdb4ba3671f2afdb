"""The global flows: what the whole box says of the velocity at every point."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cosmoflow.engine import available_memory
from cosmoflow.events import Message
from cosmoflow.model.sources import Flow
from cosmoflow.numerics.fourier import linear_velocity
from cosmoflow.numerics.wiener import WienerFilter
from cosmoflow.stages.expansion import growth_rate_hubble
from cosmoflow.stages.run import Run
from cosmoflow.stages.slab_flows import LinearTheory, add_flow
from cosmoflow.storage.claims import Claim, claim
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.flows import (
    WIENER,
    add_linear_velocity,
    add_wiener_velocity,
    adding_linear_velocity,
    adding_wiener_velocity,
    filter_digest,
)

LINEAR_BYTES, WIENER_BYTES = 40, 68
"""A cell, of what linear theory and a Wiener filter hold at once in memory (measured)."""

FREE_SHARE = 0.5
"""Of the free memory, what a flow may take unasked: whatever else runs here needs some as well."""


def ensure_flows(
    url: str, radii: Sequence[float], wiener: WienerFilter | None, run: Run
) -> tuple[Flow, ...]:
    """Make the global velocities that a model wants, where a fields store lacks them.

    They are kept in the store, so the next run finds them. Those of a box whose transforms this
    process has memory for are made here, those of a larger one slab by slab on the run's engine.

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
        The density is missing or damaged.
    """
    if _lacks(FieldStore(url), radii, wiener):
        # Another run may be about to make the same: then they are there when it lets go.
        with claim(url, wait=True, listener=run.listener) as held:
            _make_missing(url, radii, wiener, run, held)
    scales = FieldStore(url).smoothing_scales()
    linear = tuple(scales.index(radius) for radius in radii)
    return linear if wiener is None else (WIENER, *linear)


def _lacks(store: FieldStore, radii: Sequence[float], wiener: WienerFilter | None) -> bool:
    lacks_filter = wiener is not None and filter_digest(store) != wiener.digest
    return lacks_filter or not set(radii) <= set(store.smoothing_scales())


def _make_missing(
    url: str, radii: Sequence[float], wiener: WienerFilter | None, run: Run, held: Claim
) -> None:
    for radius in radii:
        if _lacks(FieldStore(url), (radius,), None):
            run.listener(Message(f"linear velocity of {url}, smoothed at {radius:g} Mpc/h"))
            _make_linear(FieldStore(url), radius, run, held)
    if wiener is not None and _lacks(FieldStore(url), (), wiener):
        run.listener(Message(f"Wiener-filtered velocity of {url}"))
        _make_wiener(FieldStore(url), wiener, run, held)


def _make_linear(store: FieldStore, radius: float, run: Run, held: Claim) -> None:
    url, rate = store.url, growth_rate_hubble(store.metadata)
    if not _fits(LINEAR_BYTES, store, run):
        adding = adding_linear_velocity(url, radius, held)
        add_flow(store, LinearTheory(radius), rate, adding, run, claim=held)
        return
    density, size = _density(store), store.metadata.box_size
    add_linear_velocity(
        url, radius, lambda: linear_velocity(density, size, rate, radius).numpy(), held
    )


def _make_wiener(store: FieldStore, wiener: WienerFilter, run: Run, held: Claim) -> None:
    url, rate = store.url, growth_rate_hubble(store.metadata)
    if not _fits(WIENER_BYTES, store, run):
        adding = adding_wiener_velocity(url, wiener.digest, held)
        add_flow(store, wiener, rate, adding, run, claim=held)
        return
    density, size = _density(store), store.metadata.box_size
    add_wiener_velocity(
        url, wiener.digest, lambda: wiener.velocity(density, size, rate).numpy(), held
    )


def _density(store: FieldStore) -> torch.Tensor:
    store.require("density")
    return torch.from_numpy(store.read("density"))


def _fits(bytes_per_cell: int, store: FieldStore, run: Run) -> bool:
    """Tell whether this process may have the memory for a box's transforms."""
    allowed = run.settings.engine.memory
    free = available_memory()
    limit = FREE_SHARE * free if allowed is None else min(free, allowed)
    return bytes_per_cell * store.grid**3 <= limit
