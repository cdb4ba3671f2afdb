"""Rounding to an allowed error: within it, for good, and without a preferred direction."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cosmoflow.numerics.rounding import round_to, rounding_step
from tests.cases import each

ERRORS = st.floats(1e-6, 1e6)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
SOME = arrays(np.float32, st.integers(1, 50), elements=FINITE)


def bits(values):
    return values.view(np.uint32)


@given(ERRORS)
def test_the_step_is_the_largest_power_of_two(error):
    step = rounding_step(error)
    assert math.frexp(step)[0] == 0.5
    assert step / 2 <= error < step


@each(("error", "step"), [(0.01, 2**-6), (0.5, 1.0), (1.0, 2.0), (0.999, 1.0)])
def test_known_steps(error, step):
    assert rounding_step(error) == step


@each("error", [0.0, -1.0, math.nan, math.inf, 1e-60, 1e60])
def test_errors_that_make_no_sense(error):
    with pytest.raises(ValueError, match="error"):
        rounding_step(error)


@given(SOME, ERRORS)
def test_the_error_is_kept(values, error):
    found = round_to(values, error)
    assert found.dtype == np.float32
    assert found.shape == values.shape
    assert (np.abs(found.astype(np.float64) - values.astype(np.float64)) <= error).all()


@given(SOME, ERRORS)
def test_twice_is_once(values, error):
    once = round_to(values, error)
    np.testing.assert_array_equal(bits(round_to(once, error)), bits(once))


@given(SOME, ERRORS)
def test_both_signs_alike(values, error):
    np.testing.assert_array_equal(round_to(-values, error), -round_to(values, error))


@given(SOME, ERRORS)
def test_results_are_multiples_of_the_step_or_have_no_bits_to_lose(values, error):
    step = rounding_step(error)
    found = round_to(values, error).astype(np.float64)
    far = np.abs(values.astype(np.float64)) >= 2.0**24 * step
    assert (found[~far] % step == 0.0).all()
    np.testing.assert_array_equal(found[far], values[far])


@given(ERRORS)
def test_zero_stays_zero(error):
    zeros = np.array([0.0, -0.0], np.float32)
    assert (bits(round_to(zeros, error)) == 0).all()
    tiny = np.array([1e-30, -1e-30], np.float32)
    assert (bits(round_to(tiny, error)) == 0).all()


@given(arrays(np.float32, 20, elements=st.floats(width=32)), ERRORS)
def test_nothing_becomes_infinite_or_undefined(values, error):
    found = round_to(values, error)
    special = ~np.isfinite(values)
    np.testing.assert_array_equal(np.isfinite(found), ~special)
    np.testing.assert_array_equal(found[special], values[special])


def test_values_at_the_end_of_the_range():
    ends = np.array([-1, 1], np.float32) * np.finfo(np.float32).max
    for error in (1e-30, 1e-6, 1.0, 1e30):
        np.testing.assert_array_equal(round_to(ends, error), ends)


def test_halves_go_to_the_even_multiple():
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)
    np.testing.assert_array_equal(round_to(values, 0.5), [0.0, 2.0, 2.0, 0.0, -2.0])


def test_no_error_allowed_changes_nothing():
    values = np.random.default_rng(0).normal(size=100).astype(np.float32)
    found = round_to(values, 0.0)
    np.testing.assert_array_equal(bits(found), bits(values))
    assert found is not values


def test_the_mean_does_not_drift():
    values = np.random.default_rng(1).normal(0.0, 300.0, 1_000_000).astype(np.float32)
    error = round_to(values, 1.0).astype(np.float64) - values
    # Uniform in a step of 2: its mean is within a few standard errors of 0.
    assert abs(error.mean()) < 5 * 2.0 / math.sqrt(12 * values.size)
    assert error.std() == pytest.approx(2.0 / math.sqrt(12), rel=0.01)


def test_the_input_is_not_changed():
    values = np.full(10, 1.23, np.float32)
    round_to(values, 0.1)
    assert (values == np.float32(1.23)).all()


def test_fields_of_any_shape():
    values = np.random.default_rng(2).normal(0.0, 300.0, (3, 4, 5, 6)).astype(np.float32)
    found = round_to(values, 0.1)
    assert found.shape == values.shape
    assert found.flags.c_contiguous
    # 300 km/s in steps of 1/8 need 12 of 24 bits: the rest are zeros.
    assert (bits(found) & 0xFF == 0).all()
