"""``python -m cosmoflow``."""

import sys
from contextlib import suppress
from pathlib import Path

# Python searches the working folder first, so a script there named zarr.py or random.py would be
# imported instead of the library. Keep the folder only if cosmoflow itself is there.
with suppress(OSError):
    if Path.cwd() == Path(sys.path[0]) != Path(__file__).resolve().parents[1]:
        del sys.path[0]

from cosmoflow.cli import main

main()
