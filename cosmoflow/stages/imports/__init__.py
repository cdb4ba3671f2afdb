"""From a density cube, in a file or in memory, to a fields store."""

from cosmoflow.stages.imports.command import import_fields, plan_import, store_density

__all__ = [
    "import_fields",
    "plan_import",
    "store_density",
]
