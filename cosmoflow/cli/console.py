"""Progress and results of stages, for users and for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from cosmoflow.errors import CosmoflowError
from cosmoflow.events import DETAIL, Event, Message, StageAdvanced, StageFinished, StageStarted
from cosmoflow.storage.places import local_path
from cosmoflow.units import format_bytes

if TYPE_CHECKING:
    from cosmoflow.stages.run import Plan

_LONGEST = 90
"""Largest number of a time that is said in a unit; more is said in the next larger one."""

SPARSE_SECONDS = 10.0
"""Shortest time between progress lines of a stage if stderr is not a terminal, seconds."""


class Pace:
    """Estimates the time that a stage needs for its other steps, from those done so far.

    Steps before the first event, which a resumed run did earlier, do not count.
    """

    def __init__(self) -> None:
        self._first: dict[str, tuple[int, float]] = {}

    def left(self, event: Event) -> str:
        """Return the time left in words; empty if it is not known or below a second."""
        now = time.monotonic()
        if isinstance(event, StageStarted):
            self._first.pop(event.stage, None)
        if not isinstance(event, StageAdvanced):
            return ""
        done, since = self._first.setdefault(event.stage, (event.done, now))
        if not done < event.done < event.total:
            return ""
        left = (now - since) * (event.total - event.done) / (event.done - done)
        for unit in ("s", "min"):
            if left < _LONGEST:
                return f"{left:.0f} {unit} left" if left > 1 else ""
            left /= 60
        return f"{left:.1f} h left"


class _TimeLeft(TimeElapsedColumn):
    """The time left, and the time taken when a stage is done.

    Rich's own estimate looks at the last 30 s, in which a stage of slow steps does none.
    """

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        """Return the time with what it means; empty if the time left is not known."""
        if task.finished:
            return super().render(task) + " taken"
        return Text(task.fields["left"], style="progress.remaining")


class Reporter:
    """Shows events on stderr and results on stdout.

    Parameters
    ----------
    as_json : bool
        Write events, results and errors to stdout, one JSON object per line. Errors are also
        written to stderr as text.
    verbosity : int
        -1 quiet, 0 normal, 1 verbose.
    """

    def __init__(self, *, as_json: bool, verbosity: int) -> None:
        self.as_json = as_json
        self.verbosity = verbosity
        self.stderr = Console(stderr=True, highlight=False)
        self.stdout = Console(highlight=False)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last_line: dict[str, float] = {}
        self._last_note: dict[str, str] = {}
        self._pace = Pace()

    def listen(self, event: Event) -> None:
        """Show one event."""
        if self.as_json:
            self._write({"event": _event_name(event), **asdict(event)})
        elif self.verbosity < _least_verbosity(event):
            return
        elif self.stderr.is_terminal:
            self._draw(event)
        else:
            self._print_sparsely(event)

    def result(self, content: dict[str, Any], show: Callable[[Console], None]) -> None:
        """Print the result of a command: as JSON, or by calling ``show``."""
        self.close()
        if self.as_json:
            self._write({"event": "result", **content})
        else:
            show(self.stdout)

    def plan(self, plan: Plan, *urls: str) -> None:
        """Show the plan of a stage; ``urls`` are its inputs and outputs."""
        remote = any(local_path(url) is None for url in urls)
        self.result(plan.to_json(), lambda console: console.print(plan_table(plan, remote=remote)))

    def error(self, error: CosmoflowError) -> None:
        """Show an error that the user can fix."""
        self.close()
        if self.as_json:
            self.write_error(error)
        self.stderr.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)

    def write_error(self, error: CosmoflowError) -> None:
        """Write an error as JSON."""
        self._write(
            {
                "event": "error",
                "kind": error.kind,
                "exit_code": error.exit_code,
                "message": error.what,
                **{key: _plain(value) for key, value in error.details().items()},
            }
        )

    def close(self) -> None:
        """Remove the progress bars."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _write(self, content: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(content, default=_plain) + "\n")
        sys.stdout.flush()

    def _draw(self, event: Event) -> None:
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _TimeLeft(),
                TextColumn("{task.fields[note]}"),
                console=self.stderr,
            )
            self._bars.start()
        left = self._pace.left(event)
        if isinstance(event, StageStarted):
            self._tasks[event.stage] = self._bars.add_task(
                event.stage, total=event.total, note=event.unit, left=left
            )
        elif isinstance(event, StageAdvanced):
            self._bars.update(
                self._tasks[event.stage],
                completed=event.done,
                note=escape(describe(event)),
                left=left,
            )
        elif isinstance(event, Message):
            style = "yellow" if event.level == "warning" else ""
            self._bars.console.print(escape(_sentence(event)), style=style)
        elif isinstance(event, StageFinished):
            self._bars.refresh()

    def _print_sparsely(self, event: Event) -> None:
        left = self._pace.left(event)
        if isinstance(event, StageStarted):
            self._last_line[event.stage] = time.monotonic()
            self._line(f"{event.stage}: {event.total} {event.unit}")
        elif isinstance(event, StageAdvanced):
            now = time.monotonic()
            due = now - self._last_line.get(event.stage, 0.0) >= SPARSE_SECONDS
            # A note names the step that a stage is at.
            new = self.verbosity > 0 and event.note != self._last_note.get(event.stage, "")
            if due or event.done == event.total or new:
                self._last_line[event.stage] = now
                self._last_note[event.stage] = event.note
                note = ", ".join(filter(None, (describe(event), left)))
                self._line(f"{event.stage}: {event.done}/{event.total}  {note}".rstrip())
        elif isinstance(event, Message):
            self._line(_sentence(event))

    def _line(self, text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def plan_table(plan: Plan, *, remote: bool = False) -> Table:
    """Return a plan as a table. It includes requests if inputs or outputs are ``remote``."""
    table = Table(title=f"{plan.stage}: plan", show_header=False, title_justify="left")
    table.add_row("tasks", f"{plan.tasks} {plan.unit}")
    table.add_row("memory of a worker", f"{format_bytes(plan.worker_memory)}")
    table.add_row("read", format_bytes(plan.read))
    table.add_row("written", format_bytes(plan.written))
    if plan.exchanged:
        table.add_row("exchanged between tasks", format_bytes(plan.exchanged))
    if remote and (requests := plan.requests).get:
        table.add_row("requests", f"{requests.get:,} GET, {requests.put:,} PUT")
    table.add_row("about", f"{plan.cpu_seconds:.0f} CPU seconds")
    for key, value in plan.details.items():
        table.add_row(key, escape(_detail(value)))
    return table


def _detail(value: Any) -> str:
    """Return a detail of a plan as text, with one name or one pair on a line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "\n".join(f"{key}: {one}" for key, one in value.items())
    if isinstance(value, list | tuple) and value and all(isinstance(one, str) for one in value):
        return "\n".join(value)
    return str(value)


def describe(event: StageAdvanced) -> str:
    """Return what a stage measured at its newest step, and its note."""
    values = (f"{name} {value:#.3g}" for name, value in event.values.items())
    return ", ".join(filter(None, (*values, event.note)))


def _event_name(event: Event) -> str:
    return {
        StageStarted: "started",
        StageAdvanced: "advanced",
        StageFinished: "finished",
        Message: "message",
    }[type(event)]


def _least_verbosity(event: Event) -> int:
    """Return the verbosity from which on an event is shown."""
    if isinstance(event, Message):
        return {"warning": -1, DETAIL: 1}.get(event.level, 0)
    return 0


def _sentence(message: Message) -> str:
    return f"warning: {message.text}" if message.level == "warning" else message.text


def _plain(value: Any) -> Any:
    """Convert values that JSON does not support, such as tuples of NumPy scalars, to text."""
    if value is None or isinstance(value, str | int | float | bool | list | dict):
        return value
    return str(value)
