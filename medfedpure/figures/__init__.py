"""Figures: what a number is computed by; no model and no image enters here."""
