"""Buffers that a training step frees are there for the next one."""

import resource
import subprocess
import sys

SCRIPT = """
import resource
import torch
from cosmoflow.engine.buffers import keeping_freed_buffers, return_freed_buffers

return_freed_buffers()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
outside = faults()
with keeping_freed_buffers():
    # The heap may take two rounds to grow to its size.
    faults()
    faults()
    with keeping_freed_buffers():
        inner = faults()
    between = faults()
print(outside, inner, between, faults())
"""


def test_pages_of_kept_buffers_are_not_asked_for_again():
    """Four times 64 MiB: each page anew, or none of them."""
    run = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    outside, inner, between, after = (int(word) for word in run.stdout.split())
    pages = 4 * (1 << 26) // resource.getpagesize()
    # Where the system gives out huge pages a fault is for many of them.
    assert outside > pages // 1024
    assert inner < 0.1 * outside
    # The end of the inner block returns nothing.
    assert between < 0.1 * outside
    assert after > 10 * max(between, 1)


KEPT = """
import numpy as np
import psutil
from cosmoflow.engine.buffers import keeping_freed_buffers
from cosmoflow.engine.memory import available_memory

class Still:
    available = 1 << 33

psutil.virtual_memory = Still
with keeping_freed_buffers():
    held = np.ones(1 << 28, np.uint8)
    before = available_memory()
    del held
    kept = available_memory() - before
print(kept, available_memory() - before)
"""


def test_freed_buffers_that_are_kept_count_as_available():
    """256 MiB are freed and stay in the process: a plan made then may use them."""
    run = subprocess.run([sys.executable, "-c", KEPT], check=True, capture_output=True, text=True)
    kept, later = map(int, run.stdout.split())
    assert 0.9 * (1 << 28) < kept < 1.1 * (1 << 28)
    assert abs(later) < 1 << 24
