"""Data: what happens to images before a model sees them: reading, storing, augmenting, copying, near-duplicates."""
