"""Arguments common to all stages, their plans, and their start."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

from cosmoflow.config.folders import require_working_directory
from cosmoflow.config.settings import Settings
from cosmoflow.engine import (
    FREE_SHARE,
    Engine,
    Exchange,
    Key,
    Resources,
    Session,
    TaskGraph,
    available_memory,
)
from cosmoflow.engine.serial import SerialEngine
from cosmoflow.errors import ConfigError, CosmoflowError, StorageError
from cosmoflow.events import DETAIL, Listener, Message, StageAdvanced, StageStarted, warn_only
from cosmoflow.storage.claims import Claim, claim
from cosmoflow.storage.objects import Objects
from cosmoflow.storage.outputs import Existing, is_barely_begun
from cosmoflow.storage.requests import Requests
from cosmoflow.storage.urls import absolute, exists, join, local_path, remove
from cosmoflow.units import format_bytes

FIELDS_SHARE: Final = 0.25
"""Share of the free memory up to which a training holds its fields; larger ones are streamed."""
FIELDS_DEVICE_SHARE: Final = 0.5
"""The same of the free memory of a GPU, for fields that fit into main memory."""
PASS_DEVICE_SHARE: Final = 0.8
"""Share of the free memory of a GPU that a forward pass of `infer` is planned for."""
USEFUL_MEMORY: Final = 8 << 30
"""Bytes of a worker of `infer` beyond which it gains next to nothing."""

SCRATCH: Final = "cosmoflow-scratch"
"""Folder in a bucket for what tasks hand on."""

_OF_THE_SETTINGS: Final = Session()
"""Placeholder for a session made from the settings: a default cannot look at another field."""


@dataclass(frozen=True, slots=True, repr=False)
class Run:
    """How to run a stage.

    Parameters
    ----------
    settings : Settings
        The resolved configuration.
    session : Session, optional
        Provides the engine; by default a new session with the section ``engine`` of the settings.
    existing : {"error", "resume", "overwrite"}
        Treatment of an existing output.
    listener : callable
        Receives progress and warnings. By default warnings go to Python's ``warnings`` and the rest
        is discarded.
    """

    settings: Settings = field(default_factory=Settings)
    session: Session = _OF_THE_SETTINGS
    existing: Existing = "error"
    listener: Listener = warn_only

    def __repr__(self) -> str:
        return f"Run({self.settings!r}, existing={self.existing!r})"

    def __post_init__(self) -> None:
        require_working_directory()
        if self.session is _OF_THE_SETTINGS:
            object.__setattr__(self, "session", Session(self.settings.engine))
        # The session outlives runs, and starts its engine in one of them.
        self.session.notify = lambda text: self.listener(Message(text))
        self.session.explain = lambda text: self.listener(Message(text, DETAIL))

    def here(self) -> Run:
        """Return the run with all of its work in this process."""
        engine = self.settings.engine.model_copy(update={"choice": "serial"})
        settings = self.settings.model_copy(update={"engine": engine})
        return replace(self, settings=settings, session=_OF_THE_SETTINGS)


@contextmanager
def claiming(out: str, run: Run) -> Iterator[Claim]:
    """Hold an output from before a run's first write to it until its last.

    If the run is refused before it finishes any part of an output that it began, the output is
    deleted: the user can mend the input and run the same command again. An output that an earlier
    run began, or that has a finished shard, stays.

    Parameters
    ----------
    out : str
        URL of the output.
    run : Run
        Settings of the run: whether the output may have been begun before.

    Yields
    ------
    Claim
        For the run's :class:`Progress`, which stops a run that has lost its output.

    Raises
    ------
    BusyError
        Another run is writing the output.
    """
    with claim(out) as held:
        begun_before = run.existing != "overwrite" and exists(out)
        try:
            yield held
        except CosmoflowError:
            # A failure of the storage here must not hide the error that ends the run.
            with suppress(StorageError):
                if not begun_before and held.holds() and is_barely_begun(out):
                    remove(out)
            raise


@dataclass(frozen=True)
class Plan:
    """Plan of a stage.

    Every stage has its own subclass with further fields. ``--dry-run`` prints a plan, the planner
    of clusters reads it, and the stage runs it.

    Parameters
    ----------
    stage : str
        Name of the stage.
    tasks : int
        Independent pieces of work, counted in ``unit``.
    worker_memory : int
        Projected peak of one worker beyond its interpreter, bytes.
    read, written : int
        Bytes moved from and to storage, before compression.
    cpu_seconds : float
        Core-seconds of the tasks by :mod:`cosmoflow.stages.costs`; they decide whether Ray is worth
        starting.
    exchanged : int
        Bytes that tasks hand to one another: in files, if they run on Ray, or in the memory of this
        process.
    threads : int
        Threads of one worker: more than one where there are fewer tasks than cores.
    requests : Requests
        Requests to object stores, if inputs and outputs are there. Listings and the heartbeats of
        claims are not among them.
    """

    stage: str
    tasks: int
    unit: str
    worker_memory: int
    read: int
    written: int
    cpu_seconds: float
    exchanged: int = field(default=0, kw_only=True)
    threads: int = field(default=1, kw_only=True)
    requests: Requests = field(default=Requests(), kw_only=True)

    @property
    def details(self) -> dict[str, Any]:
        """The further fields of the stage's own plan that its repr shows.

        An optional field is left out while it is None.
        """
        common = {one.name for one in fields(Plan)}
        return {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.name not in common and one.repr
            if one.default is not None or getattr(self, one.name) is not None
        }

    def to_json(self) -> dict[str, Any]:
        """Return what ``--dry-run --json`` prints."""
        common = {one.name: getattr(self, one.name) for one in fields(Plan)}
        return {**common, "requests": asdict(self.requests), "details": self.details}


def start_engine(
    run: Run, plan: Plan, *, remedy: str, cpu_seconds: float | None = None, workers: int = 1
) -> Engine:
    """Return the engine of a stage; refuse a plan whose workers need too much memory.

    Parameters
    ----------
    run : Run
        The run: its session provides the engine, and its settings may limit the memory.
    plan : Plan
        The plan, with the memory of a worker.
    remedy : str
        How to need less memory.
    cpu_seconds : float, optional
        Cost of the work; by default that of the plan. With 0 the work stays in this process unless
        Ray was asked for.
    workers : int
        Processes that must run side by side.

    Raises
    ------
    ConfigError
        A worker would need more memory than it can have.
    """
    in_one = plan.worker_memory + plan.exchanged
    seconds = plan.cpu_seconds if cpu_seconds is None else cpu_seconds
    if run.session.wants_ray(seconds, workers=workers, memory=in_one):
        # Before Ray is started, which takes seconds. The workers of a cluster say what they have.
        here = run.settings.engine.address is None
        limit = SerialEngine().memory if here else plan.worker_memory
        require_memory(run, plan, limit, remedy=remedy)
    engine = run.session.engine(seconds, workers=workers, memory=in_one)
    if engine.name == "serial":
        plan = replace(plan, worker_memory=in_one)
        remedy += ", or --engine ray" if plan.exchanged else ""
    require_memory(run, plan, engine.memory, remedy=remedy)
    return engine


def memory_here(run: Run, *, free: int | None = None, workers: int = 1) -> int:
    """Return the bytes that a process may take: ``--memory``, or else a share of the free memory.

    The rest is for other processes on the machine.

    Parameters
    ----------
    run : Run
        Its settings may say how much is allowed.
    free : int, optional
        Bytes that are free; by default those of this machine.
    workers : int
        Processes that share them, unless settings say how much each may take.
    """
    allowed = run.settings.engine.memory
    free = available_memory() if free is None else free
    return int(FREE_SHARE * free) // workers if allowed is None else min(free, int(allowed))


def memory_of_worker(run: Run) -> int:
    """Return the bytes of a worker that keep all cores busy, or the limit of the settings."""
    engine = run.session.engine(0.0)
    allowed = run.settings.engine.memory
    return engine.memory_per_core if allowed is None else min(int(allowed), engine.memory)


def require_memory(run: Run, plan: Plan, available: int, *, remedy: str) -> None:
    """Refuse a plan whose workers need more memory than there is, or than ``--memory`` allows."""
    allowed = run.settings.engine.memory
    limit = available if allowed is None else min(available, allowed)
    if plan.worker_memory > limit:
        source = "--memory" if limit == allowed else "what a worker can have"
        raise ConfigError(
            f"{plan.stage} would need more memory than there is",
            value=f"{format_bytes(plan.worker_memory)} for a worker",
            limit=f"{format_bytes(limit)}, {source}",
            remedy=remedy,
        )


class Progress:
    """Counts the steps of a stage for its listener.

    Parameters
    ----------
    listener : callable
        Where the events go.
    stage, unit : str
        Names, for messages.
    total, done : int
        Steps in all, and those that an earlier run finished.
    claim : Claim, optional
        On the output: at every step the run makes sure that it is still held.
    """

    def __init__(
        self,
        listener: Listener,
        stage: str,
        total: int,
        unit: str,
        done: int = 0,
        *,
        claim: Claim | None = None,
    ) -> None:
        self._listener = listener
        self._stage = stage
        self._total = total
        self._done = done
        self._claim = claim
        # Messages of running tasks come in another thread.
        self._lock = threading.Lock()
        listener(StageStarted(stage, total, unit))
        if done:
            listener(StageAdvanced(stage, done, total, f"{done} finished before"))

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Note that some steps are done."""
        with self._lock:
            self._done += steps
            self._listener(StageAdvanced(self._stage, self._done, self._total, note))
        if self._claim is not None:
            self._claim.check()

    def reach(self, done: int, note: str = "", **values: float) -> None:
        """Note that ``done`` steps in all are done, and what was measured."""
        with self._lock:
            self._done = done
            self._listener(StageAdvanced(self._stage, done, self._total, note, values))


