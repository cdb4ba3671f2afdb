"""The shipped model as a further prediction of a comparison, made for it and then deleted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from cosmoflow.config.settings import choose_chunk
from cosmoflow.errors import StorageError
from cosmoflow.events import Message
from cosmoflow.model.names import DEFAULT_MODEL, SHIPPED
from cosmoflow.stages.evaluate.inputs import Inputs
from cosmoflow.stages.infer import Shipped, find_shipped, predict_shipped_box
from cosmoflow.stages.inputs.readers import Method
from cosmoflow.stages.models import model_digest
from cosmoflow.stages.run import Run, memory_here
from cosmoflow.storage.claims import Claim
from cosmoflow.storage.field_writing import create_fields, write_whole
from cosmoflow.storage.fields import FieldStore
from cosmoflow.storage.outputs import finish_group
from cosmoflow.storage.urls import exists, join, open_group_for_writing, remove
from cosmoflow.units import format_bytes

PREDICTED: Final = "shipped.zarr"
"""Store inside the report's folder for its prediction during the comparison."""

NOT_COMPARED: Final = Shipped(DEFAULT_MODEL, None, "the stores to compare are only planned")
"""The shipped model in plans of stores that do not exist yet."""


def choose_shipped(inputs: Inputs, run: Run) -> Shipped:
    """Return the shipped model if it is to be compared, or why it is not.

    It is compared if it fits the box without a warning, unless it is among the predictions, the
    box has more cells than ``evaluate.shipped_grid`` allows, or its prediction does not fit into
    the memory of this process: the comparison must not cost much more than without it.
    """
    true, most = inputs.true, run.settings.evaluate.shipped_grid
    if most == 0:
        return Shipped(DEFAULT_MODEL, None, "switched off by evaluate.shipped_grid=0")
    if rows := find_rows(inputs):
        return Shipped(DEFAULT_MODEL, None, f"{rows[0]} is already among the predictions")
    if true.grid > most:
        reason = f"the box has {true.grid}^3 cells, and evaluate.shipped_grid is {most}"
        found = Shipped(DEFAULT_MODEL, None, reason)
    else:
        found = find_shipped(true)
    need, free = found.memory(true.grid), memory_here(run)
    if need > free:
        reason = f"it needs {format_bytes(need)} of memory, and {format_bytes(free)} are free"
        found = Shipped(DEFAULT_MODEL, None, reason)
    return found


def find_rows(inputs: Inputs) -> list[str]:
    """Return the names of the methods that the shipped model made, restored power among them."""
    digest, urls = model_digest(DEFAULT_MODEL), set[str]()
    for store in inputs.found.values():
        made_from = store.metadata.provenance.get("inputs")
        if isinstance(made_from, dict) and made_from.get("models") == digest:
            urls.add(store.url)
    return [method.name for method in inputs.methods if method.url in urls]


def to_json(shipped: Shipped, inputs: Inputs) -> dict[str, Any]:
    """Return what a report notes about the shipped model; ``rows`` are its rows, if it has any."""
    if shipped.model is None:
        rows, reason = find_rows(inputs), shipped.reason
        return {"name": shipped.name, "compared": False, "reason": reason, "rows": rows}
    digest = model_digest(shipped.name)
    return {"name": SHIPPED, "compared": True, "digest": digest, "rows": [SHIPPED]}


def describe_shipped(shipped: Shipped) -> str:
    """Return in words whether the shipped model is compared."""
    if shipped.model is None:
        return f"{shipped.name} is not added: {shipped.reason}"
    return f"{shipped.name} is predicted in memory"


@contextmanager
def shipped_methods(
    true: FieldStore, shipped: Shipped, out: str, run: Run, claim: Claim
) -> Iterator[list[Method]]:
    """Provide the prediction of the shipped model while the ``with`` block runs.

    The truth is only read. The prediction is kept in a scratch store inside the output, which is
    deleted at the end, also after an error.

    Yields
    ------
    list of Method
        One method, or none if the model is not compared.

    Raises
    ------
    DataError
        The density is damaged.
    """
    if shipped.model is None:
        yield []
        return
    scratch = join(out, PREDICTED)
    try:
        if exists(scratch):
            remove(scratch)
        run.listener(Message(f"predicting with {shipped.name}, to compare"))
        shard = min(true.shard, true.grid)
        metadata, chunk = true.metadata, choose_chunk(shard)
        create_fields(scratch, metadata, true.grid, ("velocity",), shard=shard, chunk=chunk)
        write_whole(scratch, "velocity", predict_shipped_box(shipped, true))
        finish_group(open_group_for_writing(scratch))
        claim.check()
        yield [Method(SHIPPED, scratch)]
    finally:
        # An error here must not hide the error that ends the run.
        with suppress(StorageError):
            if claim.holds() and exists(scratch):
                remove(scratch)
