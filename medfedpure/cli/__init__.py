"""The `medfedpure` command. Nothing heavy is imported before a command that needs it runs."""

from __future__ import annotations

import errno
import io
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

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
        with _warnings_in_words(), json_alone("--json" in words):
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


@contextmanager
def _warnings_in_words() -> Iterator[None]:
    """Our own warnings as a sentence, without the line of code that raised them; those of others as Python has them."""
    before = warnings.formatwarning

    def told(message: Warning | str, category: type[Warning], *where: object, **more: object) -> str:
        from medfedpure.cli.shown import shown

        if category.__module__ == "medfedpure.core.errors":
            return f"warning: {shown(str(message))}\n"
        return before(message, category, *where, **more)  # type: ignore[arg-type]

    warnings.formatwarning = told
    try:
        yield
    finally:
        warnings.formatwarning = before


__all__ = ["main"]
