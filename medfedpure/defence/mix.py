"""Two trained classifiers as one: a robust and a plain one, mixed as validation images say (plugin `mixed`).

The parameters are found by a grid search (Bai et al. 2024, arXiv 2402.02263, and their code). For every s, p and c of
the map M, with m(x) the gap between the two largest probabilities softmax(M(h_robust(x))):

    q = the (1 - beta)-quantile of m over attacked images that the robust network reads right,   alpha = 1 / (1 + q)

so that a share beta of these answers stands whatever the plain network says. Of all s, p and c that one is taken whose
mix has the best balanced accuracy on clean images; of equal ones that with the smallest share of the robust network's
clean errors of m >= q, the paper's own aim; then that whose attacked answers stand by the most on average.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medfedpure.core.attack import Attack, Norm, ThreatView
from medfedpure.core.classifier import Classifier, ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.disk.weights import Origin
from medfedpure.core.errors import ConfigError, DataError, InputError
from medfedpure.core.progress import track
from medfedpure.core.registry import create
from medfedpure.core.results import device_of
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.verdict import as_they_answer, verdicts
from medfedpure.data.synthetic import check_recorded
from medfedpure.defence.arms import settings as margin_settings
from medfedpure.figures.balanced import balanced

SCALES = (0.05, 0.15, 0.5, 1.5, 5.0, 15.0, 50.0)
POWERS = (1.0, 2.0, 3.0, 4.0, 5.0)
SHIFTS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5)
"""s, p and c that are tried."""

RESTARTS = 2
_TOGETHER = 64
_JUST_BELOW = 1 - 1e-6  # an answer exactly at the quantile stands, whatever rounds


def mix(
    robust: ClassifierModel,
    plain: ClassifierModel,
    validation: ImageDataset,
    *,
    eps: float | str = 0.015,
    norm: Norm = "linf",
    steps: int = 20,
    beta: float = 0.985,
    temperature: float = 1.0,
    seed: int = 0,
) -> ClassifierModel:
    """A robust and a plain classifier in one that answers both passes' mix, chosen on validation images.

    Nothing is trained, and neither classifier is changed. No test can tell whether the validation images overlap those
    of the trainings, or those of a later evaluation: keep them apart by group, or what was chosen is worth less than
    it seems.

    Args:
        robust: trained adversarially.
        plain: trained on clean images; of equal channels, size and classes.
        validation: labelled images of neither training, in the same classes; one image of each group is used.
        eps: how far images are attacked, above 0, in [0, 1] units of a pixel; "8/255" is accepted.
        norm: "linf" or "l2".
        steps: of the attack, PGD on the margin of logits with two starts.
        beta: share of the robust classifier's right answers under attack that must stand, in (0, 1].
        temperature: of the plain classifier's softmax; 0 = the paper's, whose answer has no gradient of its own.
        seed: of the choice of images and of the attack.

    Returns:
        A model of the plugin `mixed`, on the device of `robust`; what was chosen, and what the validation images
        showed, stands in `architecture.config` and its `chosen`, and is saved with it.

    Raises:
        InputError: classifiers of different classes, size or channels; a robust one that reads no attacked image.
        DataError: validation images that are not theirs, lack a class, or were drawn by a model.
        ConfigError: beta, eps, steps or temperature out of range.

    Example:
        ``both = medfedpure.mix(robust, plain, parts["validation"], eps=8 / 255)``, then
        ``medfedpure.defend(both, benign)``.
    """
    if not isinstance(beta, int | float) or not 0 < beta <= 1:
        raise ConfigError(f"beta is a share in (0, 1]; got {beta!r}")
    _check_members(robust, plain)
    _check_images(robust, validation)
    own = validation.select(validation.ids.argsort(stable=True)).one_per_group(derive_seed(seed, "mix"))
    attack: Attack = create("attack", "pgd_eot", margin_settings(eps, norm, steps) | {"restarts": RESTARTS})
    base = {
        "robust": robust.architecture.name,
        "robust_config": robust.architecture.config.model_dump(mode="json"),
        "plain": plain.architecture.name,
        "plain_config": plain.architecture.config.model_dump(mode="json"),
        "temperature": temperature,
    }
    create("classifier", "mixed", base)  # refuses before anything is attacked
    seen = _Seen.of(robust, plain, own, attack, derive_seed(seed, "mix attack"))
    found = _chosen({**base, "unit": _unit(seen)}, seen, beta)
    joined = _joined(found, robust, plain)
    both = _attacked(joined, own, attack, derive_seed(seed, "mix attack"))
    clean = joined.architecture.mixed(seen.robust, seen.plain)  # type: ignore[attr-defined]
    mixed_right = _right(joined.architecture.mixed(seen.robust_attacked, seen.plain_there), seen.labels)  # type: ignore[attr-defined]
    replayed = _right(_logits(joined, seen.plain_images), seen.labels)
    worst = mixed_right & replayed & _right(_logits(joined, both), seen.labels)
    margins = _margins(joined.architecture, seen.robust_attacked, seen.labels)[seen.held]
    record = {
        "images": len(own),
        "attack": f"{attack.describe()}; each by its own gradient, the mix also by what was made for its two",
        "beta": beta,
        "right": int(seen.held.sum()),
        "stands": int((margins * found["alpha"] >= 1 - found["alpha"]).sum()),
        "clean": _accuracies(seen.labels, seen.robust, seen.plain, clean),
        "attacked": _accuracies(seen.labels, seen.robust_attacked, seen.plain_attacked, None)
        | {"mixed": balanced(worst, seen.labels)},
    }
    return _joined({**found, "chosen": record}, robust, plain)


@dataclass(frozen=True)
class _Seen:
    """Labels `(N,)` and logits `(N, K)` in float64 on the CPU; `plain_there` is of the robust one's attacked images."""

    labels: Tensor
    robust: Tensor
    plain: Tensor
    robust_attacked: Tensor
    plain_there: Tensor
    plain_attacked: Tensor
    plain_images: Tensor

    @property
    def held(self) -> Tensor:
        """`(N,)` bool, where the robust network is right under attack."""
        return _right(self.robust_attacked, self.labels)

    @classmethod
    def of(
        cls, robust: ClassifierModel, plain: ClassifierModel, data: ImageDataset, attack: Attack, seed: int
    ) -> _Seen:
        hard, soft = (_attacked(model, data, attack, seed) for model in (robust, plain))
        answers = {
            "robust": _logits(robust, data.images),
            "plain": _logits(plain, data.images),
            "robust_attacked": _logits(robust, hard),
            "plain_there": _logits(plain, hard),
            "plain_attacked": _logits(plain, soft),
        }
        found = cls(labels=data.labels, plain_images=soft, **answers)
        if not bool(found.held.any()):
            raise InputError(
                f"the robust classifier reads none of {len(data)} attacked validation images ({attack.describe()}): "
                "there is nothing for a mix to keep; train it adversarially, or name a smaller eps"
            )
        return found


