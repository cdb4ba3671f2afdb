"""Small inputs that pages begin with: each is made once, and copied."""

import shutil
import subprocess
from pathlib import Path

import numpy as np

from tests.snapshot_files import write_gadget_set, zeldovich_box

FOLDER = Path()
"""Where they are kept; the session sets it."""

_BOX = "cosmoflow simulate {0} --box 64 --particles 64 --seed {1}"
_LPT = _BOX + " --method 2lpt"
_PAINT = "cosmoflow paint {0} {1} --grid 32"


def _make_cube(place, cells=32):
    """Write a log-normal density with a mean of 1 that scatters as one of z = 0 does."""
    rng = np.random.default_rng(1)
    waves = np.meshgrid(*[np.fft.fftfreq(cells, 1.0 / cells)] * 3)
    k = np.sqrt(sum(np.square(waves))) + 1e-3
    field = np.fft.ifftn(np.fft.fftn(rng.normal(size=(cells,) * 3)) * k**-0.8).real
    density = np.exp(field / field.std())
    np.save(place, (density / density.mean()).astype("f4"))


def _make_snapshot(place):
    """Write a snapshot in four files, as Gadget-4 does."""
    write_gadget_set(place, zeldovich_box(32, 64.0), 4, Git_commit="0123abc")


MAKERS = {
    "particles.zarr": _BOX.format("particles.zarr", 1) + " --steps 5",
    "fields.zarr": _PAINT.format("particles.zarr", "fields.zarr"),
    "velocity.zarr": "cosmoflow infer fields.zarr velocity.zarr",
    "a.zarr": f"{_LPT.format('pa.zarr', 2)} && {_PAINT.format('pa.zarr', 'a.zarr')}",
    "b.zarr": f"{_LPT.format('pb.zarr', 3)} && {_PAINT.format('pb.zarr', 'b.zarr')}",
    "c.zarr": f"{_LPT.format('pc.zarr', 4)} && {_PAINT.format('pc.zarr', 'c.zarr')}",
    "cube.npy": _make_cube,
    "snapdir_004": _make_snapshot,
}
"""What makes each: a command, which may read those before it, or a function of its place."""


def given(*names):
    """Copy inputs into the working folder; those that do not exist yet are made first."""
    for name in names:
        _make(name)
        source = FOLDER / name
        if source.is_dir():
            shutil.copytree(source, name)
        else:
            shutil.copy(source, name)


def _make(name):
    FOLDER.mkdir(exist_ok=True)
    if (FOLDER / name).exists():
        return
    maker = MAKERS[name]
    if callable(maker):
        maker(FOLDER / name)
        return
    for other in MAKERS:
        if other != name and other in maker.split():
            _make(other)
    subprocess.run(maker, shell=True, cwd=FOLDER, check=True, capture_output=True)
