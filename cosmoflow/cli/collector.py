"""Python's garbage collector, which rests while a command starts and ends.

Importing torch makes half a million objects that live as long as the process. Looking for garbage
among them again and again takes a third of the time of the import.
"""

from __future__ import annotations

import gc


def rest_collector() -> None:
    """Stop collecting until :func:`wake_collector` is called."""
    gc.disable()


def wake_collector() -> None:
    """Collect again, but never look at the objects that there are now."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def dismiss_collector() -> None:
    """Spare the interpreter, which is about to exit, its search for garbage."""
    gc.disable()
    gc.freeze()
