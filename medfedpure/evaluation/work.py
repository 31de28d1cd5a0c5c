"""What one process does of an evaluation, a chunk of images at a time: equal wherever and whenever it is done.

A chunk are the images whose places in the data give one number when they are divided by the batch size. It is attacked
by itself, and the noise of a defence begins anew with it. So no result depends on who works beside, on what was done
before, or on how a cascade spares images of other chunks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from medfedpure.core.attack import Attack, Budget, Norm, audit
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import AuditError, MissingExtraError, MissingRequirementError, UnknownPluginError
from medfedpure.core.registry import create
from medfedpure.core.results import device_of, on_cpu
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.verdict import as_they_answer, fooled, verdicts_of
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.cost import Cost, foresee_each
from medfedpure.evaluation.extra import extra_rungs, within
from medfedpure.evaluation.ladder import PROBED, Preset, Rung, checks, replayed_options, rungs
from medfedpure.evaluation.pairs import Paired, Victims, pair_label
from medfedpure.evaluation.readings import Said, hear
from medfedpure.evaluation.records import RungResult
from medfedpure.evaluation.self_checks import probe
from medfedpure.evaluation.store import digest_of, digest_of_attack, digest_of_network
from medfedpure.evaluation.views import is_stochastic

T = TypeVar("T")
CONTROL = "uniform noise"


@dataclass(frozen=True)
class Given:
    """All that an evaluation is made from; equal in every process.

    Attributes:
        arms: defences by name.
        data: the images that are attacked.
        preset: how hard the attackers try.
        norm: "linf" or "l2".
        sizes: perturbation sizes, the first that of the self-checks.
        seed: of attacks and of readings.
        batch_size: images of a chunk.
        attackers: other models by name.
        extra: further attacks by name.
        reference: benign images that attacks may learn from.
        clients: of a federation, with the images that each is attacked on.
    """

    arms: Mapping[str, DefendedClassifier]
    data: ImageDataset
    preset: Preset
    norm: Norm
    sizes: Sequence[float]
    seed: int
    batch_size: int
    attackers: Mapping[str, nn.Module]
    extra: Mapping[str, Attack]
    reference: ImageDataset | None
    clients: Victims

    def everyone(self) -> list[nn.Module]:
        """Defences and models."""
        return [*self.arms.values(), *self.attackers.values(), *(chain for chain, _ in self.clients.values())]


@dataclass(frozen=True)
class Crafted:
    """What an attack made of the images at some places.

    Attributes:
        places: `(M,)` int64, in rising order.
        words: the result without a reading; why there is none where `images` is None.
        images: `(M, C, H, W)` on the CPU.
    """

    places: Tensor
    words: RungResult
    images: Tensor | None

    def at(self, places: Tensor) -> Crafted:
        """Of some of these images, at `(M,)` places; all in all it took as long."""
        index = torch.searchsorted(self.places, places)
        if self.images is None or len(index) == len(self.places):
            return self
        return Crafted(places, _picked(self.words, index), self.images[index])

    def beside(self, other: Crafted) -> Crafted:
        """With what was made of other images by the same attack."""
        assert self.images is not None
        assert other.images is not None
        places, order = torch.cat([self.places, other.places]).sort()
        words = joined([self.words, other.words])
        return Crafted(places, _picked(words, order), torch.cat([self.images, other.images])[order])


@dataclass(frozen=True)
class Attacked:
    """What an attack made of images, those made before included, and what the chain said of those asked about."""

    made: Crafted
    said: Said | None


@dataclass(frozen=True)
class Probed:
    """Why a defence's attacks are meaningless, where they are, and the precision and noise that it computes with."""

    reasons: list[str]
    precision: str
    noise: str


