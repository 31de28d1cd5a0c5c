"""Measurements, each reproducible by one command."""
