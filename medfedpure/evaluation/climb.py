"""One evaluation while it runs: every defence under its rungs, rung by rung, each kept as soon as it is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medfedpure.core.attack import Attack, Budget, Norm, ThreatView, audit
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import AuditError, MissingExtraError, MissingRequirementError, UnknownPluginError
from medfedpure.core.progress import track
from medfedpure.core.registry import create
from medfedpure.core.results import AttackResult, device_of, on_cpu
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.verdict import fooled, verdicts_of
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.cascade import Cascade
from medfedpure.evaluation.extra import within
from medfedpure.evaluation.ladder import PROBED, Preset, Rung, label
from medfedpure.evaluation.readings import Reading, read
from medfedpure.evaluation.records import ArmResult, RungResult, role
from medfedpure.evaluation.self_checks import compare, probe, skipped_chain
from medfedpure.evaluation.store import Store
from medfedpure.evaluation.views import is_stochastic

CONTROL = "uniform noise"


@dataclass
class _Replay:
    """A rung that does not depend on the chain, as far as its images `(N, C, H, W)` are crafted.

    Attributes:
        words: the result without its images.
        images, success, distance: of all N.
        known: `(N,)` bool, which of them.
    """

    words: RungResult
    images: Tensor
    success: Tensor
    distance: Tensor
    known: Tensor

    def add(self, places: Tensor, words: RungResult, images: Tensor) -> None:
        """What was crafted for the images at these places."""
        self.images[places], self.known[places] = images, True
        self.success[places], self.distance[places] = torch.tensor(words.success), torch.tensor(words.distance)
        self.words = self.words.model_copy(update={"seconds": self.words.seconds + words.seconds})

    def of(self, places: Tensor) -> tuple[RungResult, Tensor]:
        """The result of the images at these places."""
        own = {"success": self.success[places].tolist(), "distance": self.distance[places].tolist()}
        return self.words.model_copy(update=own), self.images[places]


class Climb:
    """The defences of one evaluation, one after another.

    Args:
        data: all images that are attacked.
        preset: how hard the attackers try.
        norm: "linf" or "l2".
        seed: of attacks and of readings.
        batch_size: images at a time.
        store: of finished rungs.
        say: is told what happens.
        reference: benign images that attacks may learn from.
        cascade: what is settled meets no further attack, see `medfedpure.evaluation.cascade`.
    """

    def __init__(
        self,
        data: ImageDataset,
        preset: Preset,
        norm: Norm,
        seed: int,
        batch_size: int,
        store: Store,
        say: Callable[[str], None],
        reference: ImageDataset | None = None,
        *,
        cascade: bool = True,
    ) -> None:
        self.data, self.preset, self.norm, self.seed = data, preset, norm, seed
        self.batch_size, self.store, self.say, self.reference = batch_size, store, say, reference
        self.always = min(preset.checked, len(data))
        self.met_by_all = self.always if cascade else None
        self.replays: dict[str, _Replay] = {}

    def arm(self, name: str, chain: DefendedClassifier, plan: Sequence[Rung], tests: Sequence[Rung]) -> ArmResult:
        """All of one defence."""
        draws = self.preset.draws if is_stochastic(chain) else 1
        clean, bare_wrong = self._clean(name, chain, draws)
        few = self.data.select(torch.arange(self.always))
        found = self._climbed(name, chain, plan, draws)
        found += [self._control(name, chain, eps, draws) for eps in dict.fromkeys(rung.eps for rung in plan)]
        every = torch.arange(self.always)
        checking = track(tests, f"{name}: checks", len(tests))
        compared = [self._rung(name, chain, rung, few, 1, every) for rung in checking]
        images, labels = few.images[:PROBED].to(device_of(chain)), few.labels[:PROBED].to(device_of(chain))
        reasons = probe(chain, images, labels, few.ids[:PROBED], seed=derive_seed(self.seed, "probe"))
        reasons += skipped_chain(chain, clean.purified, clean.flagged)
        return ArmResult(
            name=name,
            policy=chain.policy,
            parts=", ".join(f"{p.kind} {p.name}" for p in (chain.detector, chain.purifier) if p is not None),
            precision="bfloat16" if chain.acceleration.autocast else "float32",
            noise=chain.acceleration.noise,
            stochastic=is_stochastic(chain),
            bare_wrong=bare_wrong,
            clean=clean,
            rungs=found,
            checks=compared,
            unreliable=reasons + compare(found, compared, self.data.labels, is_stochastic(chain), self.met_by_all),
        )

    def _climbed(self, name: str, chain: DefendedClassifier, plan: Sequence[Rung], draws: int) -> list[RungResult]:
        """All rungs, in the order of the plan; they are climbed from the smallest eps to the largest."""
        cascade = Cascade(self.data.labels, self.data.positive, always=self.always, alone=self.met_by_all is None)
        found: dict[str, RungResult] = {}
        for rung in track(sorted(plan, key=lambda rung: rung.eps), f"{name}: attacks", len(plan)):
            result = self._rung(name, chain, rung, self.data, draws, cascade.met())
            if role(result) == "counted" and result.reading is not None:
                cascade.took(result.reading)
            found[rung.label()] = result
        return [found[rung.label()] for rung in plan]

    def _clean(self, name: str, chain: DefendedClassifier, draws: int) -> tuple[Reading, list[bool]]:
        kept = self.store.load(name, "clean")
        if kept is None:
            images = self.data.images.to(device_of(chain))
            wrong = fooled(verdicts_of(chain.classifier, images, batch_size=self.batch_size).cpu(), self.data.labels)
            reading = self._read(name, chain, self.data, self.data.images, draws)
            kept = ({"reading": reading.model_dump(), "bare_wrong": wrong.tolist()}, {})
            self.store.keep(*kept, name, "clean")
        return Reading(**kept[0]["reading"]), kept[0]["bare_wrong"]

    def _read(self, name: str, chain: DefendedClassifier, data: ImageDataset, images: Tensor, draws: int) -> Reading:
        seed = derive_seed(self.seed, name, "read")
        images = images.to(device_of(chain))
        return read(chain, images, data.ids, data.labels, seed=seed, draws=draws, batch_size=self.batch_size)

    def _rung(
        self, name: str, chain: DefendedClassifier, rung: Rung, data: ImageDataset, draws: int, places: Tensor
    ) -> RungResult:
        """One attack on the images at these places `(M,)`; what was kept of more images is kept."""
        kept = self.store.load(name, rung.label())
        if kept is not None:
            result = RungResult(**kept[0]["result"])
            if result.reading is None or set(places.tolist()) <= set(_places(result.reading)):
                return result
        result, places, images = self._craft(name, chain, rung, data, places)
        if images is not None and not result.problem:
            reading = self._read(name, chain, data.select(places), images, draws)
            own = None if len(places) == len(data) else places.tolist()
            result = result.model_copy(update={"reading": reading.model_copy(update={"places": own})})
        if not result.skipped:  # what was missing may be there next time
            attacked = {} if images is None else {"images": images}
            self.store.keep({"result": result.model_dump()}, attacked, name, rung.label())
        return result

    def _craft(
        self, name: str, chain: DefendedClassifier, rung: Rung, data: ImageDataset, places: Tensor
    ) -> tuple[RungResult, Tensor, Tensor | None]:
        """The attack, the images that it met, and what became of them.

        What does not depend on the chain is crafted once for all that share a classifier, for each image that one of
        them meets: its noise is the image's own, and not its batch's.
        """
        if rung.kind != "replayed":
            return self._attack(name, chain, rung, data, places)
        key = f"{rung.label()} {id(chain.classifier)}"
        replay = self.replays.get(key)
        missing = places if replay is None else places[~replay.known[places]]
        if replay is None or len(missing):
            result, met, images = self._attack(None, chain, rung, data, missing)
            if images is None:
                return result, places, None
            if replay is None:
                blank = torch.zeros(len(data), dtype=torch.bool)
                words = result.model_copy(update={"seconds": 0.0})
                replay = _Replay(words, data.images.clone(), blank, torch.zeros(len(data)), blank.clone())
                self.replays[key] = replay
            replay.add(met, result, images)
        result, images = replay.of(places)
        return result, places, images

    def _attack(
        self, name: str | None, chain: DefendedClassifier, rung: Rung, data: ImageDataset, places: Tensor
    ) -> tuple[RungResult, Tensor, Tensor | None]:
        """Craft; without a name for all defences around a classifier. What learns from its batch meets all images."""
        blank: dict[str, Any] = {"rung": rung.name, "kind": rung.kind, "norm": rung.norm, "eps": rung.eps}
        blank |= {"view": "", "attack": rung.attack, "eot": int(rung.options.get("eot", 1)), "seconds": 0.0}
        if rung.absent:
            return RungResult(**blank, skipped=rung.absent), places, None
        seed = derive_seed(self.seed, "all" if name is None else name, rung.label())
        start = time.perf_counter()
        try:
            portion = {"batch_size": self.batch_size} if "batch_size" in rung.options else {}
            options = {**rung.options, **portion}
            attack = create("attack", rung.attack, **options) if rung.make is None else rung.make()
            with chain.noise_sequence(seed):
                view = rung.view(chain)
                if self.reference is not None and not (attack.needs_fit and attack.fitted):
                    attack.fit(self.reference, view=view, seed=seed)
                places = torch.arange(len(data)) if attack.learns_from_batch else places
                self._tell(name, rung, len(places), len(data))
                some = data.select(places)
                found = self._made(attack, view, some, seed, chain)
            if rung.make is not None and attack.budget() is None:
                found = within(found, some.images, Budget(rung.norm, rung.eps))
            audit(some.images, found.images, Budget(rung.norm, rung.eps), who=found.description)
        except (MissingRequirementError, MissingExtraError, UnknownPluginError) as error:
            return RungResult(**blank, skipped=str(error)), places, None
        except AuditError as error:
            return RungResult(**blank, problem=f"budget violated: {error}"), places, None
        blank |= {"view": view.name, "attack": found.description, "seconds": time.perf_counter() - start}
        result = RungResult(**blank, success=found.success.tolist(), distance=found.distance.tolist())
        return result, places, found.images

    def _made(
        self, attack: Attack, view: ThreatView, data: ImageDataset, seed: int, chain: DefendedClassifier
    ) -> AttackResult:
        device, streams = device_of(chain), Streams(seed, data.ids, chain.acceleration.noise)
        return on_cpu(attack(view, data.images.to(device), data.labels.to(device), streams=streams))

    def _tell(self, name: str | None, rung: Rung, met: int, size: int) -> None:
        some = "" if met == size else f", {met} of {size} images"
        self.say(f"{'crafted once' if name is None else name}: {rung.label()}{some}")

    def _control(self, name: str, chain: DefendedClassifier, eps: float, draws: int) -> RungResult:
        """Uniform noise of the same size: who falls to it needs no attacker."""
        kept = self.store.load(name, label(CONTROL, self.norm, eps))
        if kept is not None:
            return RungResult(**kept[0]["result"])
        data = self.data
        noise = 2 * Streams(derive_seed(self.seed, CONTROL), data.ids).uniform(data.image_shape, stage="control") - 1
        if self.norm == "l2":
            noise = noise / noise.flatten(1).norm(dim=1)[:, None, None, None]
        images = (data.images + eps * noise).clamp(0, 1)
        result = RungResult(
            rung=CONTROL,
            kind="control",
            norm=self.norm,
            eps=eps,
            view="none",
            attack=f"{CONTROL}: norm {self.norm}, eps {eps:g}",
            eot=1,
            seconds=0.0,
            reading=self._read(name, chain, data, images, draws),
        )
        self.store.keep({"result": result.model_dump()}, {"images": images}, name, label(CONTROL, self.norm, eps))
        return result


def _places(reading: Reading) -> list[int]:
    return list(range(len(reading.flagged))) if reading.places is None else reading.places
