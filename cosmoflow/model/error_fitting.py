"""Training of the head that expects the size of the errors, with the prediction frozen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from cosmoflow.model.errors import UNCALIBRATED, calibrate, freeze_all_but_errors, size_loss
from cosmoflow.model.family import CONSTANTS
from cosmoflow.model.folder import Model
from cosmoflow.model.precision import autocast
from cosmoflow.model.samples import Sample, read_sample, stack
from cosmoflow.model.training_job import TrainingJob


def fit_errors(
    model: Model,
    job: TrainingJob,
    device: torch.device,
    on_step: Callable[[int], None] = lambda done: None,
) -> Model:
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
    on_step : callable
        Told after each step how many are done.
    """
    config = job.config
    torch.manual_seed(job.seed)
    found = model.blank(UNCALIBRATED).eval()
    # The head keeps its random weights.
    found.network.load_state_dict(model.network.state_dict(), strict=False)
    found = found.to(device)
    head = freeze_all_but_errors(found.network)
    optimiser = AdamW(head, lr=config.learning_rate)
    schedule = CosineAnnealingLR(optimiser, config.error_steps)
    for done in range(config.error_steps):
        sample = job.draw(config.steps + done, range(config.batch), found.geometry)
        residual, log_size, _ = _errors(found, sample, config.precision, device)
        loss = size_loss(residual.detach(), log_size)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        on_step(done + 1)
    return _calibrated(found, job, device)


def _errors(
    model: Model, sample: Sample, precision: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return errors of a model, logarithms of the expected sizes, and standardised ln density."""
    density, flows, target, frames = (part.to(device) for part in sample)
    inputs, *rest = model.network_inputs(density, flows, frames)
    with autocast(precision, device):
        output = model.network(inputs, *rest, errors=True)
    wanted = model.wanted(target, density, flows, frames)
    return wanted - output[:, :3].float(), output[:, 3:].float(), model.inner(inputs[:, 0])


@torch.inference_mode()
def _calibrated(model: Model, job: TrainingJob, device: torch.device) -> Model:
    """Return a model whose sizes are calibrated on the validation blocks."""
    residuals, sizes, densities, coordinates = [], [], [], []
    for box, block in job.validation:
        sample = stack([read_sample(box, model.target, block, model.geometry.halo)])
        residual, log_size, log_density = _errors(model, sample, job.config.precision, device)
        residuals.append(residual[0].cpu().numpy())
        sizes.append(np.exp(log_size[0].cpu().numpy()))
        densities.append(log_density[0].cpu().numpy())
        coordinates.append(box.frame[CONSTANTS:])
    found = model.blank(calibrate(residuals, sizes, densities, coordinates)).to(device)
    found.network.load_state_dict(model.network.state_dict())
    return found.eval()
