"""The report of a run, and of rounds across clients."""
