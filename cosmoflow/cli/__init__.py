"""The command line: the only importer of typer and rich."""

from cosmoflow.cli.app import main

__all__ = ["main"]
