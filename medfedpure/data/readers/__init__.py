"""Readers: files of scans and pictures to pixels, each in a file of its own; no data set knows a format."""
