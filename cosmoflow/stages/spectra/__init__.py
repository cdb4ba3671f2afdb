"""Power spectra of stored fields."""

from cosmoflow.stages.spectra.command import plan_spectra, request_spectra, spectra
from cosmoflow.stages.spectra.power import measure_power

__all__ = [
    "measure_power",
    "plan_spectra",
    "request_spectra",
    "spectra",
]
