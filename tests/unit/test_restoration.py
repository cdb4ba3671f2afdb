"""Restored power: the truth's, with every correlation as it was."""

import numpy as np
import pytest
import torch

from cosmoflow.events import Message, StageAdvanced, StageStarted
from cosmoflow.numerics import calculus, fourier
from cosmoflow.numerics.radial import RadialBins
from cosmoflow.numerics.restoration import GainSum, PowerGain, sum_powers
from cosmoflow.stages.inputs.condition import condition_of
from cosmoflow.stages.models import load_model, model_digest
from cosmoflow.stages.train import train
from cosmoflow.storage.fields import FieldStore
from tests.conftest import BOX, narrow_networks

GRID = 24
BINS = RadialBins.covering(GRID, BOX)


def noise(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((3, GRID, GRID, GRID), generator=generator)


@pytest.fixture(scope="module")
def fields():
    """A true velocity, and one that has lost power and gained error on small scales."""
    true = noise(0)
    k2 = fourier.squared_wavenumber(GRID, BOX)
    modes = fourier.forward(true) * torch.exp(-0.5 * k2 * 2.0**2)
    predicted = fourier.inverse(modes, GRID) + 0.2 * noise(1) + 1.5
    return true, predicted


def powers(velocity):
    return sum_powers(velocity, velocity, BOX, BINS).true


def correlations(true, predicted):
    index = BINS.index(GRID, BOX)
    parts = []
    for velocity in (true, predicted):
        modes = fourier.forward(velocity)
        potential = calculus.potential_part(modes, BOX)
        parts.append((potential, modes - potential))
    inside = slice(1, GRID // 2 + 1)
    return [
        BINS.sum_product(a, b, index)[inside]
        / np.sqrt(BINS.sum_product(a, a, index) * BINS.sum_product(b, b, index))[inside]
        for a, b in zip(*parts, strict=True)
    ]


def test_power_is_restored_and_correlation_kept(fields):
    true, predicted = fields
    restored = sum_powers(true, predicted, BOX, BINS).solve().restore(predicted, BOX)
    inside = slice(1, GRID // 2 + 1)
    ratio = powers(restored)[:, inside] / powers(true)[:, inside]
    before = powers(predicted)[:, inside] / powers(true)[:, inside]
    assert np.abs(before - 1.0).max() > 0.5
    np.testing.assert_allclose(ratio, 1.0, rtol=1e-4)
    for found, expected in zip(
        correlations(true, restored), correlations(true, predicted), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_unit_gains_change_nothing(fields):
    ones = (1.0,) * BINS.count
    found = PowerGain(BINS.width, ones, ones).restore(fields[1], BOX)
    torch.testing.assert_close(found, fields[1], rtol=0, atol=1e-4)


def test_a_prediction_that_is_right_has_unit_gains(fields):
    gain = sum_powers(fields[0], fields[0], BOX, BINS).solve()
    np.testing.assert_allclose([gain.potential, gain.rotational], 1.0)


def test_the_two_parts_have_gains_of_their_own(fields):
    true = fields[0]
    modes = fourier.forward(true)
    potential = calculus.potential_part(modes, BOX)
    halved = fourier.inverse(0.5 * potential + 0.25 * (modes - potential), GRID)
    gain = sum_powers(true, halved, BOX, BINS).solve()
    inside = slice(1, GRID // 2)
    np.testing.assert_allclose(gain.potential[inside], 2.0, rtol=1e-4)
    np.testing.assert_allclose(gain.rotational[inside], 4.0, rtol=1e-4)


def test_the_mean_velocity_is_kept(fields):
    gain = sum_powers(*fields, BOX, BINS).solve()
    restored = gain.restore(fields[1], BOX)
    torch.testing.assert_close(
        restored.mean((1, 2, 3)), fields[1].mean((1, 2, 3)), rtol=1e-4, atol=0
    )


def test_sums_of_boxes_add_up(fields):
    one = sum_powers(*fields, BOX, BINS)
    both = GainSum.zero(BINS) + one + one
    np.testing.assert_allclose(both.true, 2.0 * one.true)
    np.testing.assert_allclose(both.solve().potential, one.solve().potential)
    with pytest.raises(ValueError, match="different bins"):
        one + GainSum.zero(RadialBins(1.0, 3))


OPTIONS = {
    "model": "residual-tiny", "steps": 2, "batch": 1, "crop": 8, "precision": "float32",
    "measure_gain": 2,
}  # fmt: skip


def test_training_measures_gains_in_boxes_that_validate(fields_store, serial_run, tmp_path):
    urls = [fields_store(16, shard=16, seed=seed).url for seed in (1, 2)]
    events = []
    with narrow_networks():
        one = train(urls[:1], str(tmp_path / "one"), serial_run(train=OPTIONS))
        run = serial_run(train=OPTIONS, listener=events.append)
        two = train(urls, str(tmp_path / "two"), run)
    assert one.spec.gain is None
    assert two.spec.gain is not None
    assert two.spec.gain.symmetries == 2
    assert min(two.spec.gain.potential) > 0.0
    assert StageStarted("gain", 1, "boxes") in events
    assert StageAdvanced("gain", 1, 1) in events
    assert not warnings(events)


def test_gains_are_left_out_for_lack_of_memory(fields_store, serial_run, tmp_path, monkeypatch):
    monkeypatch.setattr("cosmoflow.stages.train.gains.available_memory", lambda: 1000)
    urls = [fields_store(16, shard=16, seed=seed).url for seed in (1, 2)]
    events = []
    with narrow_networks():
        run = serial_run(train=OPTIONS, listener=events.append)
        model = train(urls, str(tmp_path / "model"), run)
    assert model.spec.gain is None
    (said,) = warnings(events)
    assert "did not fit" in said


def test_a_run_that_was_killed_before_its_gain_measures_it_later(
    fields_store, serial_run, tmp_path, monkeypatch
):
    urls = [fields_store(16, shard=16, seed=seed).url for seed in (1, 2)]
    with narrow_networks():
        whole = train(urls, str(tmp_path / "whole"), serial_run(train=OPTIONS))
        with monkeypatch.context() as killed:
            killed.setattr("cosmoflow.stages.train.command.keep_comparison", interrupt)
            with pytest.raises(KeyboardInterrupt):
                train(urls, str(tmp_path / "model"), serial_run(train=OPTIONS))
        assert load_model(str(tmp_path / "model")).spec.gain is None
        without = model_digest(str(tmp_path / "model"))
        resumed = train(urls, str(tmp_path / "model"), serial_run(existing="resume", train=OPTIONS))
    assert resumed.spec.gain == whole.spec.gain
    assert model_digest(str(tmp_path / "model")) == model_digest(str(tmp_path / "whole")) != without
    assert (tmp_path / "model" / "comparison.json").exists()


def interrupt(*given):
    raise KeyboardInterrupt


def warnings(events):
    """Return the warnings about gains."""
    messages = [one for one in events if isinstance(one, Message) and one.level == "warning"]
    return [one.text for one in messages if "gain" in one.text]


def test_a_family_notes_the_conditions_that_its_gains_were_measured_at(
    fields_store, serial_run, tmp_path
):
    cells = (2.0, 1.5, 2.0, 1.5, 1.5)
    urls = [fields_store(16, shard=16, seed=seed, cell=cell).url for seed, cell in enumerate(cells)]
    with narrow_networks():
        options = {**OPTIONS, "validation_fraction": 0.4}
        family = train(urls, str(tmp_path / "family"), serial_run(train=options)).spec.family
    measured = condition_of(FieldStore(urls[-1])).coordinates(family.particles_per_cell)
    assert family.gain_reach == tuple((one, one) for one in measured)
