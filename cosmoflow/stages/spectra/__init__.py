"""Power spectra of stored fields."""

from cosmoflow.stages.spectra.command import plan_spectra, spectra
from cosmoflow.stages.spectra.plan import PowerPlan, plan_power
from cosmoflow.stages.spectra.power import measure_power, plan_measurement
from cosmoflow.stages.spectra.readings import read_together, share_readings
from cosmoflow.stages.spectra.request import request_spectra

__all__ = [
    "PowerPlan",
    "measure_power",
    "plan_measurement",
    "plan_power",
    "plan_spectra",
    "read_together",
    "request_spectra",
    "share_readings",
    "spectra",
]
