"""Configuration files mean what they say: no key wins in silence, no number changes its base."""

import pytest

from cosmoflow.config import load_settings
from cosmoflow.errors import ConfigError
from tests.cases import each


@each(
    "text",
    ["paint:\n  grid: 64\npaint:\n  grid: 32\n", "paint:\n  grid: 64\n  grid: 32\n"],
    ids=["section", "key"],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, text):
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"occurs twice") as caught:
        load_settings(str(path))
    assert "line" in str(caught.value)


@each(("text", "value"), [("010", 10), ("0", 0), ("12", 12)], ids=["leading zero", "zero", "plain"])
def test_integers_are_decimal(text, value):
    assert load_settings(None, [f"seed={text}"]).seed == value


@each(
    ("key", "text"),
    [
        *(("seed", text) for text in ("1:30", "0x10", "0o10", "1e400", "true")),
        *(("cosmology.sigma8", text) for text in (".inf", ".nan", "-.inf")),
    ],
)
def test_what_is_no_decimal_integer_or_not_finite_is_refused(key, text):
    with pytest.raises(ConfigError, match=key):
        load_settings(None, [f"{key}={text}"])


@each(("text", "value"), [("1e-3", 1e-3), ("2.5E2", 250.0), ("3", 3.0), (".5", 0.5)])
def test_floating_point_numbers_are_read_in_every_common_form(text, value):
    assert load_settings(None, [f"train.learning_rate={text}"]).train.learning_rate == value
