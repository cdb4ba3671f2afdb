"""Time painting beside the codes that one would use instead.

Usage: python benchmarks/bench_painting.py [PARTICLES PER AXIS] [CELLS PER AXIS ...]

Particles are displaced by 2LPT in a box of 2 Mpc/h a particle spacing, as the paper's fields would
see them, in Lagrangian order and shuffled. Pylians and abacusutils take part when they can be
imported (``PYTHONPATH``); all contestants are timed in turn in every round, so that a busy machine
is unfair to none, and the best round counts. Density and momentum are what is painted, four numbers
a cell: Pylians and abacusutils need four passes for it.

The floor is the memory traffic that cannot be avoided: 24 bytes are read for a particle and 16
written for a cell, at the bandwidth that a copy of large arrays reaches here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from _measure import make_particles
from numpy.typing import NDArray

from cosmoflow.numerics.blocks import Block
from cosmoflow.numerics.painting import paint_block

ROUNDS = 5
Floats = NDArray[np.float32]


class Contest:
    """Everybody paints the same particles onto arrays of their own liking.

    Parameters
    ----------
    x, v : (n, 3) float32
    cells : int
    box_size : float
    """

    def __init__(self, x: Floats, v: Floats, cells: int, box_size: float) -> None:
        self.x, self.v, self.cells, self.box_size = x, v, cells, box_size
        self.columns = [np.ascontiguousarray(v[:, axis]) for axis in range(3)]
        whole = Block((0, 0, 0), (cells,) * 3)
        few = [(x[:99], v[:99], None)]
        # Arrays are made once for all: pages that are touched for the first time cost everyone.
        self.out = paint_block(
            few, whole, cells, box_size, count=len(x), fields=("density", "momentum")
        )
        self.whole = whole

    def ours(
        self, threads: int, scheme: str = "cic", momentum: bool = True, shift: float = 0.0
    ) -> None:
        """Paint with this project's kernel."""
        numba.set_num_threads(threads)
        paint_block(
            [(self.x, self.v, None)], self.whole, self.cells, self.box_size, scheme,
            count=len(self.x), out=self.out, shift=shift,
            fields=("density", "momentum") if momentum else ("density",),
        )  # fmt: skip

    def pylians(self, momentum: bool = True, scheme: str = "CIC") -> None:
        """Paint with Pylians' MA, which has one thread."""
        import MAS_library

        MAS_library.MA(self.x, self.out["density"], self.box_size, scheme)
        for axis in range(3 if momentum else 0):
            MAS_library.MA(
                self.x, self.out["momentum"][axis], self.box_size, scheme, W=self.columns[axis]
            )

    def abacus(self, momentum: bool = True) -> None:
        """Paint with abacusutils' parallel TSC, on two threads."""
        from abacusnbody.analysis.tsc import tsc_parallel

        fields: list[tuple[Floats, Any]] = [(self.out["density"], None)]
        fields += [(self.out["momentum"][axis], self.columns[axis]) for axis in range(3)]
        for field, weights in fields if momentum else fields[:1]:
            tsc_parallel(self.x, field, self.box_size, weights=weights, nthread=2)

    def bincount(self) -> None:
        """Paint with NumPy's bincount, cell by cell of the cloud."""
        n = self.cells
        u = self.x * np.float32(n / self.box_size) - np.float32(0.5)
        low = np.floor(u)
        f, low = u - low, low.astype(np.int64)
        for a, b, c in np.ndindex(2, 2, 2):
            i, j, k = ((low[:, axis] + d) % n for axis, d in enumerate((a, b, c)))
            w = np.ones(len(u), np.float32)
            for axis, d in enumerate((a, b, c)):
                w *= f[:, axis] if d else 1.0 - f[:, axis]
            index = (i * n + j) * n + k
            for weight in (w, *(w * column for column in self.columns)):
                np.bincount(index, weight, minlength=n**3)

    def contestants(self) -> dict[str, Callable[[], None]]:
        """Return who takes part."""
        runs: dict[str, Callable[[], None]] = {
            "cosmoflow CIC, 1 thread": lambda: self.ours(1),
            "cosmoflow CIC, 2 threads": lambda: self.ours(2),
            "cosmoflow TSC, 2 threads": lambda: self.ours(2, "tsc"),
            "cosmoflow PCS, 2 threads": lambda: self.ours(2, "pcs"),
            "cosmoflow CIC, density, 1 thread": lambda: self.ours(1, momentum=False),
            "cosmoflow CIC, density, 2 threads": lambda: self.ours(2, momentum=False),
        }
        others: dict[str, Callable[[], None]] = {
            "Pylians CIC, 1 thread": self.pylians,
            "Pylians CIC, density, 1 thread": lambda: self.pylians(False),
            "abacusutils TSC, 2 threads": self.abacus,
            "abacusutils TSC, density, 2 threads": lambda: self.abacus(False),
        }
        for name, run in others.items():
            try:
                run()
            except ImportError as error:
                print(f"{name} does not take part: {error}")
            else:
                runs[name] = run
        return runs


