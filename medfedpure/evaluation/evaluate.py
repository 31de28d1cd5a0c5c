"""`evaluate`: the whole ladder against whole chains, on the same images, resumable, and checked against itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from medfedpure.core.attack import Attack, Norm
from medfedpure.core.config import parse_fraction
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import ConfigError, DataError, InputError
from medfedpure.core.registry import create
from medfedpure.core.streams import derive_seed
from medfedpure.data.synthetic import check_recorded
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.climb import Climb
from medfedpure.evaluation.cost import Cost
from medfedpure.evaluation.extra import check_attacks
from medfedpure.evaluation.ladder import Preset, preset_of
from medfedpure.evaluation.pairs import Crossing, Victims
from medfedpure.evaluation.readiness import check_ready, check_reference
from medfedpure.evaluation.records import Evaluation
from medfedpure.evaluation.store import Store, recorded_threads
from medfedpure.evaluation.versions import versions
from medfedpure.evaluation.work import Given, Work
from medfedpure.parallel.jobs import Task, asked, devices_of
from medfedpure.parallel.team import team_for

EPS = (0.015, 8 / 255)


def evaluate(
    arms: Mapping[str, DefendedClassifier] | DefendedClassifier,
    data: ImageDataset,
    *,
    preset: str | Preset = "quick",
    eps: float | str | Sequence[float | str] | None = None,
    norm: Norm = "linf",
    attackers: Mapping[str, nn.Module] | None = None,
    federation: Victims | None = None,
    extra_attacks: Mapping[str, Attack] | None = None,
    reference: ImageDataset | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    batch_size: int = 64,
    cascade: bool = True,
    devices: Sequence[str] | None = None,
    processes: int | None = None,
    threads: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Evaluation:
    """Attack every defence with every rung of the ladder, on the same images.

    In a cascade an image whose row in the table is settled meets no further attack, and none at a larger eps: the worst
    case is that of the whole ladder, for less. What single attacks did is then of the images that they met.

    Several devices or processes share the work, a chunk of `batch_size` images at a time. On the CPU the numbers are
    those of one process with as many threads, however many there are.

    Args:
        arms: defences by name, calibrated; one alone is evaluated beside itself undefended.
        data: labelled benign images that nothing was trained, tuned or calibrated on.
        preset: "quick", "standard" or "headline": how hard the attackers try.
        eps: perturbation sizes of images in [0, 1], one or several, "8/255" is accepted; by default 0.015 and 8/255 in
            linf, none in l2.
        norm: "linf" or "l2".
        attackers: other models by name, to craft transfer attacks on.
        federation: every client's defence and test images: attacks crafted on each classifier are replayed on each.
        extra_attacks: attacks of yours by name, each built again at this norm and every eps: two rungs more, against
            the bare classifier and against all of a defence that it can work with.
        reference: benign images that are not attacked, for attacks that learn from such (`Attack.fit`).
        out: folder that keeps every finished rung; a run that was killed continues from it with equal numbers.
        seed: of the choice of images, of attacks and of readings.
        batch_size: images at a time, and of a chunk.
        cascade: as above, but for the first images, those of the self-checks; False = every image meets every attack.
        devices: one worker process on each, such as ["cuda:0", "cuda:1"].
        processes: so many worker processes on the CPU; by default this one works alone.
        threads: of each worker; by default those that `out` was begun with, or this process's share.
        say: is told what happens.

    Raises:
        ConfigError: no such preset or norm; an eps that is not positive and finite, or above 1 in linf; `out` holds
            something else; an extra attack that is none, or does not take such an eps; no such device, or a model that
            cannot be sent to another process.
        MedFedPureError: a worker died; what is finished is kept in `out`, and the same call goes on from it.
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
    check_recorded(data, "test")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size is a whole number from 1; got {batch_size!r}")
    if extra_attacks is not None and not isinstance(extra_attacks, Mapping):
        raise ConfigError(f"extra_attacks names attacks, as {{name: attack}}; got a {type(extra_attacks).__name__}")
    sizes = sizes_of(norm, [eps] if isinstance(eps, int | float | str) else eps)
    chosen = choose(data, strength.images, seed)
    attacks, extra = dict(attackers or {}), dict(extra_attacks or {})
    check_attacks(extra)
    say = say or _silent
    clients = _with_images(federation or {}, strength.images, seed, say)
    given = Given(chains, chosen, strength, norm, sizes, seed, batch_size, attacks, extra, reference, clients)
    if threads is None and out is not None and devices_of(devices, processes):
        threads = recorded_threads(Path(out))
    team = team_for(Work(given), devices, processes, threads, "what is evaluated")
    check_ready(chains, chosen, attacks, clients)
    with team:
        (identity,) = team.run([asked(Task("identity"))])
        setting = {
            "preset": asdict(strength),
            "seed": seed,
            "images": chosen.fingerprint(),
            "eps": sizes,
            "norm": norm,
            "batch_size": batch_size,
            "chunks": "noise begins anew with each",
            "cascade": cascade,
            "threads": team.threads,
            "versions": versions(),
            **identity,
        }
        if reference is not None:
            check_reference(reference, chosen)
            setting["reference"] = reference.fingerprint()
        store = Store(None if out is None else Path(out), setting, given.everyone())
        store.beyond = lambda: team.peak_memory_mb
        (each,) = team.run([asked(Task("foresee"))])
        cost = sum(each, Cost())
        beyond = f"; not counted: {', '.join(extra)}" if extra else ""
        shared = f", shared by {team.size} processes" if team.size > 1 else ""
        say(f"{strength.describe()}; {len(chosen)} images, {cost}{shared}{beyond}")
        weights = dict(zip(chains, (own.seconds for own in each), strict=False)) if team.size > 1 else None
        climb = Climb(team.work, store, say, cascade=cascade, weights=weights)
        crossing = Crossing(clients, norm, batch_size, store, say)
        found = list(team.run([*climb.jobs(), *crossing.jobs(sizes)]))
    store.forget_parts()
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
        arms=climb.results(found[: 2 * len(chains)]),
        transfers=found[2 * len(chains) :],
        gradients=cost.gradients,
        **store.costs(),
        met_by_all=climb.met_by_all,
        versions=setting["versions"],
    )


def sizes_of(norm: str, eps: Sequence[float | str] | None) -> list[float]:
    """Different perturbation sizes of images in [0, 1], in the order given; the usual ones where none are.

    Raises:
        ConfigError: no such norm, none in l2, one that is not positive and finite, or above 1 in linf.
    """
    if norm not in get_args(Norm):
        raise ConfigError(f"the norms are {', '.join(get_args(Norm))}; got {norm!r}")
    if eps is None and norm != "linf":
        raise ConfigError(f"eps is wanted in {norm}: the usual sizes are those of linf, and next to nothing here")
    try:
        sizes = list(dict.fromkeys(float(parse_fraction(value)) for value in (EPS if eps is None else eps)))
    except (TypeError, ValueError) as error:
        raise ConfigError(f'eps is a number, a fraction such as "8/255", or several of them; got {eps!r}') from error
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
        anchor.accelerate(chain.asked)
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


def _silent(text: str) -> None:
    """Tell nobody."""
