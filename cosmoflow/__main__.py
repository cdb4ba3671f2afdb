"""``python -m cosmoflow``."""

import sys
from contextlib import suppress
from pathlib import Path

# Python looks for modules in the working folder first. A script there that is called zarr.py or
# random.py would be imported in place of the library, unless cosmoflow itself is found there.
with suppress(OSError):
    if Path.cwd() == Path(sys.path[0]) != Path(__file__).resolve().parents[1]:
        del sys.path[0]

from cosmoflow.cli import main

main()
