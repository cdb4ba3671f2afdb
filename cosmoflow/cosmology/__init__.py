"""Expansion, growth and the linear power spectrum."""
