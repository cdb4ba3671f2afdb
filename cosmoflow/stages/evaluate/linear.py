"""Linear theory beside the predictions: read where the truth has it, else made for the while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from cosmoflow.config.settings import choose_chunk
from cosmoflow.errors import StorageError
from cosmoflow.events import Message
from cosmoflow.numerics.fourier import linear_velocity
from cosmoflow.stages.evaluate.inputs import linear_name
from cosmoflow.stages.flows.slabs import LinearTheory, add_flow
from cosmoflow.stages.flows.stored import LINEAR_BYTES, current_scales
from cosmoflow.stages.inputs.expansion import growth_rate_hubble
from cosmoflow.stages.inputs.readers import Method
from cosmoflow.stages.run import Run, memory_here
from cosmoflow.storage.claims import Claim
from cosmoflow.storage.fields import FieldStore, create_fields
from cosmoflow.storage.flows import adding_linear_velocity
from cosmoflow.storage.origins import LINEAR
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.urls import exists, join, open_group_for_writing, remove

SCRATCH = "linear.zarr"
"""The store inside the report's folder that linear theory is kept in while it is compared."""


def lacking(true: FieldStore, radii: Sequence[float]) -> list[float]:
    """Return the radii of linear velocities that the truth does not have of its density."""
    stored = current_scales(true)
    return [radius for radius in dict.fromkeys(radii) if radius not in stored]


def fits_in_memory(true: FieldStore, run: Run) -> bool:
    """Tell whether this process may have the memory for the transforms of a box."""
    return LINEAR_BYTES * true.grid**3 <= memory_here(run)


@contextmanager
def linear_methods(
    true: FieldStore, radii: Sequence[float], out: str, run: Run, claim: Claim
) -> Iterator[list[Method]]:
    """Have the linear velocities of the truth's density for a while.

    The truth is somebody else's and is only read. What it lacks is made in a scratch store inside
    the output, in memory or slab by slab on the engine, and deleted at the end, come what may.

    Parameters
    ----------
    true : FieldStore
        With ``density``.
    radii : sequence of float
        Gaussian radii, Mpc/h.
    out : str
        URL of the output.
    run : Run
        Settings, engine, who hears of it.
    claim : Claim
        On the output.

    Yields
    ------
    list of Method
        Of the radii, in their order.

    Raises
    ------
    ConfigError
        There is too little memory.
    DataError
        The density is damaged.
    """
    scratch = join(out, SCRATCH)
    missing = lacking(true, radii)
    try:
        if missing:
            _make(true, missing, scratch, run, claim)
        stored = current_scales(true)
        methods = []
        for radius in dict.fromkeys(radii):
            url = true.url if radius not in missing else scratch
            scales = stored if radius not in missing else missing
            methods.append(Method(linear_name(radius), url, LINEAR, (scales.index(radius),)))
        yield methods
    finally:
        # An error that ends the run is news; a scratch store that stays behind is not.
        with suppress(StorageError):
            if claim.holds() and exists(scratch):
                remove(scratch)


def _make(true: FieldStore, radii: Sequence[float], scratch: str, run: Run, claim: Claim) -> None:
    shard = min(true.shard, true.grid)
    chunk = choose_chunk(shard)
    if exists(scratch):
        remove(scratch)
    # Its density stays unwritten: a fields store must have a variable from the start.
    create_fields(scratch, true.metadata, true.grid, ("density",), shard=shard, chunk=chunk)
    finish_group(open_group_for_writing(scratch))
    size, rate = true.metadata.box_size, growth_rate_hubble(true.metadata)
    if not fits_in_memory(true, run):
        for radius in radii:
            run.listener(Message(f"linear velocity, smoothed at {radius:g} Mpc/h"))
            adding = adding_linear_velocity(scratch, radius)
            add_flow(true, LinearTheory(radius), rate, adding, run, claim=claim)
        return
    density = torch.from_numpy(true.read("density"))
    for radius in radii:
        with adding_linear_velocity(scratch, radius) as array:
            array.write(linear_velocity(density, size, rate, radius).numpy())
        claim.check()
