"""Predictions shared by several devices or processes: the answers of one."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from medfedpure.acceleration.known import remember
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import InputError
from medfedpure.core.progress import Observer, observing
from medfedpure.core.results import Prediction, Trace, device_of
from medfedpure.core.streams import Streams
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.inference import Clock, Images, Inspection, as_batches, assemble, count_batches
from medfedpure.defence.voting import Cleaned
from medfedpure.parallel.jobs import Job, Task, asked, devices_of, threads_of
from medfedpure.parallel.team import Team


def predict_on(
    defence: DefendedClassifier,
    images: Images,
    ids: Tensor | None = None,
    *,
    devices: list[str] | tuple[str, ...] | None = None,
    processes: int | None = None,
    threads: int | None = None,
    seed: int | None = None,
    target_fpr: float | None = None,
    batch_size: int = 64,
    explain: bool = False,
    observer: Observer | None = None,
) -> Prediction:
    """What `defence.predict` says, its batches shared by worker processes: on the CPU bit for bit, with equal threads.

    Workers begin in seconds and end with the call: it is for many images. A script that calls it does so below
    `if __name__ == "__main__":`, for each worker imports the script.

    Args:
        defence: ready to predict; it stays where it is.
        images: `(N, C, H, W)` in [0, 1], an ImageDataset or a loader, which is read as workers get on.
        ids: `(N,)` int64 keys of the noise, for tensors.
        devices: one worker on each, such as ["cuda:0", "cuda:1"].
        processes: so many workers on the CPU; without workers this process predicts by itself.
        threads: of each worker; by default this process's share.
        seed: of the noise; by default drawn from the operating system and never published.
        target_fpr: another false-positive rate than the calibrated one.
        batch_size: images at a time.
        explain: also ask the detector where the images look suspicious.
        observer: is told of every batch, in their order.

    Returns:
        The prediction, on the CPU where workers made it; seconds of its stages are those of all workers together.

    Raises:
        ConfigError: no such device, a number below 1, or a defence that cannot be sent to another process.
        InputError: as `predict`.
        MedFedPureError: a worker died.
    """
    names = devices_of(devices, processes)
    own = threads_of(threads, len(names))
    usual: dict[str, Any] = {"target_fpr": target_fpr, "explain": explain}
    if not names:
        return defence.predict(images, ids, seed=seed, batch_size=batch_size, observer=observer, **usual)
    if defence.image_facts is not None and isinstance(images, ImageDataset):
        defence.image_facts.check(images)
    noise_seed = secrets.randbits(128) if seed is None else seed
    team = Team(_Predicting(defence, noise_seed, **usual), names, own, "the defence")
    with team, observing(observer, "predict", count_batches(images, batch_size)) as told:
        clock, parts, maps = Clock(), list[Inspection](), list[Tensor | None]()
        given: list[Tensor] = []
        for seen in team.run(_looks(images, ids, batch_size, given)):
            parts.append(replace(seen.found, images=given[len(parts)]))
            for one in told:
                one.observe(parts[-1].observation(clock.lap()))
            if explain:
                maps.append(seen.suspicion)
            _add(clock.seconds, seen.seconds)
        if not parts:
            raise InputError("there is no image to predict")
        cleaned = []
        for done, seconds in team.run(asked(_cleaning(some)) for some in _dense(parts, defence.vote.draws, batch_size)):
            cleaned.append(done)
            _add(clock.seconds, seconds)
    trace = Trace(defence.policy, seed, seconds=clock.seconds, noise=parts[0].streams.backend)
    classes = () if defence.image_facts is None else defence.image_facts.class_names
    found = assemble(parts, cleaned, maps, trace, defence.calibration, defence.vote.min_agreement)
    return replace(found, class_names=classes)


@dataclass(frozen=True)
class _Seen:
    """A batch after its inspection, without its images: all on the CPU."""

    found: Inspection
    suspicion: Tensor | None
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Predicting:
    """What a worker holds."""

    defence: DefendedClassifier
    seed: int
    target_fpr: float | None
    explain: bool

    def arrive(self, device: torch.device) -> None:
        """Move the defence to a device."""
        self.defence.to(device)

    @torch.no_grad()
    def inspect(self, images: Tensor, ids: Tensor) -> _Seen:
        """Classify, score and decide on a batch."""
        clock, device = Clock(), device_of(self.defence)
        with clock.measure("detect"):
            found = self.defence.inspect(images.to(device), self._streams(ids), self.target_fpr)
        suspicion = None
        if self.explain:
            with clock.measure("explain"):
                suspicion = self.defence._map(found)
        there = replace(
            found,
            images=torch.empty(0),
            logits=found.logits.cpu(),
            scores=None if found.scores is None else found.scores.cpu(),
            flagged=found.flagged.cpu(),
            strength=found.strength.cpu(),
        )
        return _Seen(there, None if suspicion is None else suspicion.cpu(), clock.seconds)

    @torch.no_grad()
    def clean(self, images: Tensor, strength: Tensor, ids: Tensor) -> tuple[Cleaned, dict[str, float]]:
        """Purify and classify a dense batch of selected images."""
        clock, device, every = Clock(), device_of(self.defence), torch.arange(len(images))
        chosen = torch.ones(len(images), dtype=torch.bool)
        moved, there = images.to(device), remember(strength.to(device), strength)
        part = Inspection(moved, self._streams(ids), moved, None, chosen.to(device), chosen, there, every)
        done = self.defence._purify_together([part], clock)
        here = Cleaned(
            images=done.images.cpu(),
            logits=done.logits.cpu(),
            nfe=done.nfe.cpu(),
            timestep=None if done.timestep is None else done.timestep.cpu(),
            agreement=done.agreement.cpu(),
        )
        return here, clock.seconds

    def _streams(self, ids: Tensor) -> Streams:
        return Streams(self.seed, ids, self.defence.acceleration.noise)


def _looks(images: Images, ids: Tensor | None, batch_size: int, given: list[Tensor]) -> Iterator[Job[_Seen]]:
    """A job for each batch, as they are asked for; its images go into the list."""
    for batch, keys in as_batches(images, ids, batch_size):
        given.append(batch.detach().cpu())
        # a slice would travel with all that it is a slice of
        yield asked(Task("inspect", (given[-1].clone(), keys.detach().cpu().clone())))


def _dense(parts: list[Inspection], draws: int, batch_size: int) -> Iterator[list[Inspection]]:
    """Batches whose selected images are purified together, as `predict` collects them."""
    waiting: list[Inspection] = []
    for part in parts:
        waiting.append(part)
        if sum(one.selected.numel() for one in waiting) * draws >= batch_size:
            yield waiting
            waiting = []
    if any(part.selected.numel() for part in waiting):
        yield waiting


def _cleaning(parts: list[Inspection]) -> Task:
    images, strengths, streams = zip(*(part.take_selected() for part in parts), strict=True)
    return Task("clean", (torch.cat(images), torch.cat(strengths), torch.cat([own.ids for own in streams])))


def _add(total: dict[str, float], seconds: dict[str, float]) -> None:
    for stage, own in seconds.items():
        total[stage] = total.get(stage, 0.0) + own
