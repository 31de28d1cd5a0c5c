"""Figures of one client: bare, anchored and defended, on benign and on attacked images."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medfedpure.core.attack import Attack
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.results import AttackResult, Prediction, on_cpu
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.verdict import verdicts
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.views import bpda_view, static_view
from medfedpure.figures.metrics import auroc, classification_figures, true_positive_rate
from medfedpure.job.gain import gains_over
from medfedpure.job.records import Arm, ClientResult


@dataclass(frozen=True)
class Measured:
    """One client's figures and the images behind them, for pictures."""

    result: ClientResult
    attacked: AttackResult
    benign: Prediction
    defended: Prediction


def measure_client(
    name: str,
    chain: DefendedClassifier,
    anchor: DefendedClassifier,
    attack: Attack,
    parts: dict[str, ImageDataset],
    *,
    seed: int,
    bpda: bool,
    batch_size: int,
    device: str = "cpu",
) -> Measured:
    """Attack the bare classifier, replay on every arm, and count on the test part."""
    test = parts["test"]
    images, labels = test.images, test.labels
    streams = Streams(derive_seed(seed, "attack", name), test.ids)
    if not attack.fitted:  # it learns from what this client trained on, of the classifier that it sees
        own = derive_seed(seed, "fit attack", name)
        attack = copy.deepcopy(attack).fit(parts["train"], view=static_view(chain), seed=own)
    attacked = on_cpu(attack(static_view(chain), images.to(device), labels.to(device), streams=streams))

    def read(arm: DefendedClassifier, batch: Tensor) -> tuple[Prediction, float]:
        start = time.perf_counter()
        prediction = arm.predict(batch, ids=test.ids, seed=derive_seed(seed, "predict", name), batch_size=batch_size)
        answer = on_cpu(prediction)
        return answer, (time.perf_counter() - start) * 1000 / len(batch)

    benign, benign_ms = read(chain, images)
    defended, attacked_ms = read(chain, attacked.images)
    _, bare_ms = read(DefendedClassifier(chain.classifier, policy="none"), images)
    anchored = [read(anchor, batch)[0].labels for batch in (images, attacked.images)]
    assert benign.scores is not None
    assert defended.scores is not None
    calibration = chain.calibration
    assert calibration is not None
    majority = torch.full_like(labels, int(parts["train"].labels.bincount().argmax()))
    majority_figures = classification_figures(majority, labels, test.num_classes)
    result = ClientResult(
        client=name,
        test_images=len(test),
        test_groups=test.num_groups,
        calibration_images=len(calibration),
        calibration=calibration.describe(),
        majority_balanced_accuracy=majority_figures.balanced_accuracy,
        majority_accuracy=majority_figures.accuracy,
        bare=_arm(verdicts(benign.bare_logits), verdicts(defended.bare_logits), test),
        anchor=_arm(anchored[0], anchored[1], test),
        defended=_arm(benign.labels, defended.labels, test),
        bpda_robust_balanced_accuracy=_bpda(chain, attack, test, name, seed, batch_size, device) if bpda else None,
        flagged_benign=_share(benign.flagged),
        flagged_attacked=_share(defended.flagged),
        detector_auroc=auroc(benign.scores, defended.scores),
        detector_tpr_at_5_fpr=true_positive_rate(benign.scores, defended.scores, 0.05),
        attack_success=_share(attacked.success),
        bare_ms_per_image=bare_ms,
        defended_benign_ms_per_image=benign_ms,
        defended_attacked_ms_per_image=attacked_ms,
        purifier_nfe_benign=float(benign.trace.nfe.double().mean()),
        purifier_nfe_attacked=float(defended.trace.nfe.double().mean()),
        gains=gains_over(
            defended.labels,
            {"bare": verdicts(defended.bare_logits), "anchor": anchored[1], "majority": majority},
            test,
        ),
    )
    return Measured(result, attacked, benign, defended)


def _arm(clean: Tensor, robust: Tensor, test: ImageDataset) -> Arm:
    on_clean = classification_figures(clean, test.labels, test.num_classes, test.positive)
    on_attacked = classification_figures(robust, test.labels, test.num_classes, test.positive)
    several = test.class_names if test.num_classes > 2 else ()
    return Arm(
        clean_balanced_accuracy=on_clean.balanced_accuracy,
        robust_balanced_accuracy=on_attacked.balanced_accuracy,
        clean_sensitivity=_known(on_clean.sensitivity),
        robust_sensitivity=_known(on_attacked.sensitivity),
        clean_specificity=_known(on_clean.specificity),
        robust_specificity=_known(on_attacked.specificity),
        clean_recalls={name: _known(on_clean.recalls[place]) for place, name in enumerate(several)},
        robust_recalls={name: _known(on_attacked.recalls[place]) for place, name in enumerate(several)},
    )


def _known(figure: float) -> float | None:
    """None for NaN, which JSON has not."""
    return None if math.isnan(figure) else figure


def _bpda(
    chain: DefendedClassifier,
    attack: Attack,
    test: ImageDataset,
    name: str,
    seed: int,
    batch_size: int,
    device: str,
) -> float:
    """Balanced accuracy under the same attack through the chain, the purifier's gradient the identity."""
    streams = Streams(derive_seed(seed, "bpda", name), test.ids)
    with chain.noise_sequence(derive_seed(seed, "bpda noise", name)):
        result = attack(bpda_view(chain), test.images.to(device), test.labels.to(device), streams=streams)
    prediction = chain.predict(
        result.images, ids=test.ids, seed=derive_seed(seed, "bpda replay", name), batch_size=batch_size
    )
    return classification_figures(prediction.labels.cpu(), test.labels, test.num_classes).balanced_accuracy


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())


def anchor_chain(classifier: nn.Module, purifier: nn.Module) -> DefendedClassifier:
    """Every image through a simple purifier, no detector."""
    return DefendedClassifier(classifier, purifier=purifier, policy="purify_all")  # type: ignore[arg-type]
