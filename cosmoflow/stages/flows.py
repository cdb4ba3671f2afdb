"""The global flows: what the whole box says of the velocity at every point."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cosmoflow.cosmology.background import Background
from cosmoflow.events import Listener, Message
from cosmoflow.model.sources import Flow
from cosmoflow.numerics.fourier import linear_velocity
from cosmoflow.numerics.wiener import WienerFilter
from cosmoflow.storage.fields import (
    WIENER,
    FieldStore,
    add_linear_velocity,
    add_wiener_velocity,
    filter_digest,
)
from cosmoflow.storage.metadata import BoxMetadata


def growth_rate_hubble(metadata: BoxMetadata) -> float:
    """Return ``f a H`` of a snapshot, km/s per Mpc/h."""
    return float(Background(metadata.cosmology).growth_rate_hubble(metadata.scale_factor))


def ensure_flows(
    url: str, radii: Sequence[float], wiener: WienerFilter | None, listener: Listener
) -> tuple[Flow, ...]:
    """Make the global velocities that a model wants, where a fields store lacks them.

    They are kept in the store, so the next run finds them.

    Parameters
    ----------
    url : str
        Of a fields store with ``density``.
    radii : sequence of float
        Gaussian radii of linear velocities, Mpc/h.
    wiener : WienerFilter, optional
        Whose velocity comes first.
    listener : callable
        Hears of what is made.

    Returns
    -------
    tuple of Flow
        What to read, in the order of a model's inputs.
    """
    store = FieldStore(url)
    size, rate = store.metadata.box_size, growth_rate_hubble(store.metadata)
    missing = [radius for radius in radii if radius not in store.smoothing_scales()]
    lacks_filter = wiener is not None and filter_digest(store) != wiener.digest
    if missing or lacks_filter:
        store.require("density")
        density = torch.from_numpy(store.read("density"))
        for radius in missing:
            listener(Message(f"linear velocity of {url}, smoothed at {radius:g} Mpc/h"))
            add_linear_velocity(
                url,
                radius,
                lambda radius=radius: linear_velocity(density, size, rate, radius).numpy(),  # type: ignore[misc]
            )
        if wiener is not None and lacks_filter:
            listener(Message(f"Wiener-filtered velocity of {url}"))
            add_wiener_velocity(
                url, wiener.digest, lambda: wiener.velocity(density, size, rate).numpy()
            )
    scales = FieldStore(url).smoothing_scales()
    linear = tuple(scales.index(radius) for radius in radii)
    return linear if wiener is None else (WIENER, *linear)
