"""The report of verdicts on files."""
