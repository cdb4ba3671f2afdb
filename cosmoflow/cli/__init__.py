"""The command line; the only package that imports typer and rich."""

from cosmoflow.cli.app import main

__all__ = ["main"]
