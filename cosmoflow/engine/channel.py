"""Messages from tasks on Ray to the driver, while they run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError

from cosmoflow.engine.waiting import wait_aside

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
    """The sending end, in a task. It returns when the message has arrived, so none is lost."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def __call__(self, message: Any) -> None:
        # If the mailbox has died with its node, messages are lost but the task goes on.
        with suppress(RayError):
            wait_aside(ray.get, self._mailbox.put.remote(message))


def beside_driver(kind: type) -> Any:
    """Start an actor on the node of this process, so that they live and die together."""
    node = ray.get_runtime_context().get_node_id()
    return ray.remote(num_cpus=0, label_selector={"ray.io/node-id": node})(kind).remote()


@contextmanager
def open_channel(on_message: Callable[[Any], None]) -> Iterator[Callable[[Any], None]]:
    """Yield a picklable function that sends its argument to ``on_message`` in this process.

    ``on_message`` is called in a separate thread. The messages of one task arrive in their order.
    All messages arrive that were sent before the channel closes.
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
            # The cluster is gone; waiting for the tasks raises the error.
            return
        for message in messages:
            on_message(message)
