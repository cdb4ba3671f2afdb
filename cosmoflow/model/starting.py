"""Models that training starts from: random, or another model's weights."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from cosmoflow.cosmology.conditions import Condition
from cosmoflow.errors import ConfigError
from cosmoflow.model.family import FamilySpec, ModelFamily
from cosmoflow.model.folder import Model
from cosmoflow.model.modulation import ModulatedNetwork, convolutions
from cosmoflow.model.residual import ResidualUNet
from cosmoflow.model.velocity import ModelSpec, Normalisation, Reconstruction, VelocityModel

START_RATE: Final = 0.25
"""Factor of the default learning rates for a training that starts from a model."""

_LEARNING: Final = {
    "decoder": ("encode_coarse", "expand", "decode", "output"),
    "modulation": ("output",),
}
"""Beginnings of the names of the layers that learn, by the setting ``train.layers``."""


def make_model(spec: ModelSpec | FamilySpec) -> Model:
    """Return a model with random weights."""
    return ModelFamily(spec) if isinstance(spec, FamilySpec) else VelocityModel(spec)


def begin_model(
    spec: ModelSpec | FamilySpec, start: Model | None, condition: Condition | None
) -> Reconstruction:
    """Return the model that training begins with.

    Parameters
    ----------
    spec : ModelSpec or FamilySpec
        Description of the model to train.
    start : VelocityModel or ModelFamily, optional
        Model of the same architecture whose weights to copy; None for random weights.
    condition : Condition or None
        Condition of ``start``, if it is a model of one condition and the spec is of a family. The
        family gives that model's residual there.
    """
    model = make_model(spec)
    if start is None:
        return model
    if isinstance(model, ModelFamily) and isinstance(start, VelocityModel):
        assert condition is not None
        assert isinstance(model.network, ModulatedNetwork)
        network = model.network.network
        _copy_weights(start.network, network)
        _rescale(network, start.spec.normalisation, model.spec.family.normalisation(condition))
    else:
        _copy_weights(start.network, model.network)
    return model


def _copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy the weights of a network, without its head for errors: they change with training."""
    weights = source.state_dict()
    target.load_state_dict({name: weights[name] for name in target.state_dict()})


@torch.no_grad()
def _rescale(network: nn.Module, old: Normalisation, new: Normalisation) -> None:
    """Change the first and last layer so that a network with new constants gives the same field."""
    layers = [layer for _, layer in convolutions(network)]
    first, last = layers[0], layers[-1]
    assert first.bias is not None
    assert last.bias is not None
    density = first.weight[:, 0].sum(dim=(1, 2, 3))
    first.bias += density * ((new.density_mean - old.density_mean) / old.density_std)
    first.weight[:, 0] *= new.density_std / old.density_std
    first.weight[:, 1:] *= new.velocity_scale / old.velocity_scale
    last.weight *= old.target_scale / new.target_scale
    last.bias *= old.target_scale / new.target_scale


def choose_layers(network: nn.Module, layers: str) -> None:
    """Let some layers of a network learn and freeze the others.

    Parameters
    ----------
    network : nn.Module
        The network; its parameters are marked in place.
    layers : {"all", "decoder", "modulation"}
        The setting ``train.layers``.

    Raises
    ------
    ConfigError
        The network has no such layers.
    """
    if layers == "all":
        return
    inner = network.network if isinstance(network, ModulatedNetwork) else network
    if not isinstance(inner, ResidualUNet):
        raise ConfigError(
            "layers can be chosen in residual networks only",
            where="train.layers",
            value=layers,
            limit="all",
            remedy="leave the setting out",
        )
    for name, parameter in inner.named_parameters():
        parameter.requires_grad_(name.startswith(_LEARNING[layers]))
