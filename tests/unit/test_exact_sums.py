import math
import pickle
from fractions import Fraction

import numpy as np

from cosmoflow.numerics.exact_sums import ExactSum
from tests.cases import each


@each(
    "values",
    [
        [],
        [0.0, -0.0],
        [1.0, 1e100, 1.0, -1e100],
        [0.1] * 10,
        [5e-324, -5e-324, 5e-324],
        [np.finfo(float).max, -np.finfo(float).max, 1e-300],
        [-0.75, 0.5, -1e-17],
    ],
)
def test_the_sum_is_exact(values):
    expected = sum((Fraction(value) for value in values), Fraction(0))
    assert ExactSum.of(np.array(values)).value == expected


def test_no_order_and_no_cut_matters():
    rng = np.random.default_rng(1)
    values = rng.normal(size=20_000) * 10.0 ** rng.integers(-20, 20, 20_000)
    whole = ExactSum.of(values)
    assert float(whole) == math.fsum(values)
    rng.shuffle(values)
    parts = [ExactSum.of(part) for part in np.array_split(values, 7)]
    assert sum(parts, ExactSum()) == whole
    assert pickle.loads(pickle.dumps(whole)) == whole
    assert ExactSum.of(values.reshape(100, 200)) == whole
