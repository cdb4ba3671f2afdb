"""Import of a density cube, from a file or from memory, into a fields store."""

from cosmoflow.stages.imports.command import (
    import_fields,
    import_request,
    plan_import,
    store_density,
)
from cosmoflow.stages.imports.request import open_request

__all__ = [
    "import_fields",
    "import_request",
    "open_request",
    "plan_import",
    "store_density",
]
