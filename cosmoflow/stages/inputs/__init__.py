"""Inputs of stages: checks, readers, and facts that outputs inherit."""
