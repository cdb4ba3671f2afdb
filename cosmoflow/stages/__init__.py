"""The stages of the chain, as plain functions of URLs and settings."""
