"""Readers: files of scans and pictures to pixels, one file for each format."""
