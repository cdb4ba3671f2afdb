"""Waiting for Ray without lending the cores of a task."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def wait_aside(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call a function of Ray that waits, such as ``ray.get``, in a thread of its own.

    While the main thread of a task waits for Ray, Ray lends the task's cores to another one. Then
    more tasks run than there are cores, and Ray starts worker processes for them.
    """
    found: Future[T] = Future()

    def wait() -> None:
        try:
            found.set_result(call(*arguments, **options))
        except BaseException as error:
            found.set_exception(error)

    # A daemon: a process that ends does not wait for it.
    threading.Thread(target=wait, name="waits for Ray", daemon=True).start()
    return found.result()
