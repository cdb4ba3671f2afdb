"""The newest few checkpoints of a training run, each whole or not counted."""

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
    """Keeps checkpoints as files ``step-00001000.ckpt`` that begin with their own SHA-256.

    Parameters
    ----------
    url : str
        The folder.
    keep : int
        How many of the newest to keep.
    on_damage : callable
        Hears of a file that is not whole and is passed over.
    """

    url: str
    keep: int
    on_damage: Callable[[str], None] | None = None

    def save(self, step: int, content: bytes) -> None:
        """Keep a checkpoint and drop the oldest beyond ``keep``."""
        write_bytes(self.url, _name(step), hashlib.sha256(content).digest() + content)
        for name in self._names()[: -self.keep]:
            remove_file(self.url, name)

    def newest(self) -> bytes | None:
        """Return the newest checkpoint that is whole, or None."""
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
