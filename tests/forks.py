"""Processes that have imported what they need: forks of one that has.

A Python of its own would import torch, numba and the rest for seconds, and so would each one after
it.
"""

import multiprocessing
import os

CONTEXT = multiprocessing.get_context("forkserver")
# All but Ray, whose threads do not survive a fork.
CONTEXT.set_forkserver_preload(
    [f"cosmoflow.stages.{stage}" for stage in ("derive", "infer", "paint", "simulate", "train")]
)


def fork(function, *arguments, **options):
    """Start a function, of a module, in a process of its own with this one's environment."""
    process = CONTEXT.Process(
        target=_call, args=(dict(os.environ), function, arguments, options), daemon=True
    )
    process.start()
    return process


def _call(environment, function, arguments, options):
    os.environ.clear()
    os.environ.update(environment)
    function(*arguments, **options)
