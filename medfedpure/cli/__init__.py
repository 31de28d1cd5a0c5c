"""The `medfedpure` command. Nothing heavy is imported before a command that needs it runs."""

from __future__ import annotations

import errno
import io
import sys
import traceback

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EIO)


def main() -> None:
    """Run the command line; errors that we raise on purpose, and those of the disk, are shown as one line."""
    import click

    from medfedpure.cli.app import app
    from medfedpure.cli.shown import Terminal, json_alone, shown
    from medfedpure.core.errors import MedFedPureError

    words = sys.argv[1:]
    verbose = "--verbose" in words and words[0] != "check"  # which has an option of that name
    if verbose:  # wherever it stands
        words = ["--verbose", *(word for word in words if word != "--verbose")]
    try:
        with json_alone("--json" in words):
            code = app(words, standalone_mode=False)
    except click.ClickException as error:
        if isinstance(error, click.UsageError) and error.ctx is not None:
            error.ctx.color = True  # nothing is to be stripped: all is shown
        error.show(said := io.StringIO())
        sys.stderr.write(shown(said.getvalue()))
        sys.exit(error.exit_code)
    except click.Abort:
        Terminal(stderr=True).say("stopped")
        sys.exit(130)
    except (MedFedPureError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _OF_THE_DISK and not isinstance(error, MedFedPureError):
            raise
        console = Terminal(stderr=True)
        if verbose:
            console.say("".join(traceback.format_exception(error)))
        console.print("error", style="bold red", end="")
        console.say(f": {type(error).__name__}: {error}")
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


__all__ = ["main"]
