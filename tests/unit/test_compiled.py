"""Compiled functions follow the files that they use."""

import subprocess
import sys

HELPER = """
from numba import njit

STEP = {step}

@njit
def next_one(x):
    return x + STEP
"""
KERNEL = """
from cosmoflow.numerics.compiled import compiled
from package.helper import next_one

@compiled()
def kernel(x):
    return next_one(x)

print(kernel(10), sum(kernel.stats.cache_hits.values()))
"""


def test_a_kept_function_is_made_anew_when_a_file_beside_it_changes(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "kernel.py").write_text(KERNEL)

    def run(step):
        (package / "helper.py").write_text(HELPER.format(step=step))
        command = [sys.executable, "-c", "import package.kernel"]
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return found.stdout.split()

    assert run(1) == ["11", "0"]
    assert run(1) == ["11", "1"]
    assert run(100) == ["110", "0"]
