"""Buffers that a training step frees are there for the next one."""

import resource
import subprocess
import sys

SCRIPT = """
import resource
import torch
from cosmoflow.engine.memory import keeping_freed_buffers, return_freed_buffers

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
    inside = faults()
print(outside, inside, faults())
"""


def test_pages_of_kept_buffers_are_not_asked_for_again():
    """Four times 64 MiB: each page anew, or none of them."""
    run = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    outside, inside, after = (int(word) for word in run.stdout.split())
    pages = 4 * (1 << 26) // resource.getpagesize()
    # Where the system gives out huge pages a fault is for many of them.
    assert outside > pages // 1024
    assert inside < 0.1 * outside
    assert after > 10 * max(inside, 1)
