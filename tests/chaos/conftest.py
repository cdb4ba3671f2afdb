"""The chaos tests damage copies of the same chain that the end-to-end tests read."""

from tests.e2e.conftest import chain, copy_of, cosmoflow

__all__ = ["chain", "copy_of", "cosmoflow"]