def _chosen(base: Mapping[str, Any], seen: _Seen, beta: float) -> dict[str, Any]:
    """The configuration of the best s, p and c, with its alpha."""
    held, misread = seen.held, ~_right(seen.robust, seen.labels)
    lost = min(math.floor((1 - beta) * int(held.sum()) + 1e-9), int(held.sum()) - 1)
    best: tuple[tuple[float, float, float], dict[str, Any]] | None = None
    grid = list(itertools.product(SCALES, POWERS, SHIFTS))
    for scale, power, shift in track(grid, "mix", len(grid)):
        tried = {**base, "scale": scale, "power": power, "shift": shift}
        architecture: Any = create("classifier", "mixed", tried)
        margins = _margins(architecture, seen.robust_attacked, seen.labels)[held]
        cutoff = float(margins.sort().values[lost]) * _JUST_BELOW
        if cutoff <= 0:  # this map turns more answers over than may be lost
            continue
        tried["alpha"] = alpha = 1 / (1 + cutoff)
        architecture = create("classifier", "mixed", tried)
        right = _right(architecture.mixed(seen.robust, seen.plain), seen.labels)
        stubborn = (_gap(architecture.transformed(seen.robust))[misread] >= cutoff).double()
        merit = (
            round(balanced(right, seen.labels), 9),
            -round(float(stubborn.mean()), 9) if len(stubborn) else 0.0,
            round(float((alpha * margins - (1 - alpha)).mean()), 9),
        )
        if best is None or merit > best[0]:
            best = merit, tried
    if best is None:
        raise InputError(
            f"no map of {len(grid)} that were tried keeps {beta:.1%} of the {int(held.sum())} right answers of the "
            "robust classifier under attack: bring more validation images, or lower beta"
        )
    return best[1]


def _unit(seen: _Seen) -> float:
    """0, layer normalization; of two classes the median of the larger centred logit, which the former would make 1."""
    if seen.robust.shape[1] > 2:
        return 0.0
    return float((seen.robust - seen.robust.mean(1, keepdim=True)).amax(1).median().clamp(1e-6, 1e6))


