"""Training of the head that expects the size of the errors, with the prediction frozen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch.optim import AdamW

from cosmoflow.model.errors import UNCALIBRATED, calibrate, freeze_all_but_errors, size_loss
from cosmoflow.model.family import CONSTANTS, ModelFamily
from cosmoflow.model.fitting import TrainingJob
from cosmoflow.model.folder import Model
from cosmoflow.model.precision import autocast
from cosmoflow.model.samples import Sample, draw_batch, read_sample, stack
from cosmoflow.model.streams import StreamedBoxes
from cosmoflow.model.velocity import VelocityModel


def fit_errors(model: Model, job: TrainingJob, device: torch.device) -> Model:
    """Return a model with a head for errors, trained and calibrated.

    Parameters
    ----------
    model : VelocityModel or ModelFamily
        Trained model without such a head.
    job : TrainingJob
        Hyperparameters and data; ``config.error_steps`` steps are taken on crops that the training
        of the model did not draw. The validation blocks calibrate the sizes.
    device : torch.device
        Device to train on.
    """
    config = job.config
    torch.manual_seed(job.seed)
    found = _with_head(model).to(device)
    head = freeze_all_but_errors(found.network)
    optimiser = AdamW(head, lr=config.learning_rate)
    for step in range(config.error_steps):
        optimiser.param_groups[0]["lr"] = (
            config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / config.error_steps))
        )
        number = config.steps + step
        boxes = job.training.at(number) if isinstance(job.training, StreamedBoxes) else job.training
        sample = draw_batch(
            boxes,
            config.target,
            found.geometry,
            crop=job.crop,
            crops=range(config.batch),
            augment=config.augment,
            key=(job.seed, number),
        )
        residual, log_size = _errors(found, sample, config.precision, device)
        loss = size_loss(residual.detach(), log_size)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return _calibrated(found, job, device)


def _with_head(model: Model) -> Model:
    """Return a copy of a model with a random head for errors."""
    found: Model
    if isinstance(model, ModelFamily):
        found = ModelFamily(replace(model.spec, errors=UNCALIBRATED))
    else:
        found = VelocityModel(replace(model.spec, errors=UNCALIBRATED))
    found.network.load_state_dict(model.network.state_dict(), strict=False)
    return found.eval()


def _errors(
    model: Model, sample: Sample, precision: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the errors of a model and the logarithms of the sizes that it expects."""
    density, flows, target, frames = (part.to(device) for part in sample)
    inputs, *rest = model.network_inputs(density, flows, frames)
    with autocast(precision, device):
        output = model.network(inputs.to(memory_format=torch.channels_last_3d), *rest)
    wanted = model.wanted(target, density, flows, frames)
    return wanted - output[:, :3].float(), output[:, 3:].float()


@torch.inference_mode()
def _calibrated(model: Model, job: TrainingJob, device: torch.device) -> Model:
    """Return a model whose sizes are calibrated on the validation blocks."""
    residuals, sizes, densities, coordinates = [], [], [], []
    for box, block in job.validation:
        sample = stack([read_sample(box, model.target, block, model.geometry.halo)])
        residual, log_size = _errors(model, sample, job.config.precision, device)
        inputs, *_ = model.network_inputs(
            sample.density.to(device), sample.flows.to(device), sample.frame.to(device)
        )
        residuals.append(residual[0].cpu().numpy())
        sizes.append(np.exp(log_size[0].cpu().numpy()))
        densities.append(model.inner(inputs[:, 0])[0].cpu().numpy())
        coordinates.append(box.frame[CONSTANTS:])
    errors = calibrate(residuals, sizes, densities, coordinates)
    if isinstance(model, ModelFamily):
        model.spec = replace(model.spec, errors=errors)
    else:
        model.spec = replace(model.spec, errors=errors)
    return model
