"""A run as tables and pictures."""
