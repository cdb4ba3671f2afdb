"""Progress of functions called from notebooks and scripts."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cosmoflow.cli.console import Pace, Reporter, describe
from cosmoflow.events import (
    Event,
    Listener,
    Message,
    StageAdvanced,
    StageFinished,
    StageStarted,
    warn_only,
)

DRAW_SECONDS = 0.2
"""Shortest time between updates of a notebook's progress, seconds."""


def in_notebook() -> bool:
    """Check whether this process is the kernel of a notebook."""
    # A notebook has imported IPython already; importing it here would take a second.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


@contextmanager
def watching(wanted: bool | None, listener: Listener) -> Iterator[Listener]:
    """Show the progress of the enclosed code, if wanted; yield the listener to pass to the run.

    If ``wanted`` is None, progress is shown only in a notebook and only if the caller gave no
    listener. The caller's listener receives every event in any case.
    """
    shown = (listener is warn_only and in_notebook()) if wanted is None else wanted
    if not shown:
        yield listener
        return
    display: NotebookProgress | ConsoleProgress
    display = NotebookProgress() if in_notebook() else ConsoleProgress()

    def hear(event: Event) -> None:
        display.show(event)
        listener(event)

    try:
        yield hear
    finally:
        display.close()


class ConsoleProgress(Reporter):
    """Progress bars on stderr if it is a terminal, otherwise a line every few seconds.

    Warnings are left to the caller's listener, by default Python's ``warnings``.
    """

    def __init__(self) -> None:
        super().__init__(as_json=False, verbosity=0)

    def show(self, event: Event) -> None:
        """Show one event."""
        if not (isinstance(event, Message) and event.level == "warning"):
            self.listen(event)


class NotebookProgress:
    """A progress bar for each stage, in the output of the notebook cell that runs it.

    This class needs only IPython, whereas the notebook bars of rich and tqdm need ipywidgets.
    """

    def __init__(self) -> None:
        self._bars: dict[str, dict[str, Any]] = {}
        self._note = ""
        self._pace = Pace()
        self._drawn = 0.0
        self._handle: Any = None

    def show(self, event: Event) -> None:
        """Show one event."""
        due, left = True, self._pace.left(event)
        if isinstance(event, StageStarted):
            self._bars[event.stage] = {"done": 0, "total": event.total, "unit": event.unit}
        elif isinstance(event, StageAdvanced):
            self._bars.setdefault(event.stage, {"unit": ""}).update(
                done=event.done, total=event.total
            )
            self._note = ", ".join(filter(None, (describe(event), left)))
            due = event.done == event.total
        elif isinstance(event, StageFinished):
            self._note = ""
        elif event.level == "info":
            self._note = event.text
        if due or time.monotonic() - self._drawn > DRAW_SECONDS:
            self._draw()

    def _draw(self) -> None:
        """Redraw all bars in place."""
        if not self._bars and not self._note:
            return
        from IPython.display import display

        content = {"text/plain": self._as_text(), "text/html": self._as_html()}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)
        self._drawn = time.monotonic()

    def _as_text(self) -> str:
        lines = [
            f"{stage}: {bar['done']}/{bar['total']} {bar['unit']}"
            for stage, bar in self._bars.items()
        ]
        return "\n".join([*lines, self._note] if self._note else lines)

    def _as_html(self) -> str:
        rows = [
            f"<tr><td>{html.escape(stage)}</td>"
            f"<td><progress value='{bar['done']}' max='{max(bar['total'], 1)}'></progress></td>"
            f"<td>{bar['done']}/{bar['total']} {html.escape(bar['unit'])}</td></tr>"
            for stage, bar in self._bars.items()
        ]
        note = f"<div>{html.escape(self._note)}</div>" if self._note else ""
        return f"<table>{''.join(rows)}</table>{note}"

    def close(self) -> None:
        """Draw the final state."""
        self._draw()
