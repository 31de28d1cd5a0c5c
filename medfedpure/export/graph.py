"""What becomes one file: a computation in torch, what goes in and comes out, and what is known of both."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.detector import NoisePredictor
from medfedpure.core.errors import InputError
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import device_of
from medfedpure.core.streams import Streams
from medfedpure.core.verdict import as_they_answer
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.images import ImageFacts
from medfedpure.export.facts import facts_of_classifier, facts_of_defence, facts_of_noise
from medfedpure.export.refusals import check_fixed

Shape = tuple[int, int, int]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Graph:
    """A computation that torch.export can follow, and what its file is compared with.

    Attributes:
        module: on the CPU, from the inputs to a tuple of the outputs.
        inputs, outputs: their names, in order.
        examples: inputs of N images, always the same.
        answer: what medfedpure itself says of such inputs, a tensor for each output.
        facts: what the file says of itself.
        flags: `flagged` of scores `(N,)`, where there is a threshold.
        bare: the classifier alone, where a detector stands beside it.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    examples: Callable[[int], tuple[Tensor, ...]]
    answer: Callable[..., tuple[Tensor, ...]]
    facts: Mapping[str, Any]
    flags: Callable[[Tensor], Tensor] | None = None
    bare: Graph | None = None


def graph_of(what: nn.Module, image_shape: Shape | None = None) -> Graph:
    """The graph of a classifier, a defence, or the noise predictor of a diffusion purifier.

    Args:
        what: a ClassifierModel, a DefendedClassifier, or a purifier with `predict_noise`; it stays as it is.
        image_shape: (C, H, W), where `what` does not know it: a purifier, or a defence around a module of one's own.

    Raises:
        InputError: something else, or a shape that is missing or another than what it was built for.
        ConfigError: a defence that is no fixed computation; the text says which part, why, and what to do.
        NotFittedError, NotCalibratedError: a part is not ready.
    """
    if isinstance(what, DefendedClassifier):
        return _of_defence(what, image_shape)
    if isinstance(what, ClassifierModel):
        return _of_classifier(what, image_shape)
    if isinstance(what, Purifier) and isinstance(what, NoisePredictor) and isinstance(what, nn.Module):
        return _of_noise_predictor(what, image_shape)
    if isinstance(what, Purifier):
        raise InputError(
            f"the purifier {what.name!r} has no noise predictor, and a purifier itself is not exported: the numbers of "
            "its steps depend on the images, and most draw noise. Export the classifier"
        )
    raise InputError(
        "a ClassifierModel, a DefendedClassifier or a diffusion purifier is exported; got "
        f"{type(what).__name__}: wrap a module of your own, DefendedClassifier(model, policy='none'), and pass "
        "image_shape=(C, H, W)"
    )