def race(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the best time of each, s."""
    best = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        run()  # compiles
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def bandwidth(threads: int) -> float:
    """Return bytes read and written a second by a copy of arrays larger than the caches."""
    source, target = np.ones(1 << 26, np.float32), np.zeros(1 << 26, np.float32)

    @numba.njit(parallel=True)  # type: ignore[untyped-decorator]
    def copy(a, b):  # type: ignore[no-untyped-def]
        for i in numba.prange(a.shape[0]):
            b[i] = a[i]

    numba.set_num_threads(threads)
    seconds = race({"copy": lambda: copy(source, target)}, ROUNDS)["copy"]
    return 2.0 * source.nbytes / seconds


def agree(contest: Contest) -> None:
    """Compare our fields with Pylians', cell by cell.

    Pylians has a cell's centre where others have its lower corner: half a cell further on.
    """
    per_cell = contest.cells**3 / len(contest.x)
    for scheme in ("ngp", "cic", "tsc", "pcs"):
        contest.ours(2, scheme, shift=0.5)
        ours = {name: field.copy() for name, field in contest.out.items()}
        for field in contest.out.values():
            field.fill(0.0)  # MA adds
        try:
            contest.pylians(scheme=scheme.upper())
        except ImportError:
            return
        for name, field in ours.items():
            error = np.abs(contest.out[name] * per_cell - field).max() / np.abs(field).max()
            print(f"largest difference from Pylians' {scheme} {name}: {error:.1e} of its maximum")


def main() -> None:
    """Run the contest on the grids that the arguments give."""
    per_axis, *grids = [int(a) for a in sys.argv[1:]] or [256]
    box_size = 2.0 * per_axis
    x, v = make_particles(per_axis, box_size)
    order = np.random.default_rng(1).permutation(len(x))
    speed = {threads: bandwidth(threads) for threads in (1, 2)}
    print(f"copy: {speed[1] / 1e9:.1f} GB/s on one thread, {speed[2] / 1e9:.1f} on two")
    for cells in grids or [256, 512]:
        for name, rows in (("ordered", slice(None)), ("shuffled", order)):
            contest = Contest(x[rows], v[rows], cells, box_size)
            if name == "ordered":
                agree(contest)
            runs = contest.contestants()
            times = race(runs, ROUNDS)
            times |= race({"bincount": contest.bincount}, 1)
            moved = 24 * len(x) + 16 * cells**3
            for who, seconds in sorted(times.items(), key=lambda item: item[1]):
                rate = len(x) / seconds / 1e6
                print(f"{per_axis}^3 on {cells}^3 {name}: {who}: {rate:.1f} Mpart/s", flush=True)
            floor = moved / speed[2]
            ours = times["cosmoflow CIC, 2 threads"]
            print(f"floor {floor * 1e3:.0f} ms, 2 threads took {ours / floor:.1f} times that")
            if (peer := times.get("Pylians CIC, 1 thread")) is not None:
                print(
                    f"{peer / ours:.1f} times Pylians' rate, on one thread "
                    f"{peer / times['cosmoflow CIC, 1 thread']:.1f} times"
                )


if __name__ == "__main__":
    main()
