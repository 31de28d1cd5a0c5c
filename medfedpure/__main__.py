"""`python -m medfedpure` is the command `medfedpure`."""

from medfedpure.cli import main

main()