class Work:
    """What processes hold of an evaluation.

    Args:
        given: what it is made from.
    """

    def __init__(self, given: Given) -> None:
        self.given = given
        here = given.reference is not None
        self.plans = {
            name: [
                rung
                for size in given.sizes
                for rung in (
                    *rungs(chain, given.preset, given.norm, size, given.attackers),
                    *extra_rungs(chain, given.preset, given.norm, size, given.extra, fitted_here=here),
                )
            ]
            for name, chain in given.arms.items()
        }
        self.tests = {
            name: checks(chain, given.preset, given.norm, given.sizes[0]) for name, chain in given.arms.items()
        }
        self._rungs = {
            (name, rung.label()): rung for name in given.arms for rung in (*self.plans[name], *self.tests[name])
        }
        self._fitted: dict[tuple[str, str], Attack] = {}

    def __reduce__(self) -> tuple[type[Work], tuple[Given]]:
        """Rungs are made again: they hold functions, which do not travel."""
        return Work, (self.given,)

    def arrive(self, device: torch.device) -> None:
        """Move all models to a device."""
        for model in self.given.everyone():
            model.to(device)

    def identity(self) -> dict[str, Any]:
        """What tells these models from others, as they compute where they are."""
        g = self.given
        found: dict[str, Any] = {
            "arms": {name: digest_of(chain) for name, chain in g.arms.items()},
            "attackers": {name: digest_of_network(model) for name, model in g.attackers.items()},
        }
        if g.clients:
            found["federation"] = {name: [digest_of(one), own.fingerprint()] for name, (one, own) in g.clients.items()}
        if g.extra:
            found["extra_attacks"] = {name: digest_of_attack(attack) for name, attack in g.extra.items()}
        return found

    def foresee(self) -> list[Cost]:
        """What each defence takes at the most, and last all pairs of a federation."""
        g = self.given
        shared: dict[str, Any] = {"federation": g.clients, "batch_size": g.batch_size, "seed": g.seed}
        return foresee_each(g.arms.values(), g.data.images, g.preset, g.norm, list(g.sizes), g.attackers, **shared)

    def draws(self, name: str) -> int:
        """Readings of each image by a defence."""
        return self.given.preset.draws if is_stochastic(self.given.arms[name]) else 1

    def clean(self, name: str, places: Tensor) -> tuple[Said, list[bool]]:
        """What a defence says of benign images at `(M,)` places, and where its bare classifier is wrong."""
        chain, some = self.given.arms[name], self.given.data.select(places)
        images = some.images.to(device_of(chain))
        wrong = fooled(verdicts_of(chain.classifier, images, batch_size=self.given.batch_size).cpu(), some.labels)
        return self._heard(name, places, some.images, self.draws(name)), wrong.tolist()

    def control(self, name: str, eps: float, places: Tensor) -> tuple[Said, Tensor]:
        """What it says of uniform noise of that size, and the images `(M, C, H, W)` with it."""
        g, some = self.given, self.given.data.select(places)
        noise = 2 * Streams(derive_seed(g.seed, CONTROL), some.ids).uniform(some.image_shape, stage="control") - 1
        if g.norm == "l2":
            noise = noise / noise.flatten(1).norm(dim=1)[:, None, None, None]
        images = (some.images + eps * noise).clamp(0, 1)
        return self._heard(name, places, images, self.draws(name)), images

    def probe(self, name: str) -> Probed:
        """What makes attacks on a defence meaningless, and how it computes."""
        g, chain = self.given, self.given.arms[name]
        few = g.data.select(torch.arange(min(PROBED, g.preset.checked, len(g.data))))
        images, labels = few.images.to(device_of(chain)), few.labels.to(device_of(chain))
        reasons = probe(chain, images, labels, few.ids, seed=derive_seed(g.seed, "probe"))
        precision = "bfloat16" if chain.acceleration.autocast else "float32"
        return Probed(reasons, precision, chain.acceleration.noise)

    def learns(self, name: str, label: str) -> bool | RungResult:
        """Whether an attack learns from its batch, and so must meet all images at once; or why there is no attack."""
        rung = self._rungs[name, label]
        return _tried(rung, lambda: self._ready(name, rung).learns_from_batch)

    def attack(
        self, name: str, label: str, places: Tensor, number: int, draws: int, before: Crafted | None
    ) -> Attacked:
        """One attack on the images of a chunk, and what the defence says of them.

        Args:
            name: of the defence.
            label: of the rung.
            places: `(M,)` of the images.
            number: of the chunk.
            draws: readings of each image.
            before: what was made of some of them, or of others of the chunk; it is not made again.
        """
        rung, made = self._rungs[name, label], before
        missing = places if before is None else places[~torch.isin(places, before.places)]
        if len(missing):
            new = _tried(rung, lambda: self._crafted(name, rung, missing, number))
            if isinstance(new, RungResult):
                return Attacked(Crafted(places, new, None), None)
            made = new if before is None else before.beside(new)
        assert made is not None
        own = made.at(places)
        assert own.images is not None
        return Attacked(made, self._heard(name, places, own.images, draws))

    def pair(self, victim: str, crafted_on: str | None, eps: float, places: Tensor) -> Paired:
        """What a client's defence and bare classifier say of `(M,)` images that another client's was attacked on."""
        g = self.given
        chain, data = g.clients[victim]
        some, attack, device = data.select(places), "none", device_of(chain)
        images = some.images
        if crafted_on is not None:
            seed = derive_seed(g.seed, pair_label(crafted_on, victim, g.norm, eps))
            model, options = g.clients[crafted_on][0].classifier, replayed_options(g.preset, g.norm, eps)
            there = images.to(device_of(model)), some.labels.to(device_of(model))
            found = on_cpu(create("attack", "pgd_eot", **options)(model, *there, streams=Streams(seed, some.ids)))
            images, attack = found.images, found.description
        bare = verdicts_of(chain.classifier, images.to(device), batch_size=g.batch_size).cpu()
        seed = derive_seed(g.seed, "all pairs", "read")
        said = hear(chain, images.to(device), some.ids, seed=seed, draws=1, batch_size=g.batch_size)
        return Paired(attack, fooled(bare, some.labels).tolist(), said)

    # -- one chunk -------------------------------------------------------------------------------------------------

    def _heard(self, name: str, places: Tensor, images: Tensor, draws: int) -> Said:
        g, chain = self.given, self.given.arms[name]
        seed, ids = derive_seed(g.seed, name, "read"), g.data.ids[places]
        return hear(chain, images.to(device_of(chain)), ids, seed=seed, draws=draws, batch_size=g.batch_size)

    def _seed(self, name: str, rung: Rung) -> int:
        """What does not depend on the chain has one for all that share a classifier."""
        return derive_seed(self.given.seed, "all" if rung.kind == "replayed" else name, rung.label())

    def _ready(self, name: str, rung: Rung) -> Attack:
        """The attack, where it can be made and the defence shows what it wants to see."""
        attack = self._attack(name, rung)
        rung.view(self.given.arms[name])
        return attack

    def _attack(self, name: str, rung: Rung) -> Attack:
        """Made, and fitted once in each process where there is a reference."""
        key, g, chain = (name, rung.label()), self.given, self.given.arms[name]
        if key in self._fitted:
            return self._fitted[key]
        portion = {"batch_size": g.batch_size} if "batch_size" in rung.options else {}
        attack = rung.make() if rung.make else create("attack", rung.attack, **{**rung.options, **portion})
        if g.reference is not None and not (attack.needs_fit and attack.fitted):
            seed = self._seed(name, rung)
            with chain.noise_sequence(derive_seed(seed, "fit")), as_they_answer(*g.attackers.values()):
                attack.fit(g.reference, view=rung.view(chain), seed=seed)
            self._fitted[key] = attack
        return attack

    def _crafted(self, name: str, rung: Rung, places: Tensor, number: int) -> Crafted:
        chain, some, seed = self.given.arms[name], self.given.data.select(places), self._seed(name, rung)
        start = time.perf_counter()
        attack, budget = self._attack(name, rung), Budget(rung.norm, rung.eps)
        streams, device = Streams(seed, some.ids, chain.acceleration.noise), device_of(chain)
        with chain.noise_sequence(derive_seed(seed, number)), as_they_answer(*self.given.attackers.values()):
            view = rung.view(chain)
            found = on_cpu(attack(view, some.images.to(device), some.labels.to(device), streams=streams))
        if rung.make is not None and attack.budget() is None:
            found = within(found, some.images, budget)
        audit(some.images, found.images, budget, who=found.description)
        told = {"view": view.name, "attack": found.description, "seconds": time.perf_counter() - start}
        words = {**blank(rung), **told, "success": found.success.tolist(), "distance": found.distance.tolist()}
        return Crafted(places, RungResult(**words), found.images)


