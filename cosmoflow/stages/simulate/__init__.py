"""N-body boxes: Gaussian initial conditions, 2LPT and COLA."""

from cosmoflow.stages.simulate.command import SimulatePlan, plan_simulate, simulate

__all__ = [
    "SimulatePlan",
    "plan_simulate",
    "simulate",
]
