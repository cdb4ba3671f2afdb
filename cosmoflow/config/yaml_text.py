"""A YAML parser that refuses duplicate keys and reads numbers as in YAML 1.2."""

from __future__ import annotations

import re
from typing import Any

import yaml

_NUMBERS = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without two of its silent errors.

    PyYAML keeps the last of two equal keys, and follows YAML 1.1, in which ``010`` is 8, ``1:30``
    is 90 and ``1e-3`` is text.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping, or raise if a key occurs twice."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} occurs twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        """Return a decimal integer, even with leading zeros."""
        return int(node.value)


# Copies, so that the resolvers of the parent class stay unchanged.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# The core schema of YAML 1.2, section 10.3.2.
_Loader.add_implicit_resolver(_NUMBERS[0], re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _NUMBERS[1],
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
_Loader.add_constructor(_NUMBERS[0], _Loader.construct_decimal)


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML document.

    Raises
    ------
    yaml.YAMLError
        The text is not YAML, or a mapping has a key twice.
    """
    return yaml.load(text, Loader=_Loader)