def blank(rung: Rung) -> dict[str, Any]:
    """What a result says before there is one."""
    found: dict[str, Any] = {"rung": rung.name, "kind": rung.kind, "norm": rung.norm, "eps": rung.eps}
    return {**found, "view": "", "attack": rung.attack, "eot": int(rung.options.get("eot", 1)), "seconds": 0.0}


def joined(parts: Sequence[RungResult]) -> RungResult:
    """One result, without a reading, of one attack's results on different images, in their order.

    What was noticed while it ran is said once where it is said alike.
    """
    head = parts[0].attack.partition("; ")[0]
    notes = dict.fromkeys(note for part in parts for note in part.attack.split("; ")[1:])
    return parts[0].model_copy(
        update={
            "attack": "; ".join([head, *notes]),
            "seconds": sum(part.seconds for part in parts),
            "success": [won for part in parts for won in part.success],
            "distance": [size for part in parts for size in part.distance],
        }
    )


def _picked(words: RungResult, index: Tensor) -> RungResult:
    places = index.tolist()
    update = {"success": [words.success[k] for k in places], "distance": [words.distance[k] for k in places]}
    return words.model_copy(update=update)


def _tried(rung: Rung, act: Callable[[], T]) -> T | RungResult:
    """What it gives, or a result that says why there is none."""
    try:
        return act()
    except (MissingRequirementError, MissingExtraError, UnknownPluginError) as error:
        return RungResult(**blank(rung), skipped=str(error))
    except AuditError as error:
        return RungResult(**blank(rung), problem=f"budget violated: {error}")
