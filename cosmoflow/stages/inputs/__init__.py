"""Checks of the inputs of stages, and facts that outputs keep about them."""
