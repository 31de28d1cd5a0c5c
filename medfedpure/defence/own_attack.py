"""The attack of a defence's own check: PGD on the bare classifier, on images that nothing was fitted or calibrated on.

It ignores the defence and goes on after success, as the static rung of `evaluate`. The classifier's verdicts on the
unattacked images stand for labels, so that none are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from medfedpure.core.attack import Attack, ThreatView
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.progress import track
from medfedpure.core.registry import create
from medfedpure.core.results import device_of
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.verdict import verdicts_of
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.own_check import OwnCheck

ATTACK: Mapping[str, Any] = {"norm": "linf", "eps": "8/255", "step": "2/255", "steps": 10, "early_stop": False}
CONDITIONS = "pgd_eot, norm linf, eps 8/255, step 2/255, 10 steps, static (the attacker ignores the defence), EoT 1"

_TOGETHER = 16


def check_itself(chain: DefendedClassifier, held_out: ImageDataset, *, seed: int = 0) -> OwnCheck:
    """Attack the bare classifier at images of no fit and no calibration, and read the defence there.

    Args:
        chain: calibrated.
        held_out: at least one image; one of each near-duplicate group.
        seed: of the noise.
    """
    attack: Attack = create("attack", "pgd_eot", dict(ATTACK))
    view = ThreatView(chain.classifier, of=chain, name="static: attacker ignores the defence")
    benign, attacked, notes, missing = [0, 0], [0, 0, 0], [CONDITIONS], ""
    for batch in track(held_out.batches(_TOGETHER), "own check", -(-len(held_out) // _TOGETHER)):
        images = batch.images.to(device_of(chain))
        said = verdicts_of(chain.classifier, images)
        read = chain.predict(images, batch.ids, seed=derive_seed(seed, "benign"))
        _add(benign, read.flagged, read.labels == said)
        if missing:
            continue
        try:
            made = attack(view, images, said, streams=Streams(derive_seed(seed, "attack"), batch.ids))
        except Exception as error:  # whatever a foreign model raises under a gradient must not cost the fitted defence
            missing = f"the classifier could not be attacked by its gradient ({type(error).__name__}: {error})"
            continue
        notes.append(made.description.removeprefix(attack.describe()).removeprefix("; "))
        read = chain.predict(made.images, batch.ids, seed=derive_seed(seed, "attacked"))
        _add(attacked, made.success, made.success & read.flagged, made.success & (read.labels == said))
    fooled, flagged, restored = (0, 0, 0) if missing else attacked
    return OwnCheck(
        images=len(held_out),
        fooled=fooled,
        flagged=flagged,
        restored=restored,
        benign_flagged=benign[0],
        benign_kept=benign[1],
        policy=chain.policy,
        attack="; ".join(dict.fromkeys(note for note in notes if note)),
        missing=missing,
    )


def _add(counts: list[int], *found: Tensor) -> None:
    """Count what holds `(N,)` bool, each in its place."""
    for place, holds in enumerate(found):
        counts[place] += int(holds.sum())
