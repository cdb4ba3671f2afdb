"""Transforms of boxes larger than memory, in slabs that tasks exchange."""
