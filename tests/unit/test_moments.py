"""Mean and spread of fields that come one after the other, against NumPy's of all at once."""

import numpy as np
import pytest
import torch

from cosmoflow.numerics.moments import Moments
from tests.cases import each


@pytest.fixture
def fields():
    return np.random.default_rng(0).normal(300.0, 5.0, size=(7, 3, 4, 4, 4)).astype(np.float32)


@each("spread", [False, True])
def test_mean_and_squares(fields, spread):
    moments = Moments(spread=spread)
    for field in fields:
        moments.add(torch.from_numpy(field.copy()))
    exact = fields.astype(np.float64)
    assert moments.count == 7
    np.testing.assert_allclose(moments.mean, exact.mean(axis=0), rtol=1e-6)
    if spread:
        expected = ((exact - exact.mean(axis=0)) ** 2).sum(axis=0)
        np.testing.assert_allclose(moments.squares, expected, rtol=1e-3, atol=1e-2)
    else:
        with pytest.raises(ValueError, match="no deviations"):
            _ = moments.squares


def test_keeping_the_spread_does_not_change_the_mean(fields):
    means = []
    for spread in (False, True):
        moments = Moments(spread=spread)
        for field in fields:
            moments.add(torch.from_numpy(field.copy()))
        means.append(moments.mean)
    assert torch.equal(*means)


def test_equal_fields_have_no_spread():
    moments = Moments(spread=True)
    for _ in range(5):
        moments.add(torch.full((2, 2), 1234.567))
    assert torch.equal(moments.mean, torch.full((2, 2), 1234.567))
    assert not moments.squares.any()


def test_nothing_has_no_mean():
    with pytest.raises(ValueError, match="no field"):
        _ = Moments(spread=False).mean