class _Classified(nn.Module):
    """Images to logits `(N, K)`."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.classifier(images).to(images.dtype),)


class _Defended(nn.Module):
    """Images to logits `(N, K)`, scores `(N,)` and, with a threshold, flags `(N,)`, as `predict` finds them."""

    def __init__(self, chain: DefendedClassifier) -> None:
        super().__init__()
        assert chain.detector is not None
        self.classifier, self.detector = chain.classifier, chain.detector
        self.lent = chain.purifier if "denoiser" in chain.detector.requires else None
        self.context = chain.context() if self.lent is not None else replace(chain.context(), denoiser=None)
        self.calibration = chain.calibration
        if chain.calibration is not None:
            self.threshold = chain.calibration.threshold()
            chain.calibration.lowered(torch.zeros(1))  # keeps a number of its own, which cannot be found while tracing

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits = self.classifier(images).to(images.dtype)
        own = replace(self.context, logits=logits)
        score = self.detector.score(images, context=own, streams=Streams(0, torch.arange(1)))  # it draws nothing
        if self.calibration is None:
            return logits, score
        return logits, score, self.calibration.lowered(score) > self.threshold


class _Noise(nn.Module):
    """Images and timesteps `(N,)` to the noise `(N, C, H, W)` in them."""

    def __init__(self, purifier: nn.Module) -> None:
        super().__init__()
        self.purifier = purifier

    def forward(self, noisy: Tensor, timestep: Tensor) -> tuple[Tensor, ...]:
        assert isinstance(self.purifier, NoisePredictor)
        return (self.purifier.predict_noise(noisy, timestep),)


def _of_classifier(model: ClassifierModel, image_shape: Shape | None) -> Graph:
    shape = _agreed(image_shape, (model.in_channels, model.image_size, model.image_size), "this classifier")
    model = _on_cpu(model)
    module = _Classified(model)

    def answer(images: Tensor) -> tuple[Tensor, ...]:
        with as_they_answer(model):
            return (model(images),)

    return Graph(
        module=module,
        inputs=("images",),
        outputs=("logits",),
        examples=lambda count: (images_of(shape, count, dtype_of(module)),),
        answer=answer,
        facts=facts_of_classifier(model, shape),
    )


def _of_defence(chain: DefendedClassifier, image_shape: Shape | None) -> Graph:
    chain = _on_cpu(chain)
    check_fixed(chain)
    inner = chain.classifier
    known = None if chain.image_facts is None else chain.image_facts.image_shape
    if known is None and isinstance(inner, ClassifierModel):
        known = (inner.in_channels, inner.image_size, inner.image_size)
    shape = _agreed(image_shape, known, "this defence")
    dtype = dtype_of(chain.classifier)
    bare = Graph(
        module=_Classified(chain.classifier),
        inputs=("images",),
        outputs=("logits",),
        examples=lambda count: (images_of(shape, count, dtype),),
        answer=lambda images: (chain.predict(images, seed=0).logits,),
        facts=facts_of_defence(chain, shape),
    )
    if chain.detector is None:
        return bare
    chain.detector.check_fitted()
    calibration = chain.calibration

    def answer(images: Tensor) -> tuple[Tensor, ...]:
        found = chain.predict(images, seed=0)
        assert found.scores is not None
        return (found.logits, found.scores, found.flagged)[: len(graph.outputs)]

    graph = replace(
        bare,
        module=_Defended(chain),
        outputs=("logits", "score") if calibration is None else ("logits", "score", "flagged"),
        answer=answer,
        flags=None if calibration is None else calibration.flagged,
        bare=bare,
    )
    return graph


def _of_noise_predictor(purifier: Purifier, image_shape: Shape | None) -> Graph:
    assert isinstance(purifier, nn.Module)
    purifier.check_fitted()
    shape = _agreed(image_shape, None, f"the purifier {purifier.name!r}")
    facts = facts_of_noise(purifier, shape)
    own = _on_cpu(purifier)
    module, dtype = _Noise(own), dtype_of(own)
    deepest = facts["deepest_timestep"] or 1.0

    def examples(count: int) -> tuple[Tensor, ...]:
        return images_of(shape, count, dtype), torch.linspace(1.0, deepest, count, dtype=dtype)

    def answer(noisy: Tensor, timestep: Tensor) -> tuple[Tensor, ...]:
        with as_they_answer(module):
            return module(noisy, timestep)  # type: ignore[no-any-return]

    return Graph(module, ("noisy", "timestep"), ("noise",), examples, answer, facts)


def images_of(shape: Shape, count: int, dtype: torch.dtype) -> Tensor:
    """Images `(N, C, H, W)` in [0, 1], always the same: noise, smooth noise, a ramp, black, white, and again."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(count, *shape, generator=generator)
    coarse = torch.rand(count, shape[0], 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear", align_corners=False)
    ramp = torch.linspace(0, 1, shape[2]).expand(count, *shape)
    kinds = torch.stack((noise, smooth, ramp, torch.zeros_like(noise), torch.ones_like(noise)))
    places = torch.arange(count)
    return kinds[places % len(kinds), places].to(dtype)


def dtype_of(module: nn.Module) -> torch.dtype:
    """Of a module's floating parameters; float32 where it has none."""
    return next((one.dtype for one in module.parameters() if one.is_floating_point()), torch.float32)


def _on_cpu(module: M) -> M:
    """The module itself, or a copy of one that is elsewhere."""
    return module if device_of(module).type == "cpu" else copy.deepcopy(module).cpu()


def _agreed(asked: Shape | None, known: Shape | None, who: str) -> Shape:
    """The shape of images, from who asks and from what is asked for."""
    if asked is None and known is None:
        raise InputError(f"{who} does not know the size of its images: pass image_shape=(C, H, W), such as (1, 64, 64)")
    if asked is not None and known is not None and tuple(asked) != known:
        raise InputError(f"{who} is for images of shape {known}, and image_shape={asked} was given: leave it out")
    return ImageFacts(tuple(known or asked or ())).image_shape  # type: ignore[arg-type]
