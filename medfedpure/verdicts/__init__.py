"""Verdicts on files: what a saved defence says of every scan that a site names, a row each, whatever happens."""
