"""Every client's classifier against every client's defence: what an attacker inside a federation can use.

Attacks are crafted on one client's bare classifier, on the victim's own test images, and replayed on the victim's
defence (the transfers of Papernot et al. 2016, arXiv 1605.07277, between personalized models).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from medfedpure.core.attack import Norm
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.verdict import ABSTAINED
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.cascade import chunks
from medfedpure.evaluation.readings import Said, reading_of
from medfedpure.evaluation.records import TransferResult
from medfedpure.evaluation.store import Store
from medfedpure.parallel.jobs import Job, Task, once

Victims = Mapping[str, tuple[DefendedClassifier, ImageDataset]]
"""Defences by client, and the benign images that each is attacked on."""

KEPT = "all pairs"


@dataclass(frozen=True)
class Paired:
    """What is said of some of a victim's images.

    Attributes:
        attack: in words.
        wrong: where the bare classifier is.
        said: by the defence.
    """

    attack: str
    wrong: list[bool]
    said: Said


@dataclass(frozen=True)
class Crossing:
    """How the pairs are attacked and read.

    Attributes:
        victims: the clients.
        norm: of the evaluation.
        batch_size: images of a chunk.
        store: of finished pairs.
        say: is told what happens.
    """

    victims: Victims
    norm: Norm
    batch_size: int
    store: Store
    say: Callable[[str], None]

    def jobs(self, eps: Sequence[float]) -> list[Job[TransferResult]]:
        """Every victim without an attack, then under those crafted on every client's classifier, its own included."""
        found = []
        for victim in self.victims:
            found.append(self._pair(None, victim, 0.0))
            found += [self._pair(other, victim, float(size)) for size in eps for other in self.victims]
        return found

    def _pair(self, crafted_on: str | None, victim: str, eps: float) -> Job[TransferResult]:
        """One attacker and one victim, at one eps."""
        label = pair_label(crafted_on, victim, self.norm, eps)
        kept = self.store.load(KEPT, label)
        if kept is not None:
            return TransferResult(**kept[0]["result"])
        data = self.victims[victim][1]
        pieces = chunks(torch.arange(len(data)), self.batch_size)
        told = None
        if crafted_on is not None:
            told = once(lambda: self.say(f"{victim}: crafted on {crafted_on}, {self.norm} {eps:g}"))
        tasks = [Task("pair", (victim, crafted_on, eps, places), begins=told) for _, places in pieces]
        parts: list[Paired] = yield tasks
        reading = reading_of([part.said for part in parts], data.labels)
        result = TransferResult(
            crafted_on=crafted_on,
            victim=victim,
            norm=self.norm,
            eps=eps,
            attack=parts[0].attack,
            images=len(data),
            bare_fooled=sum(sum(part.wrong) for part in parts),
            fooled=int(reading.fooled(data.labels).sum()),
            refused=reading.verdicts[0].count(ABSTAINED),
        )
        self.store.keep({"result": result.model_dump()}, {}, KEPT, label)
        return result


def pair_label(crafted_on: str | None, victim: str, norm: Norm, eps: float) -> str:
    """What a pair is kept under, and its seed made from."""
    return f"{crafted_on} on {victim} {norm} {eps!r}"
