"""Typed events of running stages, for progress bars and logs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage began; it has ``total`` steps, and ``unit`` is their name."""

    stage: str
    total: int
    unit: str


@dataclass(frozen=True, slots=True)
class StageAdvanced:
    """``done`` of ``total`` steps are finished; ``note`` describes the newest one.

    ``values`` holds what is measured at every step, such as the loss of a training.
    """

    stage: str
    done: int
    total: int
    note: str = ""
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StageFinished:
    """A stage ended; ``summary`` holds its main results."""

    stage: str
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Message:
    """A line of text for the user.

    Parameters
    ----------
    level : {"info", "warning", "detail"}
        Details are shown with ``-v`` only.
    """

    text: str
    level: str = "info"


DETAIL: Final = "detail"
"""Level of a message that is shown with ``-v`` only."""

Event = StageStarted | StageAdvanced | StageFinished | Message
Listener = Callable[[Event], None]


class CosmoflowWarning(UserWarning):
    """Warns that a result may not mean what the caller expects."""


def ignore(event: Event) -> None:
    """Discard an event; the listener for silent runs."""


def warn_only(event: Event) -> None:
    """Pass warnings to Python's ``warnings`` and discard all other events.

    This is the default listener in Python.
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
    """Warn a listener that the result may not mean what the caller expects."""
    listener(Message(text, "warning"))


def noting(listener: Listener, notes: list[str]) -> Listener:
    """Return a listener that forwards every event and adds warnings to ``notes``.

    The output of a run stores the notes.
    """

    def hear(event: Event) -> None:
        if isinstance(event, Message) and event.level == "warning":
            notes.append(event.text)
        listener(event)

    return hear
