"""Types of the functions in ``api.py``; ``help()`` lists the settings that ``**keywords`` take."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, Required, TypedDict, Unpack

import xarray as xr
from numpy.typing import ArrayLike

from cosmoflow.config import CosmologyConfig, Settings
from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.keywords import Door
from cosmoflow.model.folder import Model
from cosmoflow.numerics.comparison import Comparison
from cosmoflow.stages.inspect import Description
from cosmoflow.stages.models import ModelList
from cosmoflow.stages.planning import ChainPlan
from cosmoflow.stages.run import Run
from cosmoflow.storage.particles import ParticleStore

_Url = str | PathLike[str]
_Base = Settings | Mapping[str, Any] | _Url | None
_Engine = Literal["auto", "serial", "ray"] | Mapping[str, Any] | None
_Size = int | str | None

class _Import(TypedDict, total=False):
    box_size: Required[float]
    redshift: Required[float]
    quantity: Literal["density", "delta", "counts"] | None
    cosmology: CosmologyConfig | Mapping[str, float] | None
    paint: Mapping[str, Any] | None
    settings: _Base
    engine: _Engine
    address: str | None
    memory: _Size
    overwrite: bool
    resume: bool
    progress: bool | None

DOORS: Mapping[str, Door]

def simulate(
    out: _Url,
    run: Run | None = None,
    *,
    seed: int = 1,
    cosmology: CosmologyConfig | Mapping[str, float] | None = None,
    settings: _Base = None,
    engine: _Engine = None,
    address: str | None = None,
    memory: _Size = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool | None = None,
    **keywords: Any,
) -> list[ParticleStore]: ...
def convert(
    snapshot: _Url,
    out: _Url,
    run: Run | None = None,
    *,
    settings: _Base = None,
    engine: _Engine = None,
    address: str | None = None,
    memory: _Size = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool | None = None,
    **keywords: Any,
) -> ParticleStore: ...
def paint(
    particles: _Url,
    out: _Url,
    run: Run | None = None,
    *,
    settings: _Base = None,
    engine: _Engine = None,
    address: str | None = None,
    memory: _Size = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool | None = None,
    **keywords: Any,
) -> xr.Dataset: ...
def derive(
    fields: _Url,
    out: _Url,
    names: str | Sequence[str] = ...,
    run: Run | None = None,
    *,
    field: str | Sequence[str] = ...,
    settings: _Base = None,
    engine: _Engine = None,
    address: str | None = None,
    memory: _Size = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool | None = None,
    **keywords: Any,
) -> xr.Dataset: ...
def train(
    fields: _Url | Sequence[_Url],
    out: _Url,
    run: Run | None = None,
    *,
    seed: int = 1,
    settings: _Base = None,
    engine: _Engine = None,
    address: str | None = None,
    memory: _Size = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool | None = None,
    **keywords: Any,
) -> Model: ...
def infer(
    fields: _Url,
    out: _Url,
    model: _Url | Sequence[_Url] = ...,
    run: Run | None = None,
    *,
    settings: _Base = None,
    engine: _Engine = None,
    address: str | None = None,
    memory: _Size = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool | None = None,
    **keywords: Any,
) -> xr.Dataset: ...
def infer_array(
    density: ArrayLike,
    box_size: float,
    model: _Url | Sequence[_Url] = ...,
    *,
    redshift: float | None = None,
    cosmology: CosmologyConfig | Mapping[str, float] | None = None,
    run: Run | None = None,
    settings: _Base = None,
    memory: _Size = None,
    **keywords: Any,
) -> xr.Dataset: ...
def import_fields(
    cube: _Url,
    out: _Url,
    run: Run | None = None,
    *,
    velocity: _Url | None = None,
    momentum: _Url | None = None,
    order: Literal["C", "F"] | None = None,
    **keywords: Unpack[_Import],
) -> xr.Dataset: ...
def store_density(
    density: ArrayLike,
    out: _Url,
    run: Run | None = None,
    *,
    velocity: ArrayLike | None = None,
    momentum: ArrayLike | None = None,
    **keywords: Unpack[_Import],
) -> xr.Dataset: ...
def evaluate(
    truth: _Url,
    predictions: _Url | Sequence[_Url] | Mapping[str, _Url],
    out: _Url,
    run: Run | None = None,
    *,
    settings: _Base = None,
    engine: _Engine = None,
    address: str | None = None,
    memory: _Size = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool | None = None,
    **keywords: Any,
) -> Comparison: ...
def spectra(
    fields: _Url,
    out: _Url,
    field: str,
    run: Run | None = None,
    *,
    cross: str | None = None,
    cross_fields: str | None = None,
    compensate: str = "auto",
    settings: _Base = None,
    engine: _Engine = None,
    address: str | None = None,
    memory: _Size = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool | None = None,
    **keywords: Any,
) -> xr.Dataset: ...
def plan(
    settings: _Base = None,
    *,
    stages: Sequence[str] | None = None,
    node: str = ...,
    gpu_node: str | None = ...,
    nodes: int | None = None,
    hours: float | None = None,
    spot: bool = False,
    prices: _Url | None = None,
    memory: _Size = None,
    **keywords: Any,
) -> ChainPlan: ...
def demo(
    out: _Url = "demo-output",
    run: Run | None = None,
    *,
    seed: int = ...,
    settings: _Base = None,
    engine: _Engine = None,
    address: str | None = None,
    memory: _Size = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool | None = None,
    **keywords: Any,
) -> Comparison: ...
def info(url: _Url, hints: SnapshotHints | None = None, **keywords: Any) -> Description: ...
def inspect(url: _Url, hints: SnapshotHints | None = None, **keywords: Any) -> Description: ...
def view(
    url: _Url,
    field: str | None = None,
    *,
    axis: Literal["x", "y", "z"] = "z",
    position: float | None = None,
    component: str | None = None,
    out: _Url | None = None,
    overwrite: bool = False,
) -> xr.DataArray: ...
def models() -> ModelList: ...
