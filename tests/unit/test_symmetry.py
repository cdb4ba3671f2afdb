"""The 48 turns and mirrors of the cube are a group that vector calculus respects."""

import itertools

import numpy as np
import torch

from cosmoflow.numerics.symmetry import CUBE_GROUP, Symmetry, spread_symmetries
from tests import derivatives
from tests.cases import each

IDENTITY = Symmetry((0, 1, 2), (1, 1, 1))
BOX = 30.0


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_there_are_48_different_ones_and_the_first_does_nothing():
    field = noise(4, 4, 4)
    turned = {symmetry.apply(field, vector=False).numpy().tobytes() for symmetry in CUBE_GROUP}
    assert len(CUBE_GROUP) == len(turned) == len(set(CUBE_GROUP)) == 48
    assert torch.equal(CUBE_GROUP[0].apply(field, vector=False), field)
    assert torch.equal(CUBE_GROUP[0].apply(noise(3, 4, 4, 4), vector=True), noise(3, 4, 4, 4))


def test_it_is_closed():
    group = set(CUBE_GROUP)
    assert {a.compose(b) for a, b in itertools.product(CUBE_GROUP, repeat=2)} == group


def test_every_one_has_its_inverse():
    for symmetry in CUBE_GROUP:
        assert symmetry.inverse() in CUBE_GROUP
        assert symmetry.compose(symmetry.inverse()) == IDENTITY
        assert symmetry.inverse().compose(symmetry) == IDENTITY
        for field, vector in ((noise(2, 3, 4, 5), False), (noise(2, 3, 3, 4, 5), True)):
            turned = symmetry.apply(field, vector=vector)
            assert torch.equal(symmetry.inverse().apply(turned, vector=vector), field)


@each("vector", [False, True])
def test_composition_applies_the_argument_first(vector):
    field = noise(3, 2, 3, 4) if vector else noise(2, 3, 4)
    for a, b in itertools.product(CUBE_GROUP, repeat=2):
        after = a.apply(b.apply(field, vector=vector), vector=vector)
        assert torch.equal(a.compose(b).apply(field, vector=vector), after)


def test_a_uniform_flow_turns_like_an_arrow():
    """y[i] = sign[i] x[axes[i]], for the components as for the grid."""
    arrow = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    flow = arrow.view(3, 1, 1, 1).expand(3, 4, 4, 4)
    for symmetry in CUBE_GROUP:
        matrix = np.zeros((3, 3))
        matrix[np.arange(3), symmetry.axes] = symmetry.signs
        expected = torch.from_numpy(matrix) @ arrow
        assert torch.equal(symmetry.apply(flow, vector=True)[:, 0, 0, 0], expected)


@each("method", ["spectral", "difference"])
@each("cells", [6, 7])
def test_derivatives_commute_with_every_symmetry(method, cells):
    potential, flow = noise(cells, cells, cells, seed=1), noise(3, cells, cells, cells, seed=2)
    slope = derivatives.gradient(potential, BOX, method)
    spread = derivatives.divergence(flow, BOX, method)
    spin = derivatives.curl(flow, BOX, method)
    for symmetry in CUBE_GROUP:
        turned = symmetry.apply(flow, vector=True)
        matrix = np.zeros((3, 3))
        matrix[np.arange(3), symmetry.axes] = symmetry.signs
        handedness = round(np.linalg.det(matrix))
        for found, expected in (
            (
                derivatives.gradient(symmetry.apply(potential, vector=False), BOX, method),
                symmetry.apply(slope, vector=True),
            ),
            (derivatives.divergence(turned, BOX, method), symmetry.apply(spread, vector=False)),
            # The curl is an axial vector: a mirror image turns the other way.
            (
                derivatives.curl(turned, BOX, method),
                handedness * symmetry.apply(spin, vector=True),
            ),
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@each("count", [1, 2, 8, 48])
def test_spread_symmetries_are_all_different_and_begin_with_none(count):
    found = spread_symmetries(count)
    assert len(set(found)) == count
    assert found[0] == CUBE_GROUP[0]
    assert spread_symmetries(48)[:count] == found
