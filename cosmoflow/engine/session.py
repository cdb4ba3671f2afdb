"""The choice of the engine of a stage; Ray is kept running between stages."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cosmoflow.config.settings import EngineConfig
from cosmoflow.engine.base import Engine
from cosmoflow.engine.memory import FREE_SHARE, available_memory
from cosmoflow.engine.serial import SerialEngine
from cosmoflow.engine.threads import hide_gpus

if TYPE_CHECKING:
    from cosmoflow.engine.on_ray import RayEngine

SERIAL_SECONDS = 30.0
"""Work below this many CPU seconds is done in this process: starting Ray takes 5 to 8 s."""


class Session:
    """Provides engines; Ray is started when first needed and runs until the session closes.

    Parameters
    ----------
    config : EngineConfig
        Settings of the engine.

    Attributes
    ----------
    notify : callable
        Called with messages about the cluster for the user. Does nothing until it is set.
    explain : callable
        Called with details that only a user who asks for more needs. Does nothing until it is set.
    """

    def __init__(self, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()
        self.notify: Callable[[str], None] = lambda text: None
        self.explain: Callable[[str], None] = lambda text: None
        self._ray: RayEngine | None = None

    def engine(self, cpu_seconds: float, *, workers: int = 1, memory: int = 0) -> Engine:
        """Return the engine for a job.

        Parameters
        ----------
        cpu_seconds : float
            Rough cost of the job.
        workers : int
            Number of processes that it needs.
        memory : int
            Bytes that it needs if everything runs in this process.
        """
        if not self.wants_ray(cpu_seconds, workers=workers, memory=memory):
            if self.config.gpus is False:
                hide_gpus()
            return SerialEngine()
        if self._ray is None:
            from cosmoflow.engine.on_ray import RayEngine

            if self.config.address is None:
                self.notify("starting Ray")
            self._ray = RayEngine(self.config, self._notify, self.explain)
        return self._ray

    def _notify(self, text: str) -> None:
        self.notify(text)

    def wants_ray(self, cpu_seconds: float, *, workers: int = 1, memory: int = 0) -> bool:
        """Return whether :meth:`engine` runs a job on Ray rather than in this process."""
        if self.config.choice != "auto":
            return self.config.choice == "ray"
        if self._ray is not None or self.config.address is not None or workers > 1:
            return True
        # On Ray, tasks hand on files.
        room = self.config.memory or FREE_SHARE * available_memory()
        return cpu_seconds > SERIAL_SECONDS or memory > room

    def close(self) -> None:
        """Stop Ray if this session has started it."""
        if self._ray is not None:
            self._ray.close()
            self._ray = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
