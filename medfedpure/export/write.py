"""`export_model`: a classifier, a noise predictor or a defence as one file for other runtimes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from medfedpure.core.disk.whole import make_folder, write_bytes
from medfedpure.core.errors import ArtifactError, ConfigError
from medfedpure.export import onnx_file, torch_file
from medfedpure.export.facts import in_a_sentence
from medfedpure.export.graph import Graph, graph_of
from medfedpure.export.trace import check_torch, largest_batch, traced

Format = Literal["onnx", "torch"]
SUFFIXES: Mapping[str, Format] = {".onnx": "onnx", ".pt2": "torch"}
CHECKED = (1, 5)
"""Images at a time on which a file is compared with torch."""
TOLERANCE = {"score": 1e-5}
"""Of an output, of its largest value where that is above 1; as between batches of one image and of many."""
OTHERWISE = 1e-4
"""Of the other outputs: another runtime adds in another order."""


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: where it lies.
        format: "onnx" or "torch".
        facts: what it says of itself, as in the file.
        runtime: what it was checked in.
        difference: the largest one to medfedpure's own answers, of an output's largest value where that is above 1;
            flags are equal.
    """

    path: Path
    format: Format
    facts: Mapping[str, Any]
    runtime: str
    difference: float

    def describe(self) -> str:
        """Lines for people."""
        given, made = (", ".join(self.facts[key]) for key in ("inputs", "outputs"))
        return (
            f"{self.path}: {given} to {made}; checked in {self.runtime} on {sum(CHECKED)} images, where it "
            f"answers as medfedpure does within {self.difference:.1e}\n{in_a_sentence(self.facts)}"
        )

    def __str__(self) -> str:
        return self.describe()


def export_model(
    what: nn.Module,
    path: str | Path,
    *,
    format: Format | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> Exported:
    """Write a classifier, a noise predictor or a defence as one file that answers as it does, without medfedpure.

    Normalization and resizing are in the file, and any number of images goes in at once. Before it is kept, the file is
    run and compared with torch.

    Args:
        what: a ClassifierModel: images to logits. A DefendedClassifier that leaves images as they are (policy "none" or
            "abstain", so of the recipe "fast"): images to logits, and with a detector to score and flagged. A diffusion
            purifier such as "ddpm": noisy images and timesteps to the noise in them, no reverse process.
        path: the file; one that is there is replaced.
        format: "onnx" (extra `export`), or "torch" for a .pt2 file of torch.export; by default as the path ends.
        image_shape: (C, H, W), where `what` does not know it: a purifier, or a defence around a module of one's own.

    Returns:
        What was written, and how far its answers lie from medfedpure's own.

    Raises:
        ConfigError: it cannot be exported; the text says which part, why, and what to do.
        ArtifactError: the file would not answer as `what` does, or cannot be written.
        InputError: something else than these, or a shape that is missing.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed, or too old for this PyTorch.
        MissingRequirementError: PyTorch is older than export was tested with.
        NotFittedError, NotCalibratedError: a part is not ready.

    Example:
        ``medfedpure.export_model(model, "classifier.onnx")``
    """
    target = Path(path)
    chosen = format_of(target, format)
    check_torch()
    writer = onnx_file if chosen == "onnx" else torch_file
    if chosen == "onnx":
        onnx_file.check_packages()
    graph = graph_of(what, image_shape)
    expected = _expected(graph)
    program = traced(graph)
    most = largest_batch(program)
    graph = replace(graph, facts={**graph.facts, "largest_batch": most})
    content = writer.to_bytes(program, graph)
    difference = _compare(graph, expected, lambda inputs: writer.answers(content, graph, inputs), writer.runtime())
    make_folder(target.parent)
    write_bytes(target, content)
    return Exported(target, chosen, graph.facts, writer.runtime(), difference)


def format_of(path: Path, asked: Format | None) -> Format:
    """What a file is written as.

    Raises:
        ConfigError: no such format, or an ending that says nothing, or something else.
    """
    if asked is not None and asked not in get_args(Format):
        raise ConfigError(f"no format is named {asked!r}; the formats are {', '.join(get_args(Format))}")
    said = SUFFIXES.get(path.suffix.lower())
    if said is None and asked is None:
        raise ConfigError(f"{path.name} ends neither in .onnx nor in .pt2: name it so, or say format='onnx' or 'torch'")
    if said is not None and asked is not None and said != asked:
        raise ConfigError(f"{path.name} is named as one of format {said!r}, and {asked!r} was asked for: change one")
    return asked or said  # type: ignore[return-value]


Pair = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


@torch.no_grad()
def _expected(graph: Graph) -> list[Pair]:
    """Inputs, and what medfedpure answers to them; found before anything is traced, and so are errors of the parts."""
    pairs = []
    for count in CHECKED:
        inputs = graph.examples(count)
        pairs.append((inputs, graph.answer(*inputs)))
    return pairs


def _compare(
    graph: Graph, expected: Sequence[Pair], run: Callable[[Sequence[Tensor]], Sequence[Tensor]], runtime: str
) -> float:
    """The largest difference between a file's answers and those that are wanted, as `Exported` counts it.

    Raises:
        ArtifactError: it is too large, or a flag does not follow from the file's own score.
    """
    largest = 0.0
    for inputs, wanted in expected:
        try:
            found = dict(zip(graph.outputs, run(inputs), strict=True))
        except Exception as error:  # of the runtime
            text = next(iter(str(error).splitlines()), type(error).__name__)
            raise ArtifactError(
                f"{runtime} cannot run the file on {len(inputs[0])} images ({text[:300]}): nothing was written"
            ) from error
        for name, right in zip(graph.outputs, wanted, strict=True):
            if name == "flagged":
                assert graph.flags is not None
                if not torch.equal(found[name], graph.flags(found["score"])):
                    raise ArtifactError(f"in {runtime} `flagged` does not follow from `score`: nothing was written")
                continue
            off = _difference(found[name], right)
            scale = max(1.0, float(right.abs().max()))
            allowed = TOLERANCE.get(name, OTHERWISE) * scale
            if not off <= allowed:
                raise ArtifactError(
                    f"in {runtime} `{name}` differs by {off:.3g} from torch, and at most {allowed:.3g} is allowed, on "
                    f"{len(right)} images of the check: nothing was written. What the model computes depends on more "
                    "than its input, or its operations are computed otherwise there; try the other format"
                )
            largest = max(largest, off / scale)
    return largest


def _difference(found: Tensor, right: Tensor) -> float:
    """The largest difference of `(N, ...)`; infinity where the shapes differ."""
    if found.shape != right.shape:
        return float("inf")
    return float((found.double() - right.double()).abs().max())
