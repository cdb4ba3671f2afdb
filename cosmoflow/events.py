"""What a running stage tells the outside: typed events that progress bars and logs subscribe to."""

from __future__ import annotations

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
    """A line that a person may want to read."""

    text: str
    level: str = "info"


Event = StageStarted | StageAdvanced | StageFinished | Message
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Discard an event: the listener of a caller that wants silence."""
