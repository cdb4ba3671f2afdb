"""Turn NumPy arrays of particles into a store that `cosmoflow paint` reads.

    python examples/import_particles.py snapshot.npz particles.zarr --box 256

The .npz holds `position` (n, 3), comoving Mpc/h, and `velocity` (n, 3), peculiar km/s. Positions
outside [0, box) are wrapped.
"""

import argparse

import numpy as np

from cosmoflow.config import CosmologyConfig
from cosmoflow.storage.metadata import BoxMetadata, make_provenance
from cosmoflow.storage.particles import store_particles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("snapshot")
    parser.add_argument("out")
    parser.add_argument("--box", type=float, required=True, help="Mpc/h")
    parser.add_argument("--redshift", type=float, default=0.0)
    parser.add_argument("--omega-m", type=float, default=0.31)
    parser.add_argument("--h", type=float, default=0.6777)
    arguments = parser.parse_args()
    with np.load(arguments.snapshot) as snapshot:
        position = np.mod(snapshot["position"], arguments.box).astype(np.float32)
        velocity = snapshot["velocity"].astype(np.float32)
    # Rounding to float32 can lift a position just below the box onto its border.
    position[position >= np.float32(arguments.box)] = 0.0
    metadata = BoxMetadata(
        box_size=arguments.box,
        redshift=arguments.redshift,
        cosmology=CosmologyConfig(Omega_m=arguments.omega_m, h=arguments.h),
        provenance=make_provenance("import", {"snapshot": arguments.snapshot}),
    )
    store = store_particles(arguments.out, position, velocity, metadata)
    print(f"{store.count} particles in {store.url}")


if __name__ == "__main__":
    main()
