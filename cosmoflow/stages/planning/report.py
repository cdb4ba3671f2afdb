"""The plan of a chain: figures of every stage, and their totals."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from cosmoflow.stages import costs
from cosmoflow.stages.planning.estimate import Resource
from cosmoflow.tables import WIDTH, html_table, text_table
from cosmoflow.units import format_bytes


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """Resources that one stage needs.

    Parameters
    ----------
    stage, node : str
        Name of the stage, and type of its nodes.
    nodes, runs : int
        Number of nodes, and of runs of the stage.
    seconds : float
        Time of all runs.
    limit : str
        Resource that all others wait for.
    busy : dict of str to float
        Seconds of one run that each resource is at work.
    worker_memory : int
        Memory of a task or worker, bytes.
    tasks, parts : int
        Tasks of all runs, and parts that tasks hand to one another.
    read, written, exchanged : int
        Bytes of all runs, before compression.
    spilled : int
        Bytes handed on in one run that exceed the memory for them.
    stored : float
        Bytes that stay, compressed.
    requests : dict of str to int
        ``put`` and ``get`` requests to an object store.
    usd : float
        Price of the nodes, US dollars.
    request : dict of str to float
        ``CPU``, ``GPU`` and ``memory`` to ask an autoscaler for, enough for all tasks at a time.
    """

    stage: str
    node: str
    nodes: int
    runs: int
    seconds: float
    limit: Resource
    busy: dict[Resource, float]
    worker_memory: int
    tasks: int
    parts: int
    read: int
    written: int
    exchanged: int
    spilled: int
    stored: float
    requests: dict[str, int]
    usd: float
    request: dict[str, float]


_HEADINGS = ("stage", "node", "nodes", "hours", "limit", "a worker", "USD")


@dataclass(frozen=True, slots=True, repr=False)
class ChainPlan:
    """Resources that a chain of stages needs.

    Parameters
    ----------
    stages : tuple of StageEstimate
        The stages in their order.
    notes : tuple of str
        Messages about what is left out or was not measured.
    spot : bool
        Whether prices are those of spot nodes.
    """

    stages: tuple[StageEstimate, ...]
    notes: tuple[str, ...]
    spot: bool

    @property
    def seconds(self) -> float:
        """Time of all stages, one after the other."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def stored(self) -> float:
        """Bytes that stay, compressed."""
        return sum(stage.stored for stage in self.stages)

    @property
    def storage_usd(self) -> float:
        """Price of a month of storage, US dollars."""
        return self.stored / 1e9 * costs.STORAGE_PRICE

    @property
    def requests_usd(self) -> float:
        """Price of the requests to the object store, US dollars."""
        puts = sum(stage.requests["put"] for stage in self.stages)
        gets = sum(stage.requests["get"] for stage in self.stages)
        return puts * costs.PUT_PRICE + gets * costs.GET_PRICE

    @property
    def usd(self) -> float:
        """Price of nodes, requests and one month of storage, without egress, US dollars."""
        return sum(stage.usd for stage in self.stages) + self.requests_usd + self.storage_usd

    def __repr__(self) -> str:
        notes = [line for note in self.notes for line in textwrap.wrap(note, WIDTH)]
        return "\n".join([self._title(), text_table(_HEADINGS, self._cells()), *notes])

    def _repr_html_(self) -> str:
        return html_table(self._title(), _HEADINGS, self._cells())

    def _title(self) -> str:
        prices = "spot" if self.spot else "on-demand"
        return (
            f"ChainPlan: {self.seconds / 3600.0:.2f} hours, {self.usd:,.2f} USD at {prices} "
            f"prices, {format_bytes(self.stored)} stored"
        )

    def _cells(self) -> list[list[str]]:
        return [
            [
                one.stage + (f" x {one.runs}" if one.runs > 1 else ""),
                one.node,
                str(one.nodes),
                f"{one.seconds / 3600.0:.2f}",
                one.limit,
                format_bytes(one.worker_memory),
                f"{one.usd:,.2f}",
            ]
            for one in self.stages
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the stages, the notes and the totals as plain data."""
        totals = ("seconds", "stored", "storage_usd", "requests_usd", "usd")
        return asdict(self) | {name: getattr(self, name) for name in totals}
