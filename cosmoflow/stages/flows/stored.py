"""Global flows kept in fields stores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from cosmoflow.engine import keeping_freed_buffers
from cosmoflow.errors import DataError, StorageError
from cosmoflow.events import Message, caution
from cosmoflow.model.sources import Flow
from cosmoflow.numerics.wiener import FlowSource, LinearTheory, WienerFilter
from cosmoflow.stages.flows.checks import check_modes, check_weights, is_physical, refuse_flow
from cosmoflow.stages.inputs.expansion import growth_rate_hubble
from cosmoflow.stages.run import Run, memory_here
from cosmoflow.storage.claims import Claim, claim
from cosmoflow.storage.fields import FLOWS, FieldStore
from cosmoflow.storage.flows import (
    adding_linear_velocity,
    adding_wiener_velocity,
    filter_digest,
)
from cosmoflow.storage.identity import changed_input
from cosmoflow.storage.origins import WIENER, describe_origin, is_same_origin, noted_origin
from cosmoflow.storage.urls import join

LINEAR_BYTES, WIENER_BYTES = 24, 36
"""Peak bytes per cell of linear theory and of a Wiener filter in memory (measured)."""


def ensure_flows(
    url: str,
    radii: Sequence[float],
    wiener: WienerFilter | None,
    run: Run,
    *,
    model: str | None = None,
    level: str = "info",
) -> tuple[Flow, ...]:
    """Make the global velocities that a model needs and a fields store lacks.

    Flows are kept in the store for later runs. A flow is replaced if its origin is not noted, or if
    it was made from another density, box size, redshift or cosmology than the store has now. Flows
    are made in this process if it has the memory, otherwise in slabs on the engine of the run.

    Parameters
    ----------
    url : str
        URL of a fields store that has ``density``.
    radii : sequence of float
        Gaussian radii of linear velocities, Mpc/h.
    wiener : WienerFilter, optional
        Filter whose velocity comes first.
    run : Run
        Settings, engine, progress.
    model : str, optional
        Name or URL of the model that owns the filter, for errors.
    level : {"info", "detail"}
        Level of the message that names a flow that is made.

    Returns
    -------
    tuple of Flow
        Flows to read, in the order of the model's inputs.

    Raises
    ------
    ConfigError
        Neither this process nor the workers of the engine have enough memory.
    SupersededError
        Another run has taken over, because this one was suspended for too long.
    DataError
        The density is missing, damaged or changed during the run, or the flow is not finite. No
        flow is kept then.
    StorageError
        The store cannot be written, and a flow is missing or has another origin.

    Notes
    -----
    In a store that cannot be written, flows without a noted origin are used, with a warning.
    """
    if not radii and wiener is None:
        return ()
    sources: list[FlowSource] = [LinearTheory(radius) for radius in radii]
    if wiener is not None:
        check_weights(wiener, model)
        sources.append(wiener)
    if _lacking(FieldStore(url), sources):
        try:
            # Another run may be making the same flows: they exist once it releases the claim.
            with claim(url, wait=True, listener=run.listener) as held:
                _make_missing(url, sources, run, model, level, held)
        except StorageError:
            if _lacking(FieldStore(url), sources, unnoted=False):
                raise
            caution(
                run.listener,
                f"the origin of the flows in {url} is not noted, and the store cannot be written: "
                "the flows are used as they are",
            )
    scales = FieldStore(url).smoothing_scales()
    linear = tuple(scales.index(radius) for radius in radii)
    return linear if wiener is None else (WIENER, *linear)


def current_scales(store: FieldStore) -> list[float]:
    """Return the radii of the linear velocities made from the current density, Mpc/h.

    The entries of velocities with another origin, or none noted, are NaN.
    """
    scales = store.smoothing_scales()
    origin = _origin(store) if scales else None
    return [
        radius if is_same_origin(noted_origin(store, radius), origin) else float("nan")
        for radius in scales
    ]


def identify_flows(store: FieldStore, names: Iterable[str]) -> dict[str, str]:
    """Return the names and checksums of the kept flows among the variables that a stage reads.

    Raises
    ------
    DataError
        A flow was made from another density, redshift or cosmology than the store has now.
    """
    kept = sorted({*FLOWS} & {*names})
    for name in kept:
        radius = None if name == WIENER else store.first_scale()[1]
        if name != WIENER and radius is None:
            continue
        noted = noted_origin(store, radius)
        if noted is None:
            continue
        now = _origin(store)
        if not is_same_origin(noted, now):
            raise DataError(
                "the stored velocity was made from another density, redshift or cosmology than the "
                "store has now",
                where=f"{store.url}, {name}",
                value=_describe(noted, now),
                limit=_describe(now, noted),
                remedy="run `cosmoflow infer` with the model that uses it, to make it again, or "
                f"delete {join(store.url, name)}",
            )
    return {name: store.checksum(name) for name in kept}


def check_flows(store: FieldStore, before: Mapping[str, str]) -> None:
    """Refuse kept flows that were replaced since :func:`identify_flows` was called.

    Raises
    ------
    DataError
    """
    for name, checksum in identify_flows(FieldStore(store.url), before).items():
        if checksum != before[name]:
            raise changed_input(f"{store.url}, {name}", before[name], checksum)


def _origin(store: FieldStore) -> dict[str, Any]:
    """Return the origin of flows that are made now."""
    return describe_origin(store, growth_rate_hubble(store.metadata))


def _lacking(
    store: FieldStore, sources: Iterable[FlowSource], *, unnoted: bool = True
) -> list[FlowSource]:
    """Return the sources whose flow is missing or has another origin.

    With ``unnoted``, a flow whose origin is not noted counts as missing.
    """
    origin = _origin(store)

    def lacks(source: FlowSource) -> bool:
        if not _is_kept(store, source):
            return True
        noted = noted_origin(store, source.radius if isinstance(source, LinearTheory) else None)
        return unnoted if noted is None else not is_same_origin(noted, origin)

    return [source for source in sources if lacks(source)]


def _is_kept(store: FieldStore, source: FlowSource) -> bool:
    """Return whether a store has the flow of a source, of any origin."""
    if isinstance(source, LinearTheory):
        return source.radius in store.smoothing_scales()
    return filter_digest(store) == source.digest


def _make_missing(
    url: str,
    sources: Sequence[FlowSource],
    run: Run,
    model: str | None,
    level: str,
    held: Claim,
) -> None:
    for source in sources:
        if not _lacking(store := FieldStore(url), [source]):
            continue
        again = ", again" if _is_kept(store, source) else ""
        what = (
            f"linear velocity of {url}, smoothed at {source.radius:g} Mpc/h"
            if isinstance(source, LinearTheory)
            else f"Wiener-filtered velocity of {url}"
        )
        run.listener(Message(f"{what}{again}", level))
        _make_flow(store, source, run, model, held)


def _make_flow(
    store: FieldStore, source: FlowSource, run: Run, model: str | None, held: Claim
) -> None:
    """Make a flow in memory or in slabs, and keep it.

    Raises
    ------
    DataError
        The flow is not finite, or its origin has changed during the run.
    """
    url, rate, origin = store.url, growth_rate_hubble(store.metadata), _origin(store)
    if isinstance(source, LinearTheory):
        need, adding = LINEAR_BYTES, adding_linear_velocity(url, source.radius, held, origin)
    else:
        need, adding = WIENER_BYTES, adding_wiener_velocity(url, source.digest, held, origin)
    if not _fits(need, store, run):
        # Imported here: boxes that fit into memory need no graph of tasks.
        from cosmoflow.stages.flows.slabs import add_flow

        check = partial(_check_origin, url, origin)
        add_flow(store, source, rate, adding, run, claim=held, check=check, model=model)
        return
    store.require("density")
    density, size = torch.from_numpy(store.read("density")), store.metadata.box_size
    # Computed before anything is written, so that a failure leaves the store unchanged.
    with keeping_freed_buffers():
        flow = source.velocity(density, size, rate)
    if not is_physical(flow):
        del flow  # the check needs its memory
        check_modes(density, size, source.fields, url)
        raise refuse_flow(source, rate, url, size, model)
    _check_origin(url, origin)
    with adding as array:
        array.write(flow.numpy())


def _check_origin(url: str, origin: dict[str, Any]) -> None:
    """Refuse to keep a flow if the density or cosmology changed while it was made."""
    now = _origin(FieldStore(url))
    if not is_same_origin(now, origin):
        raise changed_input(url, _describe(origin, now), _describe(now, origin))


def _describe(origin: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return the parts of the origin of a flow that differ from another origin."""
    unlike = {name: value for name, value in origin.items() if value != other.get(name)}
    return ", ".join(f"{name} {value}" for name, value in unlike.items())


def _fits(bytes_per_cell: int, store: FieldStore, run: Run) -> bool:
    """Return whether the transforms of a box fit into the memory of this process."""
    return bytes_per_cell * store.grid**3 <= memory_here(run)
