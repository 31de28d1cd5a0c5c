"""What must hold before an evaluation starts: everyone answers logits, for every class of the images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from medfedpure.core.attack import ThreatView
from medfedpure.core.checks import check_classes, check_logits
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import DataError, InputError
from medfedpure.core.results import device_of
from medfedpure.core.verdict import as_they_answer
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.pairs import Victims

ASKED = 2
"""Images that everyone is asked about: enough to see that an answer has one row for each."""


def check_ready(
    chains: Mapping[str, DefendedClassifier], data: ImageDataset, attackers: Mapping[str, nn.Module], clients: Victims
) -> None:
    """Ask every defence and every attacker's model about two images.

    Raises:
        InputError: one that answers no finite logits, or has fewer classes than the images; the text names it.
        NotFittedError, NotCalibratedError: a defence is not ready.
    """
    for name, chain in chains.items():
        _check(f"the defence {name!r}", chain, data, data)
    for name, model in attackers.items():
        _check(f"the attacker {name!r}", model, data, data)
    for name, (chain, own) in clients.items():
        for _, others in clients.values():  # its classifier is attacked with their images too
            _check(f"the client {name!r}", chain, own, others)


@torch.no_grad()
def _check(who: str, model: nn.Module, data: ImageDataset, attacked: ImageDataset) -> None:
    images = data.select(torch.arange(min(ASKED, len(data)))).images.to(device_of(model))
    with _naming(who):
        logits = _logits(model, images)
        check_classes(int(attacked.labels.min()), int(attacked.labels.max()), logits.shape[1])


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    if isinstance(model, DefendedClassifier):
        with model.noise_sequence(0):
            return model.inspect(images, model.next_streams(len(images))).logits
    with as_they_answer(model):
        logits: Tensor = ThreatView(model)(images)
    check_logits(logits, len(images), values=True)
    return logits


@contextmanager
def _naming(who: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{who}: {error}") from error


def check_reference(reference: ImageDataset, attacked: ImageDataset) -> None:
    """Images that attackers may learn from are like those attacked, and none of them.

    Raises:
        DataError: they are not.
    """
    if reference.image_shape != attacked.image_shape:
        raise DataError(
            f"reference has images of shape {reference.image_shape}, and attacked are {attacked.image_shape}: an "
            "attacker learns from images like those that he attacks"
        )
    both = _contents(reference) & _contents(attacked)
    if both:
        raise DataError(f"reference holds {len(both)} of the images that are attacked: leave them out")


def _contents(data: ImageDataset) -> set[bytes]:
    return {hashlib.sha256(pixels.contiguous().numpy().tobytes()).digest() for pixels in data.pixels}
