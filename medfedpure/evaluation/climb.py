"""One evaluation while it runs: every defence under its rungs, rung by rung, each kept as soon as it is finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medfedpure.core.progress import track
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.cascade import Cascade, chunks
from medfedpure.evaluation.ladder import Rung, label
from medfedpure.evaluation.readings import Reading, Said, reading_of
from medfedpure.evaluation.records import ArmResult, RungResult, role
from medfedpure.evaluation.self_checks import compare, skipped_chain
from medfedpure.evaluation.store import Store
from medfedpure.evaluation.views import is_stochastic
from medfedpure.evaluation.work import CONTROL, Attacked, Crafted, Probed, Work, blank, joined
from medfedpure.parallel.jobs import Job, Task, once


@dataclass(frozen=True)
class _Climbed:
    """What a defence said without an attack and under those that count."""

    clean: Reading
    bare_wrong: list[bool]
    rungs: list[RungResult]


@dataclass(frozen=True)
class _Beside:
    """What else is found of a defence: uniform noise, attacks for comparison, and a look at its gradient."""

    controls: list[RungResult]
    checks: list[RungResult]
    probed: Probed


class Climb:
    """The defences of one evaluation.

    Args:
        work: what is done, by whoever does it.
        store: of finished rungs.
        say: is told what happens.
        cascade: what is settled meets no further attack, see `medfedpure.evaluation.cascade`.
        weights: how much there is to do for each defence; the heaviest is begun first. None = in turn.
    """

    def __init__(
        self,
        work: Work,
        store: Store,
        say: Callable[[str], None],
        *,
        cascade: bool = True,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        given = work.given
        self.work, self.store, self.say = work, store, say
        self.data, self.size = given.data, given.batch_size
        self.always = min(given.preset.checked, len(given.data))
        self.met_by_all = self.always if cascade else None
        self.weights = dict.fromkeys(given.arms, 0.0) | dict(weights or {})
        self.order = sorted(given.arms, key=lambda name: -self.weights[name])
        self._crafted: dict[tuple[str, int, int], Crafted] = {}
        self._passed: set[tuple[str, str]] = set()

    def jobs(self) -> list[Job[Any]]:
        """Two for each defence, which `results` puts together."""
        return [job for name in self.order for job in (self._climbed(name), self._beside(name))]

    def results(self, found: list[Any]) -> list[ArmResult]:
        """What the jobs ended with, as one result for each defence, in the order in which they were given."""
        pairs = dict(zip(self.order, zip(found[::2], found[1::2], strict=True), strict=True))
        return [self._arm(name, chain, *pairs[name]) for name, chain in self.work.given.arms.items()]

    def _arm(self, name: str, chain: DefendedClassifier, climbed: _Climbed, beside: _Beside) -> ArmResult:
        clean, stochastic = climbed.clean, is_stochastic(chain)
        found = climbed.rungs + beside.controls
        reasons = beside.probed.reasons + skipped_chain(chain, clean.purified, clean.flagged)
        return ArmResult(
            name=name,
            policy=chain.policy,
            parts=", ".join(f"{p.kind} {p.name}" for p in (chain.detector, chain.purifier) if p is not None),
            precision=beside.probed.precision,
            noise=beside.probed.noise,
            stochastic=stochastic,
            bare_wrong=climbed.bare_wrong,
            clean=clean,
            rungs=found,
            checks=beside.checks,
            unreliable=reasons + compare(found, beside.checks, self.data.labels, stochastic, self.met_by_all),
        )

    def _climbed(self, name: str) -> Job[_Climbed]:
        """All rungs, in the order of the plan; they are climbed from the smallest eps to the largest."""
        clean, bare_wrong = yield from self._clean(name)
        cascade = Cascade(self.data.labels, self.data.positive, always=self.always, alone=self.met_by_all is None)
        found: dict[str, RungResult] = {}
        plan = self.work.plans[name]
        for rung in track(sorted(plan, key=lambda rung: rung.eps), f"{name}: attacks", len(plan)):
            while not self._turn(name, rung):
                yield []
            result = yield from self._rung(name, rung, self.work.draws(name), cascade.met(), len(self.data))
            self._passed.add((name, rung.label()))
            if role(result) == "counted" and result.reading is not None:
                cascade.took(result.reading)
            found[rung.label()] = result
        return _Climbed(clean, bare_wrong, [found[rung.label()] for rung in plan])

    def _beside(self, name: str) -> Job[_Beside]:
        controls, compared, every = [], [], torch.arange(self.always)
        for eps in dict.fromkeys(rung.eps for rung in self.work.plans[name]):
            controls.append((yield from self._control(name, eps)))
        tests = self.work.tests[name]
        for rung in track(tests, f"{name}: checks", len(tests)):
            compared.append((yield from self._rung(name, rung, 1, every, self.always)))
        (probed,) = yield [self._task("probe", name)]
        return _Beside(controls, compared, probed)

    def _task(self, call: str, name: str, *arguments: Any, **told: Any) -> Task:
        return Task(call, (name, *arguments), weight=self.weights[name], **told)

    def _clean(self, name: str) -> Job[tuple[Reading, list[bool]]]:
        kept = self.store.load(name, "clean")
        if kept is None:
            every = torch.arange(len(self.data))
            found = yield [self._task("clean", name, places) for _, places in chunks(every, self.size)]
            reading = reading_of([said for said, _ in found], self.data.labels)
            wrong = [one for _, part in found for one in part]
            kept = ({"reading": reading.model_dump(), "bare_wrong": wrong}, {})
            self.store.keep(*kept, name, "clean")
        return Reading(**kept[0]["reading"]), kept[0]["bare_wrong"]

    def _control(self, name: str, eps: float) -> Job[RungResult]:
        """Uniform noise of the same size: who falls to it needs no attacker."""
        norm = self.work.given.norm
        kept = self.store.load(name, label(CONTROL, norm, eps))
        if kept is not None:
            return RungResult(**kept[0]["result"])
        every = torch.arange(len(self.data))
        found = yield [self._task("control", name, eps, places) for _, places in chunks(every, self.size)]
        result = RungResult(
            rung=CONTROL,
            kind="control",
            norm=norm,
            eps=eps,
            view="none",
            attack=f"{CONTROL}: norm {norm}, eps {eps:g}",
            eot=1,
            seconds=0.0,
            reading=reading_of([said for said, _ in found], self.data.labels),
        )
        images = {"images": torch.cat([images for _, images in found])}
        self.store.keep({"result": result.model_dump()}, images, name, label(CONTROL, norm, eps))
        return result

    def _rung(self, name: str, rung: Rung, draws: int, places: Tensor, size: int) -> Job[RungResult]:
        """One attack on the images at these places `(M,)` of the first `size`; what was kept of more is kept."""
        kept = self.store.load(name, rung.label())
        if kept is not None:
            result = RungResult(**kept[0]["result"])
            self._recall(name, rung, result, kept[1])
            if result.reading is None or set(places.tolist()) <= set(_places(result.reading)):
                return result
        if rung.absent:
            return RungResult(**blank(rung), skipped=rung.absent)
        (learns,) = yield [self._task("learns", name, rung.label())]
        if isinstance(learns, RungResult):
            return learns
        # What learns from its batch meets all images, and all at once.
        pieces = [(0, torch.arange(size))] if learns else chunks(places, self.size)
        told = once(lambda: self._tell(name, rung, sum(len(own) for _, own in pieces), size))
        parts, tasks, numbers = dict[int, Attacked](), list[Task](), list[int]()
        for number, own in pieces:
            if (part := self._part(name, rung, number, own)) is not None:
                parts[number] = part
                continue
            known = self._crafted.get(self._key(name, rung, number))
            if learns and known is not None and len(known.places) < size:
                known = None
            ends = self._keeper(name, rung, number, own, alone=len(pieces) == 1)
            asked = (rung.label(), own, number, draws, known)
            tasks.append(self._task("attack", name, *asked, begins=told, ends=ends))
            numbers.append(number)
        if tasks:
            parts |= zip(numbers, (yield tasks), strict=True)
        return self._finished(name, rung, [(own, parts[number]) for number, own in pieces], size)

    def _finished(self, name: str, rung: Rung, parts: list[tuple[Tensor, Attacked]], size: int) -> RungResult:
        """The parts as one result, kept unless something was missing that may be there next time."""
        bad = [part.made.words for _, part in parts if part.said is None]
        images: dict[str, Tensor] = {}
        if bad:
            result = next((words for words in bad if words.skipped), bad[0])
        else:
            made, met = [part.made.at(own) for own, part in parts], torch.cat([own for own, _ in parts])
            reading = reading_of([part.said for _, part in parts if part.said is not None], self.data.labels[met])
            places = None if len(met) == size else met.tolist()
            update = {"reading": reading.model_copy(update={"places": places})}
            result = joined([one.words for one in made]).model_copy(update=update)
            images = {"images": torch.cat([one.images for one in made if one.images is not None])}
        if not result.skipped:
            self.store.keep({"result": result.model_dump()}, images, name, rung.label())
            self.store.forget_parts(name, rung.label())
        return result

    # -- what is kept, and crafted once ------------------------------------------------------------------------------

    def _turn(self, name: str, rung: Rung) -> bool:
        """Whether what earlier defences share with this one is crafted, so that equal images meet in one batch."""
        if rung.kind != "replayed":
            return True
        arms, own = self.work.given.arms, rung.label()
        before = list(arms)[: list(arms).index(name)]
        return all(
            (other, own) in self._passed
            for other in before
            if arms[other].classifier is arms[name].classifier
            and any(one.label() == own and one.kind == "replayed" for one in self.work.plans[other])
        )

    def _key(self, name: str, rung: Rung, number: int) -> tuple[str, int, int]:
        """What does not depend on the chain is crafted once for all that share a classifier."""
        return rung.label(), id(self.work.given.arms[name].classifier), number

    def _recall(self, name: str, rung: Rung, result: RungResult, tensors: Mapping[str, Tensor]) -> None:
        """Take what was kept as crafted."""
        if rung.kind != "replayed" or result.reading is None:
            return
        places = torch.tensor(_places(result.reading))
        pieces = chunks(places, self.size)
        words = result.model_copy(update={"reading": None, "seconds": result.seconds / len(pieces)})
        whole = Crafted(places, words, tensors["images"])
        for number, own in pieces:
            self._take(name, rung, number, whole.at(own))

    def _take(self, name: str, rung: Rung, number: int, made: Crafted) -> None:
        """What was crafted of a chunk, beside what is known of it."""
        if rung.kind != "replayed":
            return
        key = self._key(name, rung, number)
        known = self._crafted.get(key)
        missing = made.places if known is None else made.places[~torch.isin(made.places, known.places)]
        if len(missing):
            self._crafted[key] = made if known is None else known.beside(made.at(missing))

    def _keeper(self, name: str, rung: Rung, number: int, own: Tensor, *, alone: bool) -> Callable[[Attacked], None]:
        """Keeps a part of a rung as soon as it is there."""

        def keep(found: Attacked) -> None:
            if found.said is None:
                return
            self._take(name, rung, number, found.made)
            made = found.made.at(own)
            if not alone and made.images is not None:
                document = {"places": own.tolist(), "words": made.words.model_dump(), "said": found.said.document()}
                tensors = {"images": made.images, "probabilities": found.said.probabilities}
                self.store.keep(document, tensors, name, rung.label(), str(number), room="chunks")

        return keep

    def _part(self, name: str, rung: Rung, number: int, own: Tensor) -> Attacked | None:
        """The same of a call that was ended before; None where there is none of these images."""
        kept = self.store.load(name, rung.label(), str(number), room="chunks")
        if kept is None or kept[0]["places"] != own.tolist():
            return None
        words = RungResult(**kept[0]["words"])
        made = Crafted(own, words, kept[1]["images"])
        found = Attacked(made, Said(**kept[0]["said"], probabilities=kept[1]["probabilities"]))
        self._take(name, rung, number, made)
        return found

    def _tell(self, name: str, rung: Rung, met: int, size: int) -> None:
        some = "" if met == size else f", {met} of {size} images"
        self.say(f"{'crafted once' if rung.kind == 'replayed' else name}: {rung.label()}{some}")


def _places(reading: Reading) -> list[int]:
    return list(range(len(reading.flagged))) if reading.places is None else reading.places
