"""Snapshots of other codes, read piece by piece in our units and conventions.

:func:`open_particles` takes a file, a folder, a glob, one part of a set or its base name, local or
in a bucket, and returns an object with the interface of our own particle store.
"""

from __future__ import annotations

from cosmoflow.config.snapshot import SnapshotHints
from cosmoflow.storage.snapshots.opening import describe_snapshot, open_particles
from cosmoflow.storage.snapshots.source import ParticleSource, Snapshot

__all__ = ["ParticleSource", "Snapshot", "SnapshotHints", "describe_snapshot", "open_particles"]
