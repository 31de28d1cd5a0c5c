"""torch.export: the bytes of a .pt2 file, and what the program in them answers."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram

from medfedpure.export.facts import KEY, as_text
from medfedpure.export.graph import Graph

FACTS = f"{KEY}.json"
"""The facts among the extra files."""


def to_bytes(program: ExportedProgram, graph: Graph) -> bytes:
    """The file, its facts in the extra file "medfedpure.json"."""
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={FACTS: as_text(graph.facts)})
    return content.getvalue()


def answers(content: bytes, graph: Graph, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What the program says when it is loaded again."""
    del graph
    with torch.no_grad():
        return list(torch.export.load(io.BytesIO(content)).module()(*inputs))


def runtime() -> str:
    """Name and version of what .pt2 files are checked in."""
    return f"torch {torch.__version__}"
