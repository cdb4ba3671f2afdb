"""What a worker does with a task of a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cosmoflow.engine.base import Resources
from cosmoflow.engine.buffers import return_freed_buffers, trim
from cosmoflow.engine.exchange.bucket import BucketScratch
from cosmoflow.engine.exchange.scratch import Scratch
from cosmoflow.engine.exchange.servers import on_this_node, this_node
from cosmoflow.engine.graph import Handout, Key
from cosmoflow.engine.stopping import Stop
from cosmoflow.engine.telemetry import watched
from cosmoflow.engine.threads import use_share


@dataclass(frozen=True, slots=True)
class Work:
    """Runs the tasks of one graph in a worker.

    Parameters
    ----------
    stop : Stop
        Set when the driver has given up.
    needs : Resources
        Resources of each task.
    scratch : Scratch or BucketScratch
        The place for parcels.
    """

    stop: Stop
    needs: Resources
    scratch: Scratch | BucketScratch

    def run(
        self,
        function: Callable[..., Any],
        key: Key,
        hands_on: bool,
        reads: Sequence[tuple[int | None, bool]],
        *sources: Any,
    ) -> Any:
        """Run a task; return its value, or its node and its value if it hands on parts."""
        self.stop.check()
        use_share(self.needs)
        return_freed_buffers()
        scratch = on_this_node(self.scratch)
        with watched(key[0], str(key)):
            columns = [
                _column(source, scratch, part, stream)
                for source, (part, stream) in zip(sources, reads, strict=True)
            ]
            result = function(key[1], *columns)
            if not hands_on:
                return result
            handout = Handout.of(result)
            # The folder is deleted once the driver has given up, and nothing may be left in it.
            self.stop.check()
            scratch.write(key, handout.parts, handout.value)
            value = handout.value
            # A task that kept freed buffers has left the parts among them.
            del result, handout, columns
            trim()
            return this_node(), value


def _column(source: Any, scratch: Scratch | BucketScratch, part: int | None, stream: bool) -> Any:
    """Return what a task reads: values, or parts of parcels."""
    if part is None:
        return source
    return source.stream(scratch, part) if stream else source.read(scratch, part)
