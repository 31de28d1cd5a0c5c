"""`medfedpure export`: a saved classifier or defence as one file for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfedpure.cli.options import OwnModule
from medfedpure.cli.shown import Terminal, say_json
from medfedpure.cli.threads import use_threads


def export(
    path: Annotated[Path, typer.Argument(help="A saved classifier, or a saved defence.")],
    out: Annotated[
        Path,
        typer.Option("--out", help="The file, .onnx or .pt2; one that is there is replaced after the check."),
    ],
    format: Annotated[
        str | None, typer.Option("--format", help="onnx, or torch for torch.export; default: as --out ends.")
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            "--part", help="Of a defence: defence, classifier, or purifier, whose noise predictor it is; default: all."
        ),
    ] = None,
    classifier: OwnModule = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the file says of itself, as JSON.")] = False,
) -> None:
    """Write a classifier, a noise predictor or a defence that leaves images as they are as one file, and check it."""
    from medfedpure.export.saved import load_part
    from medfedpure.export.write import export_model
    from medfedpure.job.own_module import own_module

    use_threads(1)
    model = None if classifier is None else own_module(classifier)
    what, shape = load_part(path, part, classifier=model)  # type: ignore[arg-type]
    found = export_model(what, out, format=format, image_shape=shape)  # type: ignore[arg-type]
    if as_json:
        say_json(found.facts)
        return
    Terminal().say(found.describe())
