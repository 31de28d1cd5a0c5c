"""`medfedpure clean-cache`: remove the decoded images that a run has kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfedpure.cli.shown import Terminal


def clean_cache(run: Annotated[Path, typer.Argument(help="The output folder of `demo` or `run`.")]) -> None:
    """Remove the decoded images that a run has kept, and nothing else; evaluating it decodes them anew."""
    from medfedpure.job.folder import CACHE, clean_cache

    size = clean_cache(run)
    told = f"removed {run / CACHE}: {size / 2**20:.1f} MiB of images" if size else f"{run} keeps no images"
    Terminal().say(told)
