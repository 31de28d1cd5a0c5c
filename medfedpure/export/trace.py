"""A graph followed by torch.export, for any number of images."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import torch
from torch.export import Dim, ExportedProgram, export

from medfedpure.core.errors import MissingRequirementError
from medfedpure.core.verdict import as_they_answer
from medfedpure.export.graph import Graph
from medfedpure.export.refusals import untraceable

LEAST_TORCH = (2, 14)
"""The oldest PyTorch that all tests of export ran with."""
_TRACED = 3
"""Images in the example: with one, torch.export would take their number for fixed."""


def check_torch(version: str = torch.__version__) -> None:
    """Raise MissingRequirementError under a PyTorch that export was not tested with."""
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST_TORCH:
        least = ".".join(map(str, LEAST_TORCH))
        raise MissingRequirementError(
            f"export needs PyTorch {least} or newer, and {version} is here: pip install 'torch>={least}'"
        )


def traced(graph: Graph) -> ExportedProgram:
    """The program of a graph, without the places in source files that torch notes beside every operation.

    Raises:
        ConfigError: a part computes outside torch, or in another way for other images; the text names it.
    """
    try:
        return _follow(graph)
    except Exception as error:  # of torch, and of parts that are not ours
        raise untraceable(_culprit(graph), error) from error


def largest_batch(program: ExportedProgram) -> int | None:
    """How many images a program takes at most; None = any number."""
    images = next(node for node in program.graph.nodes if node.name == program.graph_signature.user_inputs[0])
    symbol = str(images.meta["val"].shape[0])
    found = [str(limits.upper) for key, limits in program.range_constraints.items() if str(key) == symbol]
    return int(found[0]) if found and found[0].isdigit() else None


def _follow(graph: Graph) -> ExportedProgram:
    examples = graph.examples(_TRACED)
    several = tuple({0: Dim.DYNAMIC} for _ in examples)
    with torch.no_grad(), as_they_answer(graph.module), _quiet():
        program = export(graph.module, examples, dynamic_shapes=several, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _culprit(graph: Graph) -> str:
    """Which part cannot be followed."""
    if graph.bare is None:
        return f"the {graph.facts['holds']}"
    try:
        _follow(graph.bare)
    except Exception:  # the error that is told is the first one
        return "the classifier"
    return f"the detector {graph.facts['detector']['plugin']!r}"


@contextmanager
def _quiet() -> Iterator[None]:
    """No prints of half a graph, and no hints for torch's own developers: what is wrong is in the error."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export", "torch.fx.experimental")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
