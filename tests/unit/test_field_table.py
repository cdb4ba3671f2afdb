"""The table of fields, and the rules that make them."""

import subprocess
import sys

import torch

from cosmoflow.numerics import calculus, fourier
from cosmoflow.numerics.comparison import QUANTITIES as COMPARED
from cosmoflow.numerics.field_table import FIELDS, STORED
from cosmoflow.numerics.quantities import QUANTITIES
from tests.cases import each

CELLS, CELL = 6, 2.0


def test_the_table_loads_no_torch():
    code = "import sys, cosmoflow.numerics.field_table as t; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_rule_and_every_compared_field_has_a_row():
    assert {*QUANTITIES} <= {*FIELDS}
    assert {*COMPARED.values()} <= {*QUANTITIES}
    assert all(FIELDS[name].definition for name in COMPARED.values())


def test_only_stored_fields_are_smoothed():
    smoothed = [row for row in STORED.values() if row.smoothed]
    assert "smoothed_divergence" in {row.name for row in smoothed}
    for row in smoothed:
        base = FIELDS[row.base]
        assert (row.unit, row.lead, row.halo) == (base.unit, base.lead, base.halo)
        assert row.inputs == (base.inputs if base.slopes else (base.name,))


@each("name", QUANTITIES)
def test_a_rule_makes_what_its_row_says(name):
    """In a block with a halo, and in modes."""
    rule, row = QUANTITIES[name], FIELDS[name]
    width = CELLS + 2 * rule.halo
    noise = torch.Generator().manual_seed(5)
    values = {
        "density": torch.rand(width, width, width, generator=noise),
        "velocity": torch.randn(3, width, width, width, generator=noise),
    }
    made = rule.make({read: values[read] for read in rule.reads}, CELL)
    assert made.shape == (*((row.parts,) if row.lead else ()), CELLS, CELLS, CELLS)

    field = QUANTITIES[rule.field].make(values, CELL)
    modes = fourier.forward(field if field.dim() == 4 else field[None])
    waves = calculus.odd_wavenumbers(modes, CELL * modes.shape[-3])
    products = [fourier.inverse(one, modes.shape[-3]) for one in rule.multiply(modes, waves)]
    assert len(products) == rule.products
    assert rule.finish(torch.stack(products)).shape[0] == row.parts
