"""Standard streams whose failures never end a run.

Printed text may contain characters that the terminal's encoding lacks, the reader of a pipe may
close it (``| head``), and a disk may be full. None of these failures may cost hours of work.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

_ESCAPES = "cosmoflow.escapes"
"""Name of the error handler for characters that an encoding lacks."""


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return the replacement of characters that cannot be encoded, and where to continue."""
    for rule in ("surrogateescape", "backslashreplace"):
        with suppress(UnicodeError):
            return codecs.lookup_error(rule)(error)
    raise error


codecs.register_error(_ESCAPES, _escape)


class Outlet:
    """A text stream whose writes never raise.

    If a write fails, the stream discards its text and that of all later writes.

    Parameters
    ----------
    stream : text file
        Stream to write to.

    Attributes
    ----------
    failure : OSError or None
        First error of the stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write text."""
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[..., object], *arguments: str) -> None:
        if self.failure is not None:
            return
        try:
            action(*arguments)
        except OSError as error:
            self.failure = error
            # Otherwise the stream's buffer would raise again when the interpreter flushes it.
            with suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def steady_streams() -> Iterator[Outlet]:
    r"""Replace standard output and error by streams that never raise; yield standard output.

    Characters that an encoding lacks are written as escapes such as ``\xb3``, and file names that
    are not valid text as their raw bytes.
    """
    before = sys.stdout, sys.stderr
    out, err = (Outlet(_lenient(stream)) for stream in before)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def _lenient(stream: Any) -> TextIO:
    """Return a stream that can encode any text; the null device if there is no stream."""
    if stream is None:
        return Path(os.devnull).open("w")
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=_ESCAPES)
    return cast(TextIO, stream)


def has_gone(failure: OSError) -> bool:
    """Check whether a stream failed because its reader closed the pipe."""
    return failure.errno == errno.EPIPE


def open_descriptors() -> None:
    """Open closed standard descriptors (``>&-``) on the null device.

    Otherwise the next opened file would get the number of a closed descriptor, and libraries would
    print into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
