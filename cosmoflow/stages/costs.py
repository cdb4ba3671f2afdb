"""Measured costs of the parts of every stage, and rates of the hardware.

``--dry-run`` and the planner of clusters both use these figures, and no stage has others.
Core-seconds are CPU time, user and system, of work in one process on two cores of an AMD EPYC
(``benchmarks/predictions.py``); what Ray adds is below. They have not been measured on the node
types of the planner.
"""

from __future__ import annotations

from typing import Final

from cosmoflow.config.settings import Scheme

START_SECONDS: Final = 9.0
"""Start of a command on Ray: interpreter, libraries, Ray (docs/benchmarks/painting.md)."""

OVERHEAD: Final = 160 << 20
"""Bytes of a worker that do not grow with its task: buffers of the store, of threads, of malloc."""
BLOCK_OVERHEAD: Final = 96 << 20
"""The same of tasks that read one block at a time: `derive` and `infer`."""
EVALUATE_OVERHEAD: Final = 256 << 20
"""The same of `evaluate`, with the float64 temporaries of a few planes for each thread."""

# --- Particles and cells, in core-seconds.

SIMULATE_PARTICLE: Final = 3.0e-7
"""A particle and step of COLA on a mesh of as many cells, all else included: 72 s of CPU time for
256^3 particles and 15 steps (docs/benchmarks/clusters.md)."""
MESH_POWER: Final = 2.6
"""A mesh twice as fine costs six times as much (docs/benchmarks/simulations.md)."""
CONVERT_PARTICLE: Final = 2.5e-7
"""A particle that is read from a snapshot and written to a store. A guess."""
IMPORT_BYTE: Final = 1 / 3e8
"""A byte of a density cube that is read or written. A guess."""
READ_PARTICLE: Final = 2.7e-8
"""1.8 s for 512^3 particles on two cores (docs/benchmarks/painting.md, the parts by themselves)."""
SORT_PARTICLE: Final = 4.0e-8
"""Sorting a particle into shards, and the totals of mass and momentum."""
PAINT_PARTICLE: Final = 3.6e-8
"""Density and momenta of a particle by CIC."""
SCHEME_COST: Final[dict[Scheme, float]] = {"ngp": 1.0, "cic": 1.0, "tsc": 1.6, "pcs": 3.2}
"""Over CIC (docs/benchmarks/painting.md); NGP was not measured and is taken for CIC."""
WRITE_NUMBER: Final = 1.1e-8
"""Encoding and writing a number of a cell."""

MOVE_NUMBER: Final = 1.1e-8
"""Reading or writing a number of a cell in `infer`."""
SPECTRA_NUMBER: Final = 2.2e-8
"""Reading, transforming in slabs and summing a number of a cell."""
SUBBOX_NUMBER: Final = 2e-8
"""A number of a cell of a sub-box that is read, transformed and summed."""
FLOW_NUMBER: Final = 1.6e-8
"""A number that tasks of a global flow hand on."""
DERIVE_NUMBER: Final = 4e-8
"""A number that tasks of spectral derivatives hand on."""
FLOW_CELL: Final = 1.8e-7
"""A cell of a Wiener-filtered flow that is made in memory."""

LINEAR_CELL: Final = 6.0e-8
"""A cell of a linear velocity that is made in memory and written."""
EVALUATE_CELL: Final = 1.0e-7
"""A cell of the truth or of a method that is compared in blocks, and read once for that."""
KEPT_CELL: Final = 2.7e-7
"""The same with sub-boxes and spectra, where a process keeps all fields in memory."""
ERROR_CELL: Final = 1.0e-7
"""A cell of the expected errors of a method, reading included."""
SUBBOX_CELL: Final = 7.0e-8
"""A cell of the truth or of a method in a sub-box: four transforms and the sums of their products.
It is read with its block."""
REPORT_SECONDS: Final = 7.0
"""Figures and pages of a report, and what numba and matplotlib take to load: 11 s of `evaluate` at
128^3 without 4 s of its tasks."""
DEMO_SECONDS: Final = 150.0
"""All stages of `demo`."""

# --- Networks, in FLOPs a second.

CPU_FLOPS: Final = {"float32": 0.85e11, "bfloat16": 1.7e11}
"""FLOPs a second of a core in inference: 256^3 cells of 1.38e5 operations in 6.89 s (bfloat16) and
14.2 s (float32) on two cores (docs/benchmarks/inference.md)."""
TRAINING_CPU_FLOPS: Final = 1.25e11
"""FLOPs a second of a core in training: 250 GFLOP/s on two (docs/benchmarks/training.md)."""
GPU_UTILISATION: Final = {
    "paper": 0.50,
    "paper-text": 0.50,
    "paper-narrow": 0.03,
    "residual-tiny": 0.03,
    "residual-small": 0.03,
    "residual-medium": 0.12,
    "residual-large": 0.20,
}
"""Share of a GPU's published bfloat16 peak in training on an H200; few features keep it less busy
(docs/benchmarks/training.md). Measured for `paper`, `residual-small` and `residual-medium`; the
others are guessed from these. Inference with `residual-small` reaches 0.07, and waits for its
cores."""

# --- Ray.

HANDED_BYTE: Final = 5.0e-9
"""Core-seconds of a byte that one task hands to another, measured with Ray's objects: 2.7 s for the
0.5 GB of spectra at 512^3, 17 s for the 3.4 GB of `paint`, beyond what they take in one process
(docs/benchmarks/clusters.md)."""
PART_SECONDS: Final = 3.0e-5
"""Core-seconds of a part, however small: 13 microseconds to write and 13 to read, measured
(benchmarks/exchange.py parts)."""
TASK_SECONDS: Final = 3.0e-4
"""CPU time of the driver for each task on nodes with 48 places, measured on a cluster of two of
them on one machine (docs/benchmarks/clusters.md). Crews on the nodes submit the tasks."""
OBJECT_STORE_SHARE: Final = 0.3
"""Share of a node's memory, Ray's default. The rest is for workers, less :data:`SYSTEM_BYTES`."""
SYSTEM_BYTES: Final = 4 << 30
"""Memory of Ray's daemons and of the interpreters of idle workers on a node."""

# --- Hardware figures that the table of nodes lacks.

THREAD_GAIN: Final = 1.3
"""Work of a core with both hardware threads busy, over that with one: customary, not measured."""
DISK_BYTES: Final = 2.0e9
"""Bytes a second of local flash, written or read."""
VOLUME_BYTES: Final = 2.5e8
"""Bytes a second of a network volume, for nodes without local flash."""

# --- Object stores (Amazon S3's published guidance; the others are alike).

STORE_PUTS, STORE_GETS = 3500.0, 5500.0
"""Requests a second on one prefix; every array is counted as one."""
CONNECTION_BYTES: Final = 85e6
"""Bytes a second of one connection."""
CONNECTIONS: Final = 4
"""Busy connections assumed for each task; zarr opens up to ten at a time."""

COMPRESSION: Final = {"particles": 1.2, "fields": 1.12}
"""Bytes over stored bytes: 256^3 COLA particles; density 1.10, momentum 1.08 and velocity 1.17 of
128^3 cells of 2 Mpc/h."""

STORAGE_PRICE: Final = 0.023
"""US dollars for a gigabyte and month (S3 Standard, us-east-1)."""
PUT_PRICE, GET_PRICE = 5.0e-6, 4.0e-7
"""US dollars a request (the same)."""
