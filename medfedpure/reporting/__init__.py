"""Reports: pages, tables and pictures of what was found; nothing is computed here that a result does not hold."""
