"""Every client's classifier against every client's defence: what an attacker inside a federation can use.

Attacks are crafted on one client's bare classifier, on the victim's own test images, and replayed on the victim's
defence (the transfers of Papernot et al. 2016, arXiv 1605.07277, between personalized models).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from medfedpure.core.attack import Norm
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.registry import create
from medfedpure.core.results import device_of, on_cpu
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.verdict import ABSTAINED, fooled, verdicts_of
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.ladder import Preset, replayed_options
from medfedpure.evaluation.readings import read
from medfedpure.evaluation.records import TransferResult
from medfedpure.evaluation.store import Store

Victims = Mapping[str, tuple[DefendedClassifier, ImageDataset]]
"""Defences by client, and the benign images that each is attacked on."""

KEPT = "all pairs"


@dataclass(frozen=True)
class Crossing:
    """How the pairs are attacked and read.

    Attributes:
        preset, norm, seed: of the evaluation; every attack is that of its replayed rungs.
        batch_size: images at a time.
        store: of finished pairs.
        say: is told what happens.
    """

    preset: Preset
    norm: Norm
    seed: int
    batch_size: int
    store: Store
    say: Callable[[str], None]

    def all_pairs(self, victims: Victims, eps: Sequence[float]) -> list[TransferResult]:
        """Every victim without an attack, then under those crafted on every client's classifier, its own included."""
        found = []
        for victim in victims:
            found.append(self.pair(victims, None, victim, 0.0))
            found += [self.pair(victims, other, victim, float(size)) for size in eps for other in victims]
        return found

    def pair(self, victims: Victims, crafted_on: str | None, victim: str, eps: float) -> TransferResult:
        """One attacker and one victim, at one eps."""
        label = f"{crafted_on} on {victim} {self.norm} {eps!r}"
        kept = self.store.load(KEPT, label)
        if kept is not None:
            return TransferResult(**kept[0]["result"])
        chain, data = victims[victim]
        images, attack = data.images, "none"
        if crafted_on is not None:
            self.say(f"{victim}: crafted on {crafted_on}, {self.norm} {eps:g}")
            options = replayed_options(self.preset, self.norm, eps)
            images, attack = _crafted(victims[crafted_on][0].classifier, data, options, derive_seed(self.seed, label))
        counts = _counts(chain, data, images, derive_seed(self.seed, KEPT, "read"), self.batch_size)
        result = TransferResult(
            crafted_on=crafted_on,
            victim=victim,
            norm=self.norm,
            eps=eps,
            attack=attack,
            images=len(data),
            **counts,
        )
        self.store.keep({"result": result.model_dump()}, {}, KEPT, label)
        return result


def _crafted(model: nn.Module, data: ImageDataset, options: dict[str, Any], seed: int) -> tuple[Tensor, str]:
    device, attack = device_of(model), create("attack", "pgd_eot", **options)
    found = on_cpu(attack(model, data.images.to(device), data.labels.to(device), streams=Streams(seed, data.ids)))
    return found.images, found.description


def _counts(
    chain: DefendedClassifier, data: ImageDataset, images: Tensor, seed: int, batch_size: int
) -> dict[str, int]:
    """How many images the bare classifier misreads, and how many the defence misreads or refuses."""
    images = images.to(device_of(chain))
    bare = verdicts_of(chain.classifier, images, batch_size=batch_size).cpu()
    reading = read(chain, images, data.ids, data.labels, seed=seed, draws=1, batch_size=batch_size)
    return {
        "bare_fooled": int(fooled(bare, data.labels).sum()),
        "fooled": int(reading.fooled(data.labels).sum()),
        "refused": reading.verdicts[0].count(ABSTAINED),
    }
