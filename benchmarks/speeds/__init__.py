"""The sections of `benchmarks.speed`, one file each; each answers plain values, to be kept as JSON."""
