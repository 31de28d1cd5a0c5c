"""Built-in detectors, one file each."""
