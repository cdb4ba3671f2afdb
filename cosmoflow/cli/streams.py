"""Standard streams that never end a run.

The terminal's encoding may lack printed characters, the reader of a pipe may have closed it
(``| head``), or the disk may be full. None of these may end hours of work.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

_ESCAPES = "cosmoflow.escapes"
"""Name of the rule for characters that an encoding lacks."""


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return what to write in place of characters that cannot be encoded, and where to go on."""
    for rule in ("surrogateescape", "backslashreplace"):
        with suppress(UnicodeError):
            return codecs.lookup_error(rule)(error)
    raise error


codecs.register_error(_ESCAPES, _escape)


class Outlet:
    """A text stream whose writes raise nothing.

    After a write has failed, this one and all later ones are discarded.

    Parameters
    ----------
    stream : text file
        Where the text goes.

    Attributes
    ----------
    failure : OSError or None
        First exception of the stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write some text."""
        if self.failure is None:
            try:
                self._stream.write(text)
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        if self.failure is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.failure = error
        # The rest of the stream's buffer would raise again when the interpreter flushes it.
        with suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def steady_streams() -> Iterator[Outlet]:
    r"""Let nothing that is printed raise; yield standard output.

    Characters that an encoding lacks are written as escapes such as ``\xb3``, and names of files
    that are no text as the bytes that they are.
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
    """Return a stream that encodes anything; one to nowhere where there is none."""
    if stream is None:
        return Path(os.devnull).open("w")
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=_ESCAPES)
    return cast(TextIO, stream)


def has_gone(failure: OSError) -> bool:
    """Return whether a stream failed because its reader has closed it."""
    return failure.errno == errno.EPIPE


def open_descriptors() -> None:
    """Open standard descriptors that are closed (``>&-``) to nowhere.

    The next file that is opened would have such a number, and get what libraries print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
