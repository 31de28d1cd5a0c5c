"""`evaluate`: the whole ladder against whole chains, on the same images, resumable, and checked against itself."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from medfedpure.core.attack import Attack, Budget, Norm, audit
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import (
    AuditError,
    ConfigError,
    DataError,
    InputError,
    MissingExtraError,
    MissingRequirementError,
    UnknownPluginError,
)
from medfedpure.core.progress import track
from medfedpure.core.registry import create
from medfedpure.core.results import device_of, on_cpu
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.verdict import as_they_answer, fooled, verdicts_of
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.cost import foresee
from medfedpure.evaluation.extra import check_attacks, extra_rungs, within
from medfedpure.evaluation.ladder import PROBED, Preset, Rung, checks, label, preset_of, rungs
from medfedpure.evaluation.pairs import Crossing, Victims
from medfedpure.evaluation.readiness import check_ready, check_reference
from medfedpure.evaluation.readings import Reading, read
from medfedpure.evaluation.records import ArmResult, Evaluation, RungResult
from medfedpure.evaluation.self_checks import compare, probe, skipped_chain
from medfedpure.evaluation.store import Store, digest_of, digest_of_attack, digest_of_network
from medfedpure.evaluation.versions import versions
from medfedpure.evaluation.views import is_stochastic

EPS = (0.015, 8 / 255)
CONTROL = "uniform noise"


def evaluate(
    arms: Mapping[str, DefendedClassifier] | DefendedClassifier,
    data: ImageDataset,
    *,
    preset: str | Preset = "quick",
    eps: float | Sequence[float] | None = None,
    norm: Norm = "linf",
    attackers: Mapping[str, nn.Module] | None = None,
    federation: Victims | None = None,
    extra_attacks: Mapping[str, Attack] | None = None,
    reference: ImageDataset | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    batch_size: int = 64,
    say: Callable[[str], None] | None = None,
) -> Evaluation:
    """Attack every defence with every rung of the ladder, on the same images.

    Args:
        arms: defences by name, calibrated; one alone is evaluated beside itself undefended.
        data: labelled benign images that nothing was trained, tuned or calibrated on.
        preset: "quick", "standard" or "headline": how hard the attackers try.
        eps: perturbation sizes of images in [0, 1], one or several; by default 0.015 and 8/255 in linf, none in l2.
        norm: "linf" or "l2".
        attackers: other models by name, to craft transfer attacks on.
        federation: every client's defence and test images: attacks crafted on each classifier are replayed on each.
        extra_attacks: attacks of yours by name, each built again at this norm and every eps: two rungs more, against
            the bare classifier and against all of a defence that it can work with.
        reference: benign images that are not attacked, for attacks that learn from such (`Attack.fit`).
        out: folder that keeps every finished rung; a run that was killed continues from it with equal numbers.
        seed: of the choice of images, of attacks and of readings.
        batch_size: images at a time.
        say: is told what happens.

    Raises:
        ConfigError: no such preset or norm; an eps that is not positive and finite, or above 1 in linf; `out` holds
            something else; an extra attack that is none, or does not take such an eps.
        DataError: too few images; a reference of other images, or of those attacked.
        InputError: no ImageDataset; a model that answers no finite logits, or has fewer classes than the images.
        NotFittedError, NotCalibratedError: a defence is not ready.
    """
    strength = preset_of(preset)
    chains = arms if isinstance(arms, Mapping) else beside_itself(arms)
    if not chains:
        raise ConfigError("one defence or more is wanted; got none")
    if not isinstance(data, ImageDataset):
        raise InputError(f"the images must be an ImageDataset, with labels and groups; got a {type(data).__name__}")
    sizes = sizes_of(norm, [eps] if isinstance(eps, int | float) else eps)
    chosen = choose(data, strength.images, seed)
    attacks, extra = dict(attackers or {}), dict(extra_attacks or {})
    check_attacks(extra)
    say = say or _silent
    clients = _with_images(federation or {}, strength.images, seed, say)
    check_ready(chains, chosen, attacks, clients)
    setting = {
        "preset": asdict(strength),
        "seed": seed,
        "images": chosen.fingerprint(),
        "arms": {name: digest_of(chain) for name, chain in chains.items()},
        "attackers": {name: digest_of_network(model) for name, model in attacks.items()},
        "eps": sizes,
        "norm": norm,
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    if clients:
        setting["federation"] = {name: [digest_of(one), own.fingerprint()] for name, (one, own) in clients.items()}
    if extra:
        setting["extra_attacks"] = {name: digest_of_attack(attack) for name, attack in extra.items()}
    if reference is not None:
        check_reference(reference, chosen)
        setting["reference"] = reference.fingerprint()
    everyone = [*chains.values(), *attacks.values(), *(chain for chain, _ in clients.values())]
    store = Store(None if out is None else Path(out), setting, everyone)
    job = _Job(chosen, strength, norm, seed, batch_size, store, say, reference)
    here = reference is not None
    plans = {
        name: [
            rung
            for value in sizes
            for rung in (
                *rungs(chain, strength, norm, value, attacks),
                *extra_rungs(chain, strength, norm, value, extra, fitted_here=here),
            )
        ]
        for name, chain in chains.items()
    }
    tests = {name: checks(chain, strength, norm, sizes[0]) for name, chain in chains.items()}
    cost = foresee(chains.values(), chosen.images, strength, norm, sizes, attacks, federation=clients, seed=seed)
    beyond = f"; not counted: {', '.join(extra)}" if extra else ""
    say(f"{strength.describe()}; {len(chosen)} images, {cost}{beyond}")
    with as_they_answer(*attacks.values()):
        results = [job.arm(name, chain, plans[name], tests[name]) for name, chain in chains.items()]
    transfers = Crossing(strength, norm, seed, batch_size, store, say).all_pairs(clients, sizes)
    return Evaluation(
        setting=setting,
        data=data.name,
        class_names=list(chosen.class_names),
        positive=list(chosen.positive),
        labels=chosen.labels.tolist(),
        groups=chosen.groups.tolist(),
        norm=norm,
        eps=setting["eps"],
        note=strength.note,
        arms=results,
        transfers=transfers,
        gradients=cost.gradients,
        **store.costs(),
        versions=setting["versions"],
    )


def sizes_of(norm: str, eps: Sequence[float] | None) -> list[float]:
    """Different perturbation sizes of images in [0, 1], in the order given; the usual ones where none are.

    Raises:
        ConfigError: no such norm, none in l2, one that is not positive and finite, or above 1 in linf.
    """
    if norm not in get_args(Norm):
        raise ConfigError(f"the norms are {', '.join(get_args(Norm))}; got {norm!r}")
    if eps is None and norm != "linf":
        raise ConfigError(f"eps is wanted in {norm}: the usual sizes are those of linf, and next to nothing here")
    sizes = list(dict.fromkeys(float(value) for value in (EPS if eps is None else eps)))
    if not sizes or not all(0 < size <= (1 if norm == "linf" else sys.float_info.max) for size in sizes):
        raise ConfigError(f"a finite eps > 0 is wanted, and eps <= 1 in linf, of images in [0, 1]; got {sizes}")
    return sizes


def beside_itself(chain: DefendedClassifier) -> dict[str, DefendedClassifier]:
    """The anchors that need nothing new: undefended, a median filter for all, purify all, detector only, the chain.

    All compute as the chain does: its threshold has seen such scores.
    """
    found = {"undefended": DefendedClassifier(chain.classifier, policy="none")}
    median = create("purifier", "median")
    found["median, all"] = DefendedClassifier(chain.classifier, purifier=median, policy="purify_all")
    parts: dict[str, Any] = {"detector": chain.detector, "purifier": chain.purifier, "calibration": chain.calibration}
    if chain.purifier is not None and chain.policy != "purify_all":
        found["purify all"] = DefendedClassifier(
            chain.classifier, purifier=chain.purifier, policy="purify_all", vote=chain.vote
        )
    if chain.detector is not None and chain.policy != "abstain":
        found["detector only"] = DefendedClassifier(chain.classifier, policy="abstain", **parts)
    for anchor in found.values():
        anchor.acceleration = chain.acceleration
    return {**found, f"chain ({chain.policy})": chain}


def choose(data: ImageDataset, most: int, seed: int) -> ImageDataset:
    """At most so many images, one for each near-duplicate group, the classes in turn.

    Raises:
        DataError: fewer than two images, or a class without any.
    """
    single = data.one_per_group(seed)
    order = torch.randperm(len(single), generator=torch.Generator().manual_seed(derive_seed(seed, "choice")))
    queues = [order[single.labels[order] == label].tolist() for label in single.labels.unique().tolist()]
    if len(single) < 2 or len(queues) < data.num_classes:
        raise DataError(
            f"images of all {data.num_classes} classes are wanted; {len(single)} independent ones of {len(queues)} came"
        )
    picked: list[int] = []
    for place in range(max(len(queue) for queue in queues)):
        picked += [queue[place] for queue in queues if place < len(queue)]
    return single.select(torch.tensor(picked[:most]))


def _with_images(federation: Victims, most: int, seed: int, say: Callable[[str], None]) -> Victims:
    """Each client with the images that it is attacked on; one that has too few is left out, and that is said."""
    found = {}
    for name, (chain, data) in federation.items():
        try:
            found[name] = chain, choose(data, most, seed)
        except DataError as error:
            say(f"{name} is left out of the pairs of attackers and victims: {error}")
    return found


class _Job:
    """One evaluation while it runs."""

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
    ) -> None:
        self.data, self.preset, self.norm, self.seed = data, preset, norm, seed
        self.batch_size, self.store, self.say, self.reference = batch_size, store, say, reference
        self.crafted: dict[str, tuple[RungResult, Tensor]] = {}

    def arm(self, name: str, chain: DefendedClassifier, plan: Sequence[Rung], tests: Sequence[Rung]) -> ArmResult:
        """All of one defence."""
        draws = self.preset.draws if is_stochastic(chain) else 1
        clean, bare_wrong = self._clean(name, chain, draws)
        few = self.data.select(torch.arange(min(self.preset.checked, len(self.data))))
        found = [self._rung(name, chain, rung, self.data, draws) for rung in track(plan, f"{name}: attacks", len(plan))]
        found += [self._control(name, chain, eps, draws) for eps in dict.fromkeys(rung.eps for rung in plan)]
        compared = [self._rung(name, chain, rung, few, 1) for rung in track(tests, f"{name}: checks", len(tests))]
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
            unreliable=reasons + compare(found, compared, self.data.labels, is_stochastic(chain)),
        )

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

    def _rung(self, name: str, chain: DefendedClassifier, rung: Rung, data: ImageDataset, draws: int) -> RungResult:
        kept = self.store.load(name, rung.label())
        if kept is not None:
            return RungResult(**kept[0]["result"])
        result, images = self._craft(name, chain, rung, data)
        if images is not None and not result.problem:
            result = result.model_copy(update={"reading": self._read(name, chain, data, images, draws)})
        if not result.skipped:  # what was missing may be there next time
            attacked = {} if images is None else {"images": images}
            self.store.keep({"result": result.model_dump()}, attacked, name, rung.label())
        return result

    def _craft(
        self, name: str, chain: DefendedClassifier, rung: Rung, data: ImageDataset
    ) -> tuple[RungResult, Tensor | None]:
        """The attack; one that does not depend on the chain is crafted once for all that share a classifier."""
        replayed = rung.kind == "replayed"
        key = f"{rung.label()} {id(chain.classifier) if replayed else name}"
        if replayed and key in self.crafted:
            return self.crafted[key]
        self.say(f"{'crafted once' if replayed else name}: {rung.label()}")
        blank: dict[str, Any] = {"rung": rung.name, "kind": rung.kind, "norm": rung.norm, "eps": rung.eps}
        blank |= {"view": "", "attack": rung.attack, "eot": int(rung.options.get("eot", 1)), "seconds": 0.0}
        if rung.absent:
            return RungResult(**blank, skipped=rung.absent), None
        seed = derive_seed(self.seed, "all" if replayed else name, rung.label())
        start = time.perf_counter()
        device = device_of(chain)
        try:
            portion = {"batch_size": self.batch_size} if "batch_size" in rung.options else {}
            options = {**rung.options, **portion}
            attack = create("attack", rung.attack, **options) if rung.make is None else rung.make()
            with chain.noise_sequence(seed):
                view = rung.view(chain)
                if self.reference is not None and not (attack.needs_fit and attack.fitted):
                    attack.fit(self.reference, view=view, seed=seed)
                images, labels = data.images.to(device), data.labels.to(device)
                found = on_cpu(attack(view, images, labels, streams=Streams(seed, data.ids, chain.acceleration.noise)))
            if rung.make is not None and attack.budget() is None:
                found = within(found, data.images, Budget(rung.norm, rung.eps))
            audit(data.images, found.images, Budget(rung.norm, rung.eps), who=found.description)
        except (MissingRequirementError, MissingExtraError, UnknownPluginError) as error:
            return RungResult(**blank, skipped=str(error)), None
        except AuditError as error:
            return RungResult(**blank, problem=f"budget violated: {error}"), None
        blank |= {"view": view.name, "attack": found.description, "seconds": time.perf_counter() - start}
        result = RungResult(**blank, success=found.success.tolist(), distance=found.distance.tolist())
        if replayed:
            self.crafted[key] = (result, found.images)
        return result, found.images

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


def _silent(text: str) -> None:
    """Tell nobody."""