def run_graph(
    graph: TaskGraph,
    engine: Engine,
    plan: Plan,
    run: Run,
    on_done: Callable[[Key, Any], None],
) -> None:
    """Run a graph, and show how many of its tasks are done.

    Parameters
    ----------
    graph : TaskGraph
    engine : Engine
        The engine.
    plan : Plan
        The stage, how many tasks there are, what each needs.
    run : Run
        Its listener receives progress.
    on_done : callable
        Takes the key and the result of every output of the graph, in any order.
    """
    progress = Progress(run.listener, plan.stage, plan.tasks, plan.unit)
    # A task that is run again, since its parcel was lost, counts once.
    done: set[Key] = set()

    def note(key: Key) -> None:
        done.add(key)
        progress.reach(len(done), key[0])

    # The engine may have more tasks for each core than the one that was there for the plan.
    share = engine.share(graph.width, most=1, memory=plan.worker_memory)
    needs = Resources(min(plan.threads, share.cpus), memory=plan.worker_memory)
    engine.run(graph, on_done, on_task=note, needs=needs, exchange=make_exchange(run, plan))


def make_exchange(run: Run, plan: Plan, name: str | None = None) -> Exchange:
    """Return how much the tasks of a plan hand to one another, and through which bucket, if any.

    Parameters
    ----------
    run : Run
        The settings of its session say where scratch is.
    plan : Plan
        Says how much.
    name : str, optional
        Name of a run that can be resumed; see :class:`Exchange`.

    Raises
    ------
    StorageError
        The place for scratch is neither a folder nor a URL.
    """
    scratch = run.session.config.scratch or os.environ.get("COSMOFLOW_SCRATCH")
    objects = None
    if scratch and local_path(scratch) is None:
        objects = Objects(join(absolute(scratch), SCRATCH))
    resume = name is not None and run.existing == "resume"
    return Exchange(plan.exchanged, name, resume, objects)
