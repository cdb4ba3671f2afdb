"""Numerics on arrays in memory: NumPy, numba and torch, no Dask, Ray or zarr."""
