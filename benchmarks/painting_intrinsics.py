"""What painting gains by its hand-written vector instructions, over plain numba.

Usage: python benchmarks/painting_intrinsics.py [PARTICLES PER AXIS]

Two processes paint the same particles by CIC on one thread, in turn: one as the package does, one
with every vector operation of :mod:`cosmoflow.numerics.painting.vectors` replaced by a plain loop.
The best CPU time of each counts, so that other work on the machine is unfair to neither. Both must
paint the same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

ROUNDS, REPEATS = 2, 5


def replace_vectors() -> None:
    """Put plain functions in the place of the intrinsics that move numbers."""
    from numba import njit, types
    from numba.extending import overload

    from cosmoflow.numerics.painting import tiles

    lines, cells = tiles.LINE, tiles.UNPACKED

    @njit(inline="always")
    def add(grid, start, step_x, step_y, amounts, wx, wy, wz, bits):  # type: ignore[no-untyped-def]
        for i in range(len(wx)):
            for j in range(len(wy)):
                at = start + step_x * i + step_y * j
                for k in range(len(wz)):
                    for c in range(len(amounts)):
                        own = np.int64(np.rint(((amounts[c] * wx[i]) * wy[j]) * wz[k]))
                        grid[np.uint64(at + k * len(amounts) + c)] += own << bits

    def spread(*arguments: Any) -> None:
        """Stands for what numba compiles in its place."""

    @overload(spread, inline="always")
    def _(grid, start, step_x, step_y, amounts, wx, wy, wz, shift):  # type: ignore[no-untyped-def]
        if isinstance(shift, types.NoneType):
            return lambda grid, start, step_x, step_y, amounts, wx, wy, wz, shift: add(
                grid, start, step_x, step_y, amounts, wx, wy, wz, 0
            )

        def add_shifted(grid, start, step_x, step_y, amounts, wx, wy, wz, shift):  # type: ignore[no-untyped-def]
            add(grid, start, step_x, step_y, amounts, wx, wy, wz, shift)

        return add_shifted

    @njit(inline="always")
    def unpack(sums, start, room, at):  # type: ignore[no-untyped-def]
        for k in range(cells):
            for c in range(len(room)):
                room[c][np.uint64(at + k)] = np.float64(sums[np.uint64(start + k * len(room) + c)])

    @njit(inline="always")
    def stream(source, first, factor, target, at):  # type: ignore[no-untyped-def]
        for k in range(lines):
            target[np.uint64(at + k)] = np.float32(source[first + k] * factor)

    @njit(inline="always")
    def finish_streams():  # type: ignore[no-untyped-def]
        pass

    @njit(inline="always")
    def prefetch(start, index):  # type: ignore[no-untyped-def]
        pass

    tiles.spread, tiles.unpack, tiles.stream = spread, unpack, stream
    tiles.finish_streams, tiles.prefetch = finish_streams, prefetch


def measure(per_axis: int, *, plain: bool) -> dict[str, Any]:
    """Return the best CPU time of each painting, s, and a digest of all fields."""
    if plain:
        replace_vectors()
    import numba
    from _measure import make_particles

    from cosmoflow.numerics.blocks import Block
    from cosmoflow.numerics.painting import paint_block

    numba.set_num_threads(1)
    box_size = 2.0 * per_axis
    x, v = make_particles(per_axis, box_size)
    masses = np.random.default_rng(0).lognormal(0.0, 0.3, len(x))
    whole, digest, best = Block((0, 0, 0), (per_axis,) * 3), hashlib.sha256(), {}
    cases: dict[str, tuple[Any, tuple[str, ...]]] = {
        "density": (None, ("density",)),
        "density and momentum": (None, ("density", "momentum")),
        "both, by mass": (masses, ("density", "momentum")),
    }
    for name, (mass, fields) in cases.items():
        how: dict[str, Any] = {"count": len(x), "fields": fields}
        out = paint_block([(x, v, mass)], whole, per_axis, box_size, "cic", **how)
        for field in out.values():
            digest.update(field.tobytes())
        seconds = []
        for _ in range(REPEATS):
            start = time.thread_time()
            paint_block([(x, v, mass)], whole, per_axis, box_size, "cic", out=out, **how)
            seconds.append(time.thread_time() - start)
        best[name] = min(seconds)
    return {"seconds": best, "digest": digest.hexdigest()}


def main() -> None:
    """Compare, or be one of those compared."""
    per_axis = int(sys.argv[1]) if len(sys.argv) > 1 else 128
    if (kind := os.environ.get("CONTESTANT")) is not None:
        print(json.dumps(measure(per_axis, plain=kind == "plain")))
        return
    found: dict[str, list[dict[str, Any]]] = {"intrinsics": [], "plain": []}
    # Compiled functions are kept apart: both have the same source.
    folders = {kind: tempfile.mkdtemp(prefix=f"numba-{kind}-") for kind in found}
    for _ in range(ROUNDS):
        for kind, results in found.items():
            environment = {**os.environ, "CONTESTANT": kind, "NUMBA_CACHE_DIR": folders[kind]}
            child = [sys.executable, __file__, str(per_axis)]
            out = subprocess.run(child, env=environment, capture_output=True, text=True, check=True)
            results.append(json.loads(out.stdout.splitlines()[-1]))
    digests = {one["digest"] for results in found.values() for one in results}
    print(f"{per_axis}^3 particles on as many cells; the same bits: {len(digests) == 1}")
    for name in found["plain"][0]["seconds"]:
        best = {
            kind: min(one["seconds"][name] for one in results) for kind, results in found.items()
        }
        ratio = best["plain"] / best["intrinsics"]
        print(f"{name}: {1e3 * best['intrinsics']:.1f} ms, plain {ratio:.2f} times that")


if __name__ == "__main__":
    main()
