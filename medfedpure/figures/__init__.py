"""Figures: metrics, intervals and divergences, of numbers alone; no model enters here."""
