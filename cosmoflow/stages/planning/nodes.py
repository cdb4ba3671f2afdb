"""Types of nodes that clouds rent: their cores, memory, GPUs, network, disks and prices."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Final, Literal

from cosmoflow.errors import ConfigError

Cloud = Literal["aws", "gcp", "azure"]
GIB: Final = 1 << 30
GBIT: Final = 1e9 / 8
"""Bytes a second."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its maker publishes it.

    Parameters
    ----------
    name : str
        For people.
    memory : int
        Bytes.
    bfloat16 : float
        Peak FLOPs a second of dense products in bfloat16, without sparsity: the arithmetic that is
        chosen on GPUs.
    """

    name: str
    memory: int
    bfloat16: float


# Data sheets of NVIDIA: L4 and L40S 2023, A100 2021, H100 2023 (SXM; NVL for the 94 GB card).
L4: Final = Gpu("L4", 24 * GIB, 121e12)
L40S: Final = Gpu("L40S", 48 * GIB, 362e12)
A100_40: Final = Gpu("A100 40 GB", 40 * GIB, 312e12)
A100_80: Final = Gpu("A100 80 GB", 80 * GIB, 312e12)
H100: Final = Gpu("H100 80 GB", 80 * GIB, 989e12)
H100_NVL: Final = Gpu("H100 94 GB", 94 * GIB, 835e12)


@dataclass(frozen=True, slots=True)
class NodeType:
    """A machine for rent.

    Parameters
    ----------
    name : str
        What its cloud calls it.
    cloud : {"aws", "gcp", "azure"}
        Whose it is.
    vcpus, cores : int
        Hardware threads, which Ray counts as CPUs, and the physical cores that they share.
    memory : int
        Bytes.
    network : float
        Bytes a second, each way, that it sustains: the baseline, not what it bursts to.
    disk : int
        Bytes of local flash; 0 where there is none, and a network volume must do.
    price, spot : float
        US dollars an hour, on demand and typically at spot.
    gpu : Gpu, optional
        The kind.
    gpus : int
        How many.
    fast_bfloat16 : bool
        Whether the CPU multiplies bfloat16 faster than float32.
    """

    name: str
    cloud: Cloud
    vcpus: int
    cores: int
    memory: int
    network: float
    disk: int
    price: float
    spot: float
    gpu: Gpu | None = None
    gpus: int = 0
    fast_bfloat16: bool = False

    def rate(self, *, spot: bool) -> float:
        """Return US dollars an hour."""
        return self.spot if spot else self.price


def _node(
    name: str,
    cloud: Cloud,
    vcpus: int,
    memory_gib: int,
    network_gbit: float,
    disk_gb: int,
    price: float,
    spot: float,
    *,
    gpu: Gpu | None = None,
    gpus: int = 0,
    fast_bfloat16: bool = False,
) -> NodeType:
    # Every type below has two hardware threads a core.
    return NodeType(
        name, cloud, vcpus, vcpus // 2, memory_gib * GIB, network_gbit * GBIT, disk_gb * 10**9,
        price, spot, gpu, gpus or int(gpu is not None), fast_bfloat16,
    )  # fmt: skip


# Published on-demand prices of Linux in us-east-1, us-central1 and East US as of the end of 2025,
# and baseline network rates of the clouds' own tables (GCP: the limit of egress). Spot prices move
# by the hour: these are round figures of that year. Look both up before you spend.
_TYPES: Final = (
    _node("m7i.4xlarge", "aws", 16, 64, 6.25, 0, 0.806, 0.33, fast_bfloat16=True),
    _node("m7i.16xlarge", "aws", 64, 256, 25.0, 0, 3.226, 1.30, fast_bfloat16=True),
    _node("r7i.8xlarge", "aws", 32, 256, 12.5, 0, 2.117, 0.80, fast_bfloat16=True),
    _node("m6id.16xlarge", "aws", 64, 256, 25.0, 3800, 3.797, 1.50),
    _node("r6id.16xlarge", "aws", 64, 512, 25.0, 3800, 4.838, 1.80),
    _node("g6e.xlarge", "aws", 4, 32, 2.5, 250, 1.861, 0.90, gpu=L40S),
    _node("g6e.2xlarge", "aws", 8, 64, 5.0, 450, 2.242, 1.05, gpu=L40S),
    _node("p5.4xlarge", "aws", 16, 256, 100.0, 3840, 6.88, 3.40, gpu=H100, fast_bfloat16=True),
    _node("p5.48xlarge", "aws", 192, 2048, 3200.0, 30400, 55.04, 27.0, gpu=H100, gpus=8),
    _node("n2-standard-16", "gcp", 16, 64, 32.0, 0, 0.777, 0.19),
    _node("n2-standard-64", "gcp", 64, 256, 32.0, 0, 3.108, 0.75),
    _node("n2-highmem-32", "gcp", 32, 256, 32.0, 0, 2.096, 0.51),
    _node("g2-standard-16", "gcp", 16, 64, 32.0, 0, 1.147, 0.46, gpu=L4),
    _node("a2-highgpu-1g", "gcp", 12, 85, 24.0, 0, 3.673, 1.47, gpu=A100_40),
    _node("Standard_D16s_v5", "azure", 16, 64, 12.5, 0, 0.768, 0.15),
    _node("Standard_D64s_v5", "azure", 64, 256, 30.0, 0, 3.072, 0.60),
    _node("Standard_E32ds_v5", "azure", 32, 256, 16.0, 1200, 2.304, 0.46),
    _node("Standard_NC24ads_A100_v4", "azure", 24, 220, 20.0, 960, 3.673, 1.10, gpu=A100_80),
    _node("Standard_NC40ads_H100_v5", "azure", 40, 320, 40.0, 3576, 6.98, 2.80, gpu=H100_NVL),
)

NODE_TYPES: Final[dict[str, NodeType]] = {one.name: one for one in _TYPES}
"""The types by name."""

DEFAULT_NODE: Final = "m6id.16xlarge"
"""Large boxes spill what tasks hand on, so it has disks of its own."""
DEFAULT_GPU_NODE: Final = "g6e.2xlarge"


def find_node(name: str, where: str) -> NodeType:
    """Return a type by its name.

    Raises
    ------
    ConfigError
        There is none of that name.
    """
    if name in NODE_TYPES:
        return NODE_TYPES[name]
    near = difflib.get_close_matches(name, NODE_TYPES, n=1)
    raise ConfigError(
        "no such type of node in the table",
        where=where, value=name,
        remedy=f"did you mean {near[0]!r}?" if near else f"one of {', '.join(NODE_TYPES)}",
    )  # fmt: skip
