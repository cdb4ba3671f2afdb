"""Everything at rest: zarr stores of particles and fields, and how runs begin and end them."""
