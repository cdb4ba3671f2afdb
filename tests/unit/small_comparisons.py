"""Comparisons of a small box whose outcome is known, for the tests of the report."""

import numpy as np
import torch

from cosmoflow.numerics import fourier
from cosmoflow.numerics.comparison import compare

HOSTILE = "<script>alert('x')</script> & \"quoted\""


def small_comparison(
    names=("network", "linear theory", "linear theory 4 Mpc/h"), subbox=64.0, **trust
):
    cells, box = 32, 128.0
    random = np.random.default_rng(0)
    density = np.exp(random.normal(0.0, 1.0, (cells,) * 3)).astype(np.float32)
    density /= density.mean()
    tensor = torch.from_numpy(density)
    truth = fourier.linear_velocity(tensor, box, 50.0, 3.0).numpy()
    noise = random.normal(0.0, 1.0, truth.shape).astype(np.float32)
    fields = {
        "network": truth + 0.02 * truth.std() * noise,
        "second": truth + 0.2 * truth.std() * noise,
        "linear theory": fourier.linear_velocity(tensor, box, 50.0).numpy(),
        "linear theory 4 Mpc/h": fourier.linear_velocity(tensor, box, 50.0, 4.0).numpy(),
        HOSTILE: truth + noise,
    }
    shown = {name: fields[name] for name in names}
    return compare(density, truth, shown, box, subbox=subbox, **trust)


def known_errors():
    """Return what the network of a small comparison knows of its errors, twice too small."""
    truth = small_comparison(subbox=200.0).metrics["truth"]
    std = np.full((3, 32, 32, 32), 0.01 * truth["rms"] / np.sqrt(3.0), np.float32)
    return {"errors": {"network": std}, "particles_per_cell": 2.0}
