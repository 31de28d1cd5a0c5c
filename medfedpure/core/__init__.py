"""Contracts: what a plugin author derives from, receives or returns, and what these stand on."""
