"""What is quick to start loads no heavy library: the graph of imports is held, not a time."""

import subprocess
import sys
from pathlib import Path

from tests.cases import each

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "numba", "llvmlite", "ray")
TABLES = ("xarray", "pandas", "dask", "scipy", "matplotlib")
"""Libraries that `info` of a store does without as well."""
UNUSED = (
    "ray", "dask", "numba", "llvmlite", "xarray", "pandas", "scipy", "matplotlib", "camb", "h5py",
    "torch._dynamo", "sympy",
)  # fmt: skip
"""Libraries that `infer` in one process does without; torch._dynamo is torch's compiler."""

COMPLETION = """
import os

os.environ.update(
    _COSMOFLOW_COMPLETE="complete_bash", COMP_WORDS="cosmoflow paint --sch", COMP_CWORD="2"
)
run()
"""

LOADED = """
import sys

def run(*arguments):
    from cosmoflow.cli import main

    sys.argv = ["cosmoflow", *arguments]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, ended.code

{code}
heavy = {heavy!r}
print("loaded:", *(name for name in heavy if name in sys.modules))
"""


@each(
    ("code", "heavy", "said"),
    [
        ("import cosmoflow", (*HEAVY, *TABLES), ""),
        ("run('--help')", (*HEAVY, *TABLES), "paint"),
        ("run('--version')", (*HEAVY, *TABLES), "cosmoflow "),
        ("run('settings', 'paint')", (*HEAVY, *TABLES), "paint.grid = 128"),
        (COMPLETION, (*HEAVY, *TABLES), "--scheme"),
        ("run('info', {fields!r})", (*HEAVY, *TABLES), "grid: 8^3 cells"),
        ("run('info', {particles!r})", (*HEAVY, *TABLES), "particles: 64"),
        ("import cosmoflow; cosmoflow.open_fields({fields!r})", HEAVY, ""),
        ("run('view', {fields!r})", HEAVY, "density at z = 9 Mpc/h"),
        ("run('infer', {fields!r}, {out!r}, '--model', 'wiener')", UNUSED, "variables: velocity"),
        ("run('infer', {fields!r}, {out!r}, '--dry-run')", UNUSED, "flops"),
        ("run('infer', {fields!r}, {out!r})", UNUSED, "variables: velocity"),
    ],
)
def test_no_heavy_library_is_loaded(fields_store, particle_store, tmp_path, code, heavy, said):
    places = {"fields": fields_store(8).url, "particles": particle_store(4).url}
    code = code.format(**places, out=str(tmp_path / "out.zarr"))
    program = LOADED.format(code=code, heavy=heavy)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]
    assert said in done.stdout
