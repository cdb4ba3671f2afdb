"""Types of nodes that clouds rent, read from price lists in YAML."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Final, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)
from yaml import YAMLError

from cosmoflow.config.base import Section
from cosmoflow.config.folders import expand_home
from cosmoflow.config.yaml_text import parse_yaml
from cosmoflow.errors import ConfigError, suggest

GIB: Final = 1 << 30
GBIT: Final = 1e9 / 8
"""Bytes a second."""


class Gpu(Section):
    """A GPU as its maker publishes it."""

    memory_gib: PositiveFloat
    bfloat16_tflops: PositiveFloat

    @property
    def memory(self) -> int:
        """Bytes."""
        return int(self.memory_gib * GIB)

    @property
    def bfloat16(self) -> float:
        """Peak FLOPs a second of dense products, without sparsity; networks use bfloat16."""
        return self.bfloat16_tflops * 1e12


@dataclass(frozen=True, slots=True)
class NodeType:
    """A type of machine for rent.

    Parameters
    ----------
    name : str
        Name of the type in its cloud.
    cloud : str
        The cloud that rents it.
    vcpus, cores : int
        Hardware threads, which Ray counts as CPUs, and the physical cores that they share.
    memory : int
        Bytes.
    network : float
        Sustained rate in each direction, bytes a second; bursts are faster.
    disk : int
        Bytes of local flash; 0 if the type has none and uses a network volume.
    price, spot : float
        US dollars an hour, on demand and at a typical spot price.
    gpu : Gpu, optional
        Kind of its GPUs.
    gpus : int
        Number of GPUs.
    fast_bfloat16 : bool
        Whether the CPU multiplies bfloat16 faster than float32.
    """

    name: str
    cloud: str
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


class _NodeEntry(Section):
    cloud: str
    vcpus: PositiveInt
    cores: PositiveInt | None = None
    memory_gib: PositiveFloat
    network_gbit: PositiveFloat
    disk_gb: NonNegativeInt = 0
    price: NonNegativeFloat
    spot: NonNegativeFloat
    gpu: str | None = None
    gpus: PositiveInt = 1
    fast_bfloat16: bool = False

    def node_type(self, name: str, gpus: Mapping[str, Gpu]) -> NodeType:
        gpu = None if self.gpu is None else gpus[self.gpu]
        return NodeType(
            name,
            self.cloud,
            self.vcpus,
            # Clouds sell hardware threads, two of each core.
            self.cores or max(1, self.vcpus // 2),
            int(self.memory_gib * GIB),
            self.network_gbit * GBIT,
            self.disk_gb * 10**9,
            self.price,
            self.spot,
            gpu,
            0 if gpu is None else self.gpus,
            self.fast_bfloat16,
        )


class _PriceList(Section):
    date: datetime.date
    currency: Literal["USD"]
    gpus: dict[str, Gpu] = Field(default_factory=dict)
    nodes: dict[str, _NodeEntry]


def read_nodes(source: str | PathLike[str] | None = None) -> dict[str, NodeType]:
    """Return the types of nodes of the package, and those of a price list over them.

    Parameters
    ----------
    source : path, optional
        A YAML file with the keys of ``prices.yaml``. Its entries extend those of the package;
        entries of the same name replace them.

    Raises
    ------
    ConfigError
        The file cannot be read, is not YAML, or a key or a value in it is not valid.
    """
    gpus: dict[str, Gpu] = {}
    nodes: dict[str, NodeType] = {}
    for path in (_PRICES, *([] if source is None else [Path(expand_home(str(source)))])):
        found = _read_prices(path)
        gpus |= found.gpus
        for name, node in found.nodes.items():
            if node.gpu is not None and node.gpu not in gpus:
                raise ConfigError(
                    "the price list names an unknown GPU",
                    where=f"nodes.{name}.gpu in {path}",
                    value=node.gpu,
                    remedy=f"add it to gpus, or take one of {', '.join(gpus)}",
                )
            nodes[name] = node.node_type(name, gpus)
    return nodes


def _read_prices(path: Path) -> _PriceList:
    try:
        return _PriceList.model_validate(parse_yaml(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ConfigError(
            "the price list is not a readable YAML file", where=str(path), value=str(error)
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        value = first["input"]
        raise ConfigError(
            f"the price list is not valid: {first['msg']}",
            where=f"{key} in {path}" if key else str(path),
            value=None if isinstance(value, dict) else value,
            remedy=f"follow the list that ships: {_PRICES}",
        ) from None


_PRICES: Final = Path(__file__).with_name("prices.yaml")

NODE_TYPES: Final = read_nodes()
"""The package's types by name."""

DEFAULT_NODE: Final = "m6id.16xlarge"
"""It has local disks because large boxes spill what tasks hand on."""
DEFAULT_GPU_NODE: Final = "g6e.2xlarge"


def find_node(name: str, where: str, types: Mapping[str, NodeType] = NODE_TYPES) -> NodeType:
    """Return the type of a name.

    Raises
    ------
    ConfigError
        No type has that name.
    """
    if name in types:
        return types[name]
    raise ConfigError(
        "no such type of node in the table",
        where=where,
        value=name,
        remedy=suggest(name, types, f"one of {', '.join(types)}"),
    )
