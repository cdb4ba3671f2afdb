"""Transforms of boxes larger than memory, in slabs that tasks hand to each other."""
