"""Typed events of a running stage, for progress bars and logs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage begins; ``total`` counts its steps in ``unit``."""

    stage: str
    total: int
    unit: str


@dataclass(frozen=True, slots=True)
class StageAdvanced:
    """``done`` of ``total`` steps are finished; ``note`` says something about the newest one."""

    stage: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class StageFinished:
    """A stage has ended; ``summary`` holds its headline figures."""

    stage: str
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Message:
    """A line of text for the user."""

    text: str
    level: str = "info"


Event = StageStarted | StageAdvanced | StageFinished | Message
Listener = Callable[[Event], None]


class CosmoflowWarning(UserWarning):
    """A result may not be what the caller takes it for."""


def ignore(event: Event) -> None:
    """Discard an event: a silent listener."""


def warn_only(event: Event) -> None:
    """Hand warnings to Python's ``warnings``, and discard all other events.

    This is the listener of a Python caller that passed none.
    """
    if isinstance(event, Message) and event.level == "warning":
        warnings.warn(event.text, CosmoflowWarning, stacklevel=_caller_level())


def _caller_level() -> int:
    """Return the stack level, for :func:`warn_only`, of the first caller outside this package."""
    package = __name__.partition(".")[0]
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] != package:
            break
        level, frame = level + 1, frame.f_back
    return level


def caution(listener: Listener, text: str) -> None:
    """Tell a listener what may make the result other than the caller takes it for."""
    listener(Message(text, "warning"))


def noting(listener: Listener, notes: list[str]) -> Listener:
    """Return a listener that passes everything on and adds warnings to ``notes``.

    The output of a run keeps them: what was warned of while it was made belongs to it.
    """

    def hear(event: Event) -> None:
        if isinstance(event, Message) and event.level == "warning":
            notes.append(event.text)
        listener(event)

    return hear
