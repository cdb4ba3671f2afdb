"""Global flows of a box: the velocity that the density of the whole box implies at every point."""

from cosmoflow.stages.flows.stored import check_flows, ensure_flows, identify_flows

__all__ = [
    "check_flows",
    "ensure_flows",
    "identify_flows",
]
