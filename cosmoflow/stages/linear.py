"""The global linear velocity: what the whole box says of the flow at every point."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cosmoflow.cosmology.background import Background
from cosmoflow.events import Listener, Message
from cosmoflow.numerics.fourier import linear_velocity
from cosmoflow.storage.fields import FieldStore, add_linear_velocity
from cosmoflow.storage.metadata import BoxMetadata


def growth_rate_hubble(metadata: BoxMetadata) -> float:
    """Return ``f a H`` of a snapshot, km/s per Mpc/h."""
    return float(Background(metadata.cosmology).growth_rate_hubble(metadata.scale_factor))


def ensure_linear_velocity(url: str, radii: Sequence[float], listener: Listener) -> tuple[int, ...]:
    """Make the linear velocities that a network wants, where a fields store lacks them.

    They are kept in the store, so the next run finds them.

    Parameters
    ----------
    url : str
        Of a fields store with ``density``.
    radii : sequence of float
        Gaussian radii, Mpc/h.
    listener : callable
        Hears of what is made.

    Returns
    -------
    tuple of int
        Index of each radius along the store's ``smoothing`` dimension.
    """
    store = FieldStore(url)
    missing = [radius for radius in radii if radius not in store.smoothing_scales()]
    if missing:
        store.require("density")
        density = torch.from_numpy(store.read("density"))
        rate = growth_rate_hubble(store.metadata)
        for radius in missing:
            listener(Message(f"linear velocity of {url}, smoothed at {radius:g} Mpc/h"))
            add_linear_velocity(
                url,
                radius,
                lambda radius=radius: linear_velocity(  # type: ignore[misc]
                    density, store.metadata.box_size, rate, radius
                ).numpy(),
            )
    scales = FieldStore(url).smoothing_scales()
    return tuple(scales.index(radius) for radius in radii)
