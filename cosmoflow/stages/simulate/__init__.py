"""N-body boxes: Gaussian initial conditions, 2LPT and COLA."""

from cosmoflow.stages.simulate.command import plan_simulate, simulate

__all__ = [
    "plan_simulate",
    "simulate",
]