def _joined(config: Mapping[str, Any], robust: ClassifierModel, plain: ClassifierModel) -> ClassifierModel:
    """A model of that configuration with copies of both networks' weights."""
    architecture: Classifier = create("classifier", "mixed", config)
    model = architecture.create_model(
        in_channels=robust.in_channels,
        num_classes=robust.num_classes,
        image_size=robust.image_size,
        class_names=robust.class_names,
        weights=None,
    )
    for name, member in (("robust", robust), ("plain", plain)):
        model.network.get_submodule(name).load_state_dict(member.network.state_dict())
    model.origin = _origin(robust, plain)
    return model.to(device_of(robust))


def _origin(*members: ClassifierModel) -> Origin | None:
    """Where the weights of both started from; no restriction of use is lost."""
    known = list(dict.fromkeys(member.origin for member in members if member.origin is not None))
    if len(known) < 2:
        return known[0] if known else None
    texts = {
        key: " and ".join(dict.fromkeys(text for one in known if (text := getattr(one, key))))
        for key in ("source", "licence", "restriction", "sha256")
    }
    return Origin(**texts, loaded=sum(one.loaded for one in known), wanted=sum(one.wanted for one in known))


def _attacked(model: nn.Module, data: ImageDataset, attack: Attack, seed: int) -> Tensor:
    """Images `(N, C, H, W)` attacked at their labels, on the CPU."""
    view, device, made = ThreatView(model), device_of(model), []
    for batch in track(data.batches(_TOGETHER), "attack validation images", -(-len(data) // _TOGETHER)):
        streams = Streams(seed, batch.ids)
        made.append(attack(view, batch.images.to(device), batch.labels.to(device), streams=streams).images.cpu())
    return torch.cat(made)


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """`(N, K)` in float64 on the CPU."""
    device = device_of(model)
    with as_they_answer(model):
        return torch.cat([model(part.to(device)).cpu().double() for part in images.split(_TOGETHER)])


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return verdicts(logits) == labels


def _gap(transformed: Tensor) -> Tensor:
    """m(x) `(N,)` of transformed logits `(N, K)`."""
    top = transformed.softmax(1).topk(2, 1).values
    return top[:, 0] - top[:, 1]


def _margins(architecture: Any, robust: Tensor, labels: Tensor) -> Tensor:
    """m `(N,)` of the label: below 0 where another class wins after the map."""
    shares = architecture.transformed(robust).softmax(1)
    own = torch.nn.functional.one_hot(labels, shares.shape[1]).bool()
    margins: Tensor = shares[own] - shares.masked_fill(own, -1).amax(1)
    return margins


def _accuracies(labels: Tensor, robust: Tensor, plain: Tensor, both: Tensor | None) -> dict[str, float]:
    told = {"robust": robust, "plain": plain} | ({} if both is None else {"mixed": both})
    return {name: balanced(_right(logits, labels), labels) for name, logits in told.items()}


def _check_members(robust: Any, plain: Any) -> None:
    for name, model in (("robust", robust), ("plain", plain)):
        if not isinstance(model, ClassifierModel):
            raise InputError(
                f"the {name} classifier must be a ClassifierModel, which a plugin builds and a saved mix rebuilds; got "
                f"{type(model).__name__}: build it by medfedpure.create('classifier', ...).create_model(...)"
            )
    facts = [
        f"{m.num_classes} classes ({', '.join(m.class_names)}), {m.in_channels} channels, {m.image_size} pixels"
        for m in (robust, plain)
    ]
    if facts[0] != facts[1]:
        raise InputError(
            f"the robust classifier has {facts[0]}, and the plain one {facts[1]}: build and train both for the "
            "same images"
        )


def _check_images(model: ClassifierModel, data: Any) -> None:
    if not isinstance(data, ImageDataset):
        raise InputError(
            f"the validation images must be an ImageDataset, with labels and groups; got a {type(data).__name__}: read "
            "them like the training images, or keep a part of those back by data.split"
        )
    wanted = (model.in_channels, model.image_size, model.image_size)
    if data.image_shape != wanted or data.class_names != model.class_names:
        raise DataError(
            f"{data.name} holds images of shape {data.image_shape} and the classes {', '.join(data.class_names)}; "
            f"these classifiers read {wanted} and {', '.join(model.class_names)}: read it like their training images"
        )
    if not len(data):
        raise DataError(f"{data.name} holds no image: bring labelled ones that neither classifier was trained on")
    missing = [name for place, name in enumerate(data.class_names) if not bool((data.labels == place).any())]
    if missing:
        raise DataError(
            f"{data.name} holds no image of {', '.join(missing)}, so that nothing would be kept there: bring images of "
            "every class"
        )
    check_recorded(data, "validation")
