"""Work of one process shared among several, on the CPU or one a device, with equal answers."""
