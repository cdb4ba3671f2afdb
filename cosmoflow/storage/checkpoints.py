"""The newest checkpoints of a training run; damaged ones are passed over."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from cosmoflow.errors import StorageError
from cosmoflow.storage.files import remove_file
from cosmoflow.storage.urls import join, list_names, read_bytes, write_bytes

_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder of checkpoints, files ``step-0000001000.ckpt`` that begin with their SHA-256.

    Parameters
    ----------
    keep : int
        How many of the newest checkpoints to keep.
    on_damage : callable
        Called with the URL of each damaged file that is passed over.
    """

    url: str
    keep: int
    on_damage: Callable[[str], None] | None = None

    def save(self, step: int, content: bytes) -> None:
        """Write a checkpoint, and delete all but the newest ``keep``."""
        write_bytes(self.url, _name(step), hashlib.sha256(content).digest() + content)
        for name in self._names()[: -self.keep]:
            remove_file(self.url, name)

    def newest(self) -> bytes | None:
        """Return the newest undamaged checkpoint, or None."""
        for name in reversed(self._names()):
            content = read_bytes(self.url, name)
            body = content[_DIGEST_BYTES:]
            if hashlib.sha256(body).digest() == content[:_DIGEST_BYTES]:
                return body
            if self.on_damage is not None:
                self.on_damage(join(self.url, name))
        return None

    def clear(self) -> None:
        """Delete every checkpoint."""
        for name in self._names():
            remove_file(self.url, name)

    def _names(self) -> list[str]:
        try:
            names = list_names(self.url)
        except StorageError:
            return []
        return sorted(name for name in names if name.startswith("step-") and name.endswith(".ckpt"))


def _name(step: int) -> str:
    return f"step-{step:010d}.ckpt"
