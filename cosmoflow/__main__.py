"""``python -m cosmoflow``."""

from cosmoflow.cli import main

main()
