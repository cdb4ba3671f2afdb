"""Gadget's binary snapshots, formats 1 and 2: Fortran records, either byte order."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from cosmoflow.errors import DataError
from cosmoflow.storage.snapshots.building import (
    SnapshotFacts,
    build_snapshot,
    resolve_cosmology,
    resolve_redshift,
)
from cosmoflow.storage.snapshots.conventions import VELOCITY_POWER, Conversion
from cosmoflow.storage.snapshots.files import SourceFile, open_file, read_exactly, whole_set
from cosmoflow.storage.snapshots.gadget import (
    describe_length,
    read_cosmology,
    read_redshift,
    resolve_box,
    resolve_units,
)
from cosmoflow.storage.snapshots.hdf5 import FileFacts
from cosmoflow.storage.snapshots.hints import SnapshotHints
from cosmoflow.storage.snapshots.parts import check_parts, chosen_parts, counts_by_type
from cosmoflow.storage.snapshots.parts import TypeFacts
from cosmoflow.storage.snapshots.source import Part, Raw, Snapshot
