"""Messages from tasks on Ray to the driver, while they run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError

POLL_SECONDS = 0.5


class _Mailbox:
    """Keeps messages until the driver takes them."""

    def __init__(self) -> None:
        self._messages: list[Any] = []

    def put(self, message: Any) -> None:
        self._messages.append(message)

    def take(self) -> list[Any]:
        taken, self._messages = self._messages, []
        return taken


class _Sender:
    """What a task holds. Sending waits until the message is kept: none is lost at the end."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def __call__(self, message: Any) -> None:
        # A mailbox that went down with its node costs the messages, not the task.
        with suppress(RayError):
            ray.get(self._mailbox.put.remote(message))


def beside_driver(kind: type) -> Any:
    """Start an actor on this process's node: it lives and dies with whom it serves."""
    node = ray.get_runtime_context().get_node_id()
    return ray.remote(num_cpus=0, label_selector={"ray.io/node-id": node})(kind).remote()


@contextmanager
def open_channel(on_message: Callable[[Any], None]) -> Iterator[Callable[[Any], None]]:
    """Yield a picklable function that sends its argument to ``on_message`` in this process.

    Messages arrive in a thread of their own, those of one task in their order, and all that were
    sent before the channel closes.
    """
    mailbox = beside_driver(_Mailbox)
    finished = threading.Event()
    listener = threading.Thread(target=_deliver, args=(mailbox, on_message, finished), daemon=True)
    listener.start()
    try:
        yield _Sender(mailbox)
    finally:
        finished.set()
        listener.join()
        ray.kill(mailbox)


def _deliver(mailbox: Any, on_message: Callable[[Any], None], finished: threading.Event) -> None:
    last = False
    while not last:
        last = finished.wait(POLL_SECONDS)
        try:
            messages = ray.get(mailbox.take.remote())
        except RayError:
            # The cluster is gone; whoever waits for the tasks says so.
            return
        for message in messages:
            on_message(message)
