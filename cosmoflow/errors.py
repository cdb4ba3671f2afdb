"""Exceptions with stable exit codes.

Every error that a user can fix states the problem, its place, the value, the limit and a remedy.
Any exception that is not a :class:`CosmoflowError` is a bug and exits with 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar


class CosmoflowError(Exception):
    """Base of all errors that cosmoflow raises on purpose.

    Parameters
    ----------
    what : str
        The problem, in one sentence.
    where : str, optional
        The store, file, key or option concerned.
    value, limit : object, optional
        The offending value, and the expected value or range.
    remedy : str, optional
        How the user can fix the problem.
    """

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "error"

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        value: Any = None,
        limit: Any = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.value = value
        self.limit = limit
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments do not survive the default pickling, and these errors cross
        # process boundaries on their way back from Ray workers.
        return _rebuild, (type(self), self.what, self.details())

    def details(self) -> dict[str, Any]:
        """Return the named parts of the message, for machine-readable output."""
        return {
            "where": self.where,
            "value": self.value,
            "limit": self.limit,
            "remedy": self.remedy,
        }

    def __str__(self) -> str:
        lines = [self.what]
        for label, part in (
            ("where", self.where),
            ("found", self.value),
            ("expected", self.limit),
            ("remedy", self.remedy),
        ):
            if part is not None:
                lines.append(f"  {label + ':':<10}{part}")
        return "\n".join(lines)


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is closest to an unknown one, whatever the case of the letters.

    Parameters
    ----------
    name : str
        The unknown name.
    known : iterable of str
        Names to choose from.

    Returns
    -------
    str or None
        None if no name is close.
    """
    folded = dict[str, str]()
    for one in known:
        folded.setdefault(one.casefold(), one)
    near = difflib.get_close_matches(name.casefold(), folded, n=1)
    return folded[near[0]] if near else None


def suggest(name: str, known: Iterable[str], otherwise: str | None = None) -> str | None:
    """Return the remedy for an unknown name: the closest known one, if any is close.

    Parameters
    ----------
    name, known
        See :func:`closest`.
    otherwise : str, optional
        Remedy if none is close.
    """
    near = closest(name, known)
    return f"did you mean {near!r}?" if near else otherwise


def _rebuild(cls: type[CosmoflowError], what: str, details: dict[str, Any]) -> CosmoflowError:
    return cls(what, **details)


class ConfigError(CosmoflowError):
    """The command line or configuration is invalid (exit code 2)."""

    exit_code = 2
    kind = "config"


class UsageError(ConfigError, TypeError):
    """A command or function was called with invalid arguments."""

    kind = "usage"


class OutputExistsError(ConfigError):
    """The output exists, and neither ``--resume`` nor ``--overwrite`` was given."""

    kind = "output-exists"


class BusyError(ConfigError):
    """Another run is writing the output."""

    kind = "busy"


class DataError(CosmoflowError):
    """An input is invalid or damaged (exit code 3)."""

    exit_code = 3
    kind = "data"


class StorageError(CosmoflowError):
    """A store cannot be found, read or written (exit code 4)."""

    exit_code = 4
    kind = "storage"


class IncompleteError(CosmoflowError):
    """A run stopped early and can be continued with ``--resume`` (exit code 5)."""

    exit_code = 5
    kind = "incomplete"


class SupersededError(IncompleteError):
    """A run was suspended for so long that another run took over its output."""

    kind = "superseded"
