"""Digests of what a fixed set of small runs writes: they show that new code changes no bit.

    python benchmarks/digests.py --out before.json     # on the old code
    python benchmarks/digests.py --out after.json      # on the new
    python benchmarks/digests.py --compare before.json after.json

Every command runs in this process, and most of them on Ray as well. The script uses the public
functions alone, so it works on any version of the package. It digests every array of a zarr store
as it is decoded, with dtype and shape; the attributes, but for provenance, which has versions and
times; every weight of a model; the numbers of a report; and plans, in a section of their own,
because a change of the costs changes them.

The digests depend on the machine (vector instructions, number of threads): compare those of one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import zarr
from safetensors.numpy import load_file

# The package of this checkout, also in the workers of Ray, wherever another one is installed.
ROOT = str(Path(__file__).parents[1])
sys.path.insert(0, ROOT)
os.environ["PYTHONPATH"] = ROOT

import cosmoflow  # noqa: E402

VARYING = {"provenance", "prediction_provenance", "created", "versions", "made_from"}
"""Attributes with times, versions or paths."""
TABLES = {"metrics.json"}


def digest(value: Any) -> str:
    """Return a short SHA-256 of an array or of JSON."""
    if isinstance(value, np.ndarray):
        data = f"{value.dtype} {value.shape} ".encode() + np.ascontiguousarray(value).tobytes()
    else:
        data = json.dumps(value, sort_keys=True, default=str).encode()
    return hashlib.sha256(data).hexdigest()[:20]


def digest_group(group: zarr.Group) -> dict[str, str]:
    """Return digests of all arrays and attributes of a zarr group."""
    found = {
        f"@{name}": digest(value) for name, value in group.attrs.items() if name not in VARYING
    }
    for name, array in sorted(group.arrays()):
        found[name] = digest(np.asarray(array[...]))
        found[f"{name}@"] = digest({k: v for k, v in array.attrs.items() if k not in VARYING})
    for name, inner in sorted(group.groups()):
        found |= {f"{name}/{key}": value for key, value in digest_group(inner).items()}
    return found


def digest_output(path: Path) -> dict[str, str]:
    """Return the digests of a store, a set of stores, a model or a report."""
    if (path / "zarr.json").exists():
        return digest_group(zarr.open_group(path, mode="r"))
    found: dict[str, str] = {}
    for child in sorted(path.iterdir()):
        if child.is_dir() and (child / "zarr.json").exists():
            found |= {f"{child.name}/{key}": value for key, value in digest_output(child).items()}
        elif child.suffix == ".safetensors":
            found |= {key: digest(value) for key, value in load_file(child).items()}
        elif child.name in TABLES:
            content = json.loads(child.read_text())
            found[child.name] = digest(lasting(content, str(path.parent)))
    return found


def lasting(value: Any, folder: str, *, varying: set[str] = VARYING) -> Any:
    """Return JSON without what differs between runs: paths, and the keys named, at any depth."""

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: one for name, one in pairs if name not in varying}

    text = json.dumps(value, default=str).replace(folder, "")
    return json.loads(text, object_pairs_hook=keep)


def runs(folder: Path, engine: str) -> dict[str, Callable[[], Any]]:
    """Return the runs by name; each writes ``folder / name``, and later ones read earlier ones."""

    def at(name: str) -> str:
        return str(folder / name)

    how: dict[str, Any] = {"engine": engine, "overwrite": True, "progress": False}
    box: dict[str, Any] = {"box_size": 128.0, "particles": 64, "steps": 5}
    tiny: dict[str, Any] = {"steps": 4, "batch": 2, "validate_every": 2, "checkpoint_every": 2}
    # A keyword would be the first argument.
    also = {"infer": {"fields": ["divergence", "vorticity"]}}
    all_fields = ("density", "momentum", "velocity")
    derived = ["momentum", "divergence", "vorticity", "velocity_shear"]
    smoothed = ["smoothed_density", "smoothed_velocity", "smoothed_divergence"]
    smoothed += ["smoothed_velocity_shear"]
    c = cosmoflow
    found: dict[str, Callable[[], Any]] = {
        "boxes": lambda: c.simulate(at("boxes"), seed=3, count=2, **box, **how),
        "lpt": lambda: c.simulate(
            at("lpt"), method="2lpt", fixed_amplitude=True, box_size=64.0, particles=32, **how
        ),
        "snapshot": lambda: c.convert(write_snapshot(folder), at("snapshot"), **how),
        "fields": lambda: c.paint(
            box_of(folder, 0), at("fields"), grid=64, fields=all_fields, shard=32, chunk=16, **how
        ),
        "held": lambda: c.paint(box_of(folder, 1), at("held"), grid=64, shard=32, **how),
        "tsc": lambda: c.paint(
            box_of(folder, 0), at("tsc"), grid=48, scheme="tsc", interlaced=True, shard=24, **how
        ),
        "space": lambda: c.paint(
            box_of(folder, 0),
            at("space"),
            grid=40,
            scheme="pcs",
            redshift_space="z",
            fill="nearest",
            **how,
        ),
        "ngp": lambda: c.paint(at("snapshot"), at("ngp"), grid=32, scheme="ngp", **how),
        "derived": lambda: c.derive(at("fields"), at("derived"), derived, **how),
        "spectral": lambda: c.derive(
            at("fields"),
            at("spectral"),
            [*derived[1:], *smoothed],
            method="spectral",
            smoothing=4.0,
            **how,
        ),
        "differences": lambda: c.derive(
            at("fields"), at("differences"), smoothed, smoothing=4.0, **how
        ),
        "linear": lambda: c.infer(at("fields"), at("linear"), "linear:4", settings=also, **how),
        "shipped": lambda: c.infer(
            at("fields"), at("shipped"), settings=also, shard=32, tile=16, **how
        ),
        "region": lambda: c.infer(
            at("fields"),
            at("region"),
            region=((10, 70), (0, 64), (90, 128)),
            symmetries=2,
            **how,
        ),
        "tiny": lambda: c.train(
            [at("fields"), at("held")],
            at("tiny"),
            model="residual-tiny",
            seed=5,
            crop=16,
            **tiny,
            **how,
        ),
        "momentum": lambda: c.train(
            [at("fields"), at("held")],
            at("momentum"),
            model="paper-narrow",
            target="momentum",
            **tiny,
            **how,
        ),
        "other": lambda: c.train(
            [at("fields"), at("held")],
            at("other"),
            model="residual-tiny",
            seed=6,
            crop=16,
            **tiny,
            **how,
        ),
        "mine": lambda: c.infer(at("held"), at("mine"), at("tiny"), **how),
        "flux": lambda: c.infer(
            at("held"), at("flux"), at("momentum"), overlap=2, region=((0, 60),) * 3, **how
        ),
        "ensemble": lambda: c.infer(
            at("held"), at("ensemble"), [at("tiny"), at("other")], spread=True, **how
        ),
        "report": lambda: c.evaluate(at("held"), at("mine"), at("report"), subbox=60.0, **how),
        "power": lambda: c.spectra(at("fields"), at("power"), "density", bins="log", **how),
        "moments": lambda: c.spectra(
            at("fields"), at("moments"), "velocity", multipoles="z", **how
        ),
        "cross": lambda: c.spectra(
            at("held"), at("cross"), "divergence", cross_fields=at("mine"), **how
        ),
        "subboxes": lambda: c.spectra(at("fields"), at("subboxes"), "density", subbox=60.0, **how),
    }
    if engine == "serial":
        found |= {
            "cube": lambda: c.import_fields(
                write_cube(folder), at("cube"), box_size=160.0, redshift=0.0, quantity="delta",
                paint={"shard": 40, "chunk": 20}, **how,
            ),
            "slabs": lambda: without_memory(
                lambda: c.infer(at("cube"), at("slabs"), "linear:4", **how)
            ),
            "wiener": lambda: without_memory(
                lambda: c.infer(at("cube"), at("wiener"), region=((0, 40),) * 3, **how)
            ),
            "thin": lambda: without_memory(
                lambda: c.derive(
                    at("fields"), at("thin"), [*derived[1:], *smoothed], method="spectral",
                    smoothing=6.0, **how,
                )
            ),
        }  # fmt: skip
    return found


def without_memory(call: Callable[[], Any]) -> Any:
    """Run something as if no memory were free for transforms of a whole box: they go by slabs."""
    places = [one for one in list(sys.modules.values()) if hasattr(one, "FREE_SHARE")]
    assert places, "nothing has FREE_SHARE: the run would stay in memory"
    kept = [one.FREE_SHARE for one in places]
    for one in places:
        one.FREE_SHARE = 0.0
    try:
        return call()
    finally:
        for one, share in zip(places, kept, strict=True):
            one.FREE_SHARE = share


RAY: tuple[str, ...] = (
    "boxes", "fields", "held", "tsc", "derived", "spectral", "shipped", "tiny", "mine", "report",
    "power", "cross", "subboxes",
)  # fmt: skip
"""Runs that are repeated on Ray."""


def plans() -> dict[str, Any]:
    """Return what the planner says of three chains."""
    return {
        "default": cosmoflow.plan(),
        "paper": cosmoflow.plan("paper"),
        "gigabox": cosmoflow.plan("gigabox", hours=3.0, spot=True),
    }


def box_of(folder: Path, index: int) -> str:
    """Return the particle store of a simulated box."""
    return str(sorted(path for path in (folder / "boxes").iterdir() if path.is_dir())[index])


def write_snapshot(folder: Path) -> str:
    """Write a Gadget-style HDF5 snapshot of a displaced lattice."""
    rng, cells, size = np.random.default_rng(8), 16, 100.0
    lattice = (np.indices((cells,) * 3).reshape(3, -1).T + 0.5) * (size / cells)
    position = (lattice + rng.normal(0.0, 1.5, lattice.shape)) % size
    path = folder / "snapshot.hdf5"
    with h5py.File(path, "w") as file:
        header = file.create_group("Header").attrs
        header["BoxSize"], header["Redshift"], header["Time"] = size, 0.0, 1.0
        header["Omega0"], header["OmegaLambda"], header["HubbleParam"] = 0.3, 0.7, 0.7
        header["NumPart_ThisFile"] = header["NumPart_Total"] = np.array([0, cells**3, 0, 0, 0, 0])
        header["NumPart_Total_HighWord"] = np.zeros(6, np.int64)
        header["NumFilesPerSnapshot"] = 1
        mass = 0.3 * 27.7536627 * size**3 / cells**3
        header["MassTable"] = np.array([0.0, mass, 0.0, 0.0, 0.0, 0.0])
        part = file.create_group("PartType1")
        part["Coordinates"] = position.astype(np.float32)
        part["Velocities"] = rng.normal(0.0, 300.0, position.shape).astype(np.float32)
        part["ParticleIDs"] = np.arange(cells**3)
    return str(path)


def write_cube(folder: Path) -> str:
    """Write a density contrast of 80^3 cells with waves in it."""
    rng, cells = np.random.default_rng(4), 80
    k = np.fft.fftfreq(cells) ** 2
    squared = k[:, None, None] + k[:, None] + k[: cells // 2 + 1]
    modes = np.fft.rfftn(rng.normal(size=(cells,) * 3)) / np.sqrt(squared + 1e-3)
    density = np.exp(0.6 * (wave := np.fft.irfftn(modes, (cells,) * 3, (0, 1, 2))) / wave.std())
    path = folder / "cube.npy"
    np.save(path, (density / density.mean() - 1.0).astype(np.float32))
    return str(path)


def measure(names: list[str] | None, engines: list[str]) -> dict[str, dict[str, str]]:
    """Run everything; return digests by run and output."""
    found: dict[str, dict[str, str]] = {}
    folder = Path(tempfile.mkdtemp(prefix="digests-"))
    try:
        for engine in engines:
            for name, call in runs(folder, engine).items():
                if (names and name not in names) or (engine == "ray" and name not in RAY):
                    continue
                start = time.monotonic()
                try:
                    call()
                    found[f"{engine} {name}"] = digest_output(folder / name)
                except Exception as error:
                    # The other runs are still worth comparing; this one differs.
                    found[f"{engine} {name}"] = {"failed": str(error)}
                print(f"{engine} {name}: {time.monotonic() - start:.1f} s", flush=True)
        density = np.load(write_cube(folder))[:48, :48, :48] + 1.0
        # numpy's own mean of float32 depends on its version in the last bit.
        mean = np.float32(math.fsum(density.ravel().tolist()) / density.size)
        arrays = cosmoflow.infer_array(density / mean, 96.0)
        found["array"] = {name: digest(values.values) for name, values in arrays.items()}
        listed = cosmoflow.models()
        found["models"] = {one["name"]: digest(one) for one in listed}
        for name in ("residual-small", str(folder / "fields")):
            if name == "residual-small" or Path(name).exists():
                # The bytes of a store depend on the lengths of the names of versions.
                said = lasting(cosmoflow.info(name), ROOT, varying=VARYING | {"bytes"})
                found[f"info {Path(name).name}"] = {"all": digest(said)}
        found["plans"] = {name: digest(repr(one)) for name, one in plans().items()}
    finally:
        shutil.rmtree(folder)
    return found


def compare(before: Path, after: Path, *, with_plans: bool) -> int:
    """Print what differs; return the number of differences."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    count = total = 0
    for run in sorted({*old, *new}):
        mine, theirs = old.get(run, {}), new.get(run, {})
        for key in sorted({*mine, *theirs}):
            total += 1
            if mine.get(key) != theirs.get(key):
                counted = run != "plans" or with_plans
                count += counted
                print(f"{'differs' if counted else 'plan changed'}: {run}, {key}")
    print(f"{total} digests, {count} differ")
    return count


def main() -> None:
    """Run or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compare", type=Path, nargs=2)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--engines", nargs="*", default=["serial", "ray"])
    parser.add_argument("--plans", action="store_true", help="count differences of plans too")
    given = parser.parse_args()
    if given.compare:
        sys.exit(compare(*given.compare, with_plans=given.plans) > 0)
    if not str(cosmoflow.__file__).startswith(ROOT):
        sys.exit(f"this would measure {cosmoflow.__file__}, not {ROOT}")
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    found = measure(given.only, given.engines)
    given.out.write_text(json.dumps(found, indent=1, sort_keys=True))
    print(f"{sum(map(len, found.values()))} digests in {given.out}")


if __name__ == "__main__":
    main()
