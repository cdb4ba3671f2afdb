"""Exceptions with stable exit codes.

Every error that the user can mend says what is wrong, where, which value, which limit, and what to
do about it. Anything that is not a :class:`CosmoflowError` is a bug and exits with 1.
"""

from __future__ import annotations

from typing import Any, ClassVar


class CosmoflowError(Exception):
    """Base of all errors that cosmoflow raises on purpose.

    Parameters
    ----------
    what : str
        One sentence naming the problem.
    where : str, optional
        The store, file, key or option concerned.
    value, limit : object, optional
        The offending value and what it should have been.
    remedy : str, optional
        How to mend it.
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


def _rebuild(cls: type[CosmoflowError], what: str, details: dict[str, Any]) -> CosmoflowError:
    return cls(what, **details)


class ConfigError(CosmoflowError):
    """A command line or configuration that cannot be run (exit code 2)."""

    exit_code = 2
    kind = "config"


class UsageError(ConfigError, TypeError):
    """A command or function that was called with arguments that it does not have."""

    kind = "usage"


class OutputExistsError(ConfigError):
    """The output is there already and neither ``--resume`` nor ``--overwrite`` was given."""

    kind = "output-exists"


class BusyError(ConfigError):
    """Another run is writing the output."""

    kind = "busy"


class DataError(CosmoflowError):
    """An input that is not what it claims to be (exit code 3)."""

    exit_code = 3
    kind = "data"


class StorageError(CosmoflowError):
    """A store that cannot be found, read or written (exit code 4)."""

    exit_code = 4
    kind = "storage"


class IncompleteError(CosmoflowError):
    """A run that stopped before its end and can be continued with ``--resume`` (exit code 5)."""

    exit_code = 5
    kind = "incomplete"


class SupersededError(IncompleteError):
    """A run that slept for so long that another one has taken over its output."""

    kind = "superseded"
