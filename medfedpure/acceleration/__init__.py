"""How networks are computed faster: compiled for a few sizes of a batch, no device asked for what the host knows."""
