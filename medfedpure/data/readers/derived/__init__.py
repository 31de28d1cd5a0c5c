"""Files derived from scans: what a defence made of a square, put back to where it lies in the source, nobody named."""
