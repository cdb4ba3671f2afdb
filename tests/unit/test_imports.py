"""What is quick to start loads no heavy library: the graph of imports is held, not a time."""

import subprocess
import sys
from pathlib import Path

from tests.cases import each

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "numba", "llvmlite", "ray")

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
    "code",
    [
        "import cosmoflow",
        "run('--help')",
        "run('--version')",
        "run('info', {fields!r})",
        "run('info', {particles!r})",
        "import cosmoflow; cosmoflow.open_fields({fields!r})",
    ],
)
def test_no_heavy_library_is_loaded(fields_store, particle_store, code):
    code = code.format(fields=fields_store(8).url, particles=particle_store(4).url)
    program = LOADED.format(code=code, heavy=HEAVY)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]
