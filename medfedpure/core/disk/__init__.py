"""How things get onto a disk and off it: whole, and shared between processes."""
