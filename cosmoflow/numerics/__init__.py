"""Numerics on arrays in memory: NumPy, numba and torch, no Dask, Ray or zarr."""

from cosmoflow.numerics.cache_folder import choose_cache_folder

# numba looks for its cache folder when the first compiled function is defined.
choose_cache_folder()
