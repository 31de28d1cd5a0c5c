"""The `medfedpure` command. Nothing heavy is imported before a command that needs it runs."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; errors that we raise on purpose are shown as one line."""
    from medfedpure.cli.app import app
    from medfedpure.core.errors import MedFedPureError

    try:
        app()
    except MedFedPureError as error:
        from rich.console import Console

        Console(stderr=True).print(f"[bold red]error[/]: {type(error).__name__}: ", end="")
        sys.stderr.write(f"{error}\n")
        sys.exit(1)


__all__ = ["main"]
