"""Measuring what a report tells: tasks over the stores, and the sums that they add up to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from cosmoflow.engine import Engine
from cosmoflow.numerics.blocks import grid_blocks
from cosmoflow.numerics.comparison import QUANTITIES, Comparison, Measured
from cosmoflow.numerics.comparison.blocks import BlockSum, coarse_cells
from cosmoflow.numerics.comparison.coarse import CoarseSum
from cosmoflow.numerics.comparison.readers import Array
from cosmoflow.numerics.comparison.result import find_patch
from cosmoflow.numerics.comparison.slices import plane_cells
from cosmoflow.numerics.spectra import WINDOWS, PowerSum
from cosmoflow.stages.evaluate.inputs import Inputs
from cosmoflow.stages.evaluate.linear import linear_methods
from cosmoflow.stages.evaluate.plan import Cut
from cosmoflow.stages.evaluate.tasks import (
    BlockTask,
    PatchTask,
    PlaneTask,
    SubboxTask,
    Task,
    Worker,
    mean_momentum,
    run_tasks,
)
from cosmoflow.stages.inputs.expansion import growth_rate_hubble
from cosmoflow.stages.inputs.readers import Method, painted_scheme
from cosmoflow.stages.run import Progress, Run
from cosmoflow.stages.slabs.plan import Grid
from cosmoflow.stages.spectra import measure_power
from cosmoflow.storage.claims import Claim


@dataclass
class Totals:
    """What the tasks have added up to so far.

    Parameters
    ----------
    cells : BlockSum
        Over all cells.
    plane : CoarseSum
        Over the slice.
    patch : dict
        By the truth and method.
    subboxes : list
        Of every sub-box.
    """

    cells: BlockSum
    plane: CoarseSum
    patch: dict[str, dict[str, Array]] = field(default_factory=dict)
    subboxes: list[Mapping[str, PowerSum]] = field(default_factory=list)

    def take(self, task: Task, found: Any) -> None:
        """Add what a task found; the tasks come in their order."""
        match task:
            case BlockTask():
                self.cells = self.cells.add(found)
            case SubboxTask():
                self.subboxes.append(found)
            case PlaneTask():
                self.plane.add(found)
            case PatchTask(name):
                self.patch[name] = found


def measure(
    inputs: Inputs, out: str, cut: Cut, engine: Engine, run: Run, claim: Claim
) -> Comparison:
    """Compare the stores.

    Parameters
    ----------
    inputs : Inputs
        The stores.
    out : str
        URL of the folder in which linear theory is kept for the while.
    cut : Cut
        The tasks.
    engine : Engine
        What they run on.
    run : Run
        Settings, progress.
    claim : Claim
        On the folder.

    Raises
    ------
    DataError
        A field is damaged or holds values that are not finite.
    """
    true, radii = inputs.true, run.settings.evaluate.smoothing
    # Before anything is measured: a store that says nonsense is refused at once.
    scheme = painted_scheme(true)
    grid, size = true.grid, inputs.box_size
    with linear_methods(true, radii, out, run, claim) as linear:
        own = [_with_background(method, cut, engine) for method in inputs.methods]
        readers = inputs.readers([*own, *linear])
        names = tuple(readers)
        make_worker = partial(Worker, readers, growth_rate_hubble(true.metadata))
        total = Totals(
            BlockSum.zero(names, coarse_cells(grid, size)),
            CoarseSum.zero(1 + 3 * len(names), plane_cells(grid), axes=2),
        )
        count = cut.count_tasks(len(names), size)
        progress = Progress(run.listener, "evaluate", count, "tasks", claim=claim)

        def run_all(tasks: list[Task]) -> None:
            run_tasks(engine, make_worker, tasks, total.take, progress.advance, cut.memory)

        run_all(cut.first_tasks())
        run_all(cut.last_tasks(find_patch(total.cells, grid, size), names))
        window = WINDOWS[scheme] if scheme is not None else 0
        box = measure_power(
            readers, QUANTITIES, Grid.of(true), run, window=window, check=claim.check
        )
    claim.check()
    return Measured(
        grid, size, names[1:], total.cells, total.plane, total.patch, total.subboxes, box, scheme
    ).comparison()


def _with_background(method: Method, cut: Cut, engine: Engine) -> Method:
    """Find the mean momentum of a prediction that holds no velocity."""
    if method.variable != "momentum":
        return method
    blocks = grid_blocks(cut.grid, cut.block)
    return replace(method, background=mean_momentum(engine, method, blocks, cut.memory))
