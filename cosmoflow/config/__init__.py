"""Frozen, validated settings and their digests."""

from cosmoflow.config.cosmology import CosmologyConfig
from cosmoflow.config.loading import load_settings
from cosmoflow.config.settings import Settings

__all__ = ["CosmologyConfig", "Settings", "load_settings"]
