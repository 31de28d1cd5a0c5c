"""Adversarial training of any task; how the images are made is in `crafting`.

    pgd, fast   min_w  E  L(w; x + d)                            of a share of each batch, L(w; x) of the rest
    trades      min_w  E  L(w; x) + beta KL(p(x) || p(x + d))    the divergence of a share of each batch

pgd: Madry et al. 2018, arXiv 1706.06083. trades: Zhang et al. 2019, arXiv 1901.08573. fast: Wong et al. 2020, arXiv
2001.03994; one step may be learned by heart, and several steps then fool what one no longer does. So every 20 steps,
from a fifth of the training on (a network that is not robust yet may fall to several steps and not to one), some
images are attacked by both. Where the several leave less than half of what the one leaves, an `OneStepWarning` says
so, and the training goes on with several steps, to its end (Li et al. 2020, "Towards understanding fast adversarial
training", arXiv 2006.03089, do so for a while).

**Augmentation comes first.** A classifier's images are attacked as they are shown to it: turned and stretched after the
attack, a perturbation would be smoothed by the interpolation, and the network would train against a weaker one than eps
allows.

**BatchNorm.** Images are crafted against running statistics and trained under those of the batch. The two are one
function only where the running ones are those of the images that pass together. With one set, therefore, clean and
attacked images pass together: in one batch (pgd, fast), or joined to one for a single pass (trades; the published code
passes them one after the other, and moves one set of statistics by both). With two sets, each kind passes through its
own (`second_set`), and is crafted against its own. Eps of 0 changes nothing in one set; with two, the images that will
be attacked go through theirs all the same, so that it is ready.

**AWP** (Wu et al. 2020, "Adversarial weight perturbation helps robust generalization", arXiv 2004.05884): the
gradient is taken at w_l + gamma ||w_l|| g_l / ||g_l||, for each weight w_l of two dimensions or more, with g_l the
gradient of the very loss. The weights themselves are not touched: the pass runs on moved copies.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.errors import OneStepWarning, TrainingError
from medfedpure.core.results import device_of
from medfedpure.core.settings import AdversarialTraining
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.task import Task, WrappedTask
from medfedpure.core.verdict import verdicts
from medfedpure.figures.metrics import classification_figures
from medfedpure.training.crafting import (
    SameDraws,
    chosen_of,
    divergence,
    log_probabilities,
    perturb,
    right,
    rows,
    with_images,
)
from medfedpure.training.second_set import SecondSet, installed, statistics_untouched

_WATCH_EVERY, _WATCHED, _WATCH_FROM = 20, 32, 0.2
_ROBUST, _UNDER_ATTACK = "robust_balanced_accuracy", "robust_loss"


def harden(model: nn.Module, batch: Batch, streams: Streams, settings: AdversarialTraining, objective: Task) -> Batch:
    """The batch with `share` of its images, rounded and chosen by their draws, moved against the model."""
    chosen = chosen_of(batch, streams, settings)
    if len(chosen) == 0:
        return batch
    return with_images(batch, chosen, perturb(model, rows(batch, chosen), streams.select(chosen), settings, objective))


class AdversarialTask(WrappedTask):
    """A task on batches of which a share is replaced by adversarial examples against the model as it is.

    Args:
        inner: what is learned.
        settings: share, method and attack.
        objective: the task whose loss the attacker maximizes.

    Raises:
        TrainingError: a method that needs a classifier's task, and it is none.
    """

    def __init__(self, inner: Task, settings: AdversarialTraining, objective: Task) -> None:
        super().__init__(inner)
        self.settings, self.objective = settings, objective
        self._step, self._progress = 0, 1.0
        self._added: SecondSet | None = None
        self._trained: frozenset[int] | None = None
        unfit = {"trades": inner, "fast": objective}.get(settings.method)
        if settings.share and unfit is not None and not unfit.classifies:
            raise TrainingError(
                f'method "{settings.method}" of adversarial training compares what a classifier answers, and '
                f'{type(unfit).__name__} does not ask the model for logits of whole batches: take "pgd" for this part'
            )

    def recipe(self) -> dict[str, Any]:
        """With share and attack."""
        return {**super().recipe(), "adversarial": self.settings.model_dump(mode="json")}

    def at(self, step: int, steps: int) -> None:
        """Where the training is decides eps, and whether weights are moved; a task that is not told is at its end."""
        super().at(step, steps)
        self._step, self._progress = step, step / steps

    @contextmanager
    def around(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[Sequence[nn.Parameter]]:
        """Inside it the model has its second set of BatchNorm, and remembers whether one step was too few.

        Raises:
            TrainingError: two sets of BatchNorm, of a model that has none.
        """
        doubled = self.settings.normalization != "shared"
        with super().around(model, parameters) as own:
            self._trained = frozenset(map(id, own))
            if not self.settings.share or not (doubled or self.settings.method == "fast"):
                yield own
                return
            with installed(model, own, doubled=doubled) as (added, everything):
                if doubled and not added.layers:
                    raise TrainingError(
                        f'normalization "{self.settings.normalization}" doubles BatchNorm layers, and '
                        f'{type(model).__name__} has none: set it to "shared"'
                    )
                self._added = added
                try:
                    yield everything
                finally:
                    self._added = None

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """The loss of the module's formula, scalar, after the attack.

        Raises:
            TrainingError: two sets of BatchNorm, or one step, outside of a training.
        """
        settings, streams = self.settings.at(self._progress), SameDraws.of(streams)
        if settings.share and self._added is None and (settings.normalization != "shared" or settings.method == "fast"):
            raise TrainingError(
                f'method "{settings.method}" with normalization "{settings.normalization}" remembers things while it '
                "trains: train by medfedpure.train, or within `with task.around(model, parameters)`"
            )
        chosen = chosen_of(batch, streams, settings)
        with _as_shown(model, batch, streams, self.objective) as shown:
            return self._loss(model, shown, chosen, streams, settings)

    def _loss(
        self, model: nn.Module, batch: Batch, chosen: Tensor, streams: Streams, settings: AdversarialTraining
    ) -> Tensor:
        """Of a batch as the model is shown it."""
        nothing = settings.eps == 0 and settings.normalization == "shared"
        if nothing or len(chosen) == 0 or (settings.method == "trades" and settings.beta == 0):
            with self._routed(attacked=False):
                return self.inner.loss(model, batch, streams)
        moved = self._crafted(model, rows(batch, chosen), streams.select(chosen), settings)

        def trained() -> Tensor:
            part = self._trades if settings.method == "trades" else self._replaced
            return part(model, batch, chosen, moved, streams)

        if not settings.awp or self._progress < settings.awp_start:
            return trained()
        return against_weights(model, trained, settings.awp, self._trained)

    def metrics(self, model: nn.Module, data: ImageDataset, *, batch_size: int = 64, seed: int = 0) -> dict[str, float]:
        """The inner task's, and under attack the loss of the objective and, of a classifier, balanced accuracy.

        The attack is PGD of `steps` steps within the whole eps on the objective's loss, through the model in eval mode,
        whatever the method is: from a random start by the seed, one run, nothing averaged.
        """
        figures = super().metrics(model, data, batch_size=batch_size, seed=seed)
        if not self.settings.share:
            return figures
        settings, device = self.settings.model_copy(update={"method": "pgd"}), device_of(model)
        total, answers = 0.0, []
        for batch in data.batches(batch_size):
            given, streams = batch.to(device), Streams(derive_seed(seed, "robust metrics"), batch.ids)
            attacked = replace(given, images=perturb(model, given, streams, settings, self.objective))
            with torch.no_grad():
                total += float(self.objective.loss(model, attacked, streams)) * len(batch.ids)
                if self.objective.classifies:
                    answers.append(verdicts(model(attacked.images)).cpu())
        found = {_UNDER_ATTACK: total / max(len(data), 1)}
        if answers:
            counted = classification_figures(torch.cat(answers), data.labels, data.num_classes)
            found[_ROBUST] = counted.balanced_accuracy
        return {**figures, **found}

    def worth(self, figures: Mapping[str, float]) -> tuple[float, ...]:
        """Balanced accuracy under attack where there is one, then the loss there; of share 0 the inner task's."""
        if _UNDER_ATTACK not in figures:
            return super().worth(figures)
        accuracy = (figures[_ROBUST],) if _ROBUST in figures else ()
        return (*accuracy, -figures[_UNDER_ATTACK])

    # -- one step ----------------------------------------------------------------------------------

    @contextmanager
    def _routed(self, *, attacked: bool) -> Iterator[None]:
        """Passes go through the BatchNorm of attacked or of clean images."""
        second = attacked == (self.settings.normalization == "dual_clean")
        with nullcontext() if self._added is None else self._added.routed(second):
            yield

    def _crafted(self, model: nn.Module, victims: Batch, streams: Streams, settings: AdversarialTraining) -> Tensor:
        """The victims' images `(M, C, H, W)` after the attack."""
        if settings.method == "trades":
            with self._routed(attacked=False):
                clean = log_probabilities(model, victims, streams, self.objective)
            with self._routed(attacked=True):
                return perturb(model, victims, streams, settings, self.objective, clean=clean)
        with self._routed(attacked=True):
            if settings.method == "pgd":
                return perturb(model, victims, streams, settings, self.objective)
            assert self._added is not None
            several = settings.model_copy(update={"method": "pgd"})
            if not self._added.several_steps:
                moved = perturb(model, victims, streams, settings, self.objective)
                watched = self._step % _WATCH_EVERY == 0 and self._progress >= _WATCH_FROM
                if not watched or not self._learned_by_heart(model, victims, moved, streams, several):
                    return moved
                self._added.several_steps = True
            return perturb(model, victims, streams, several, self.objective)

    def _learned_by_heart(
        self, model: nn.Module, victims: Batch, moved: Tensor, streams: Streams, several: AdversarialTraining
    ) -> bool:
        """Whether several steps fool what one step does not, of the first few images; then it warns."""
        few = torch.arange(min(_WATCHED, len(victims.ids)))
        some, own = rows(victims, few), SameDraws.of(streams.select(few))
        by_one = replace(some, images=moved[: len(few)])
        by_several = replace(some, images=perturb(model, some, own, several, self.objective))
        clean, one, many = right(model, (some, by_one, by_several), own, self.objective)
        # A classifier that nothing made robust yet falls to one step as well.
        if not (one >= 0.75 * clean and 2 * many < one and one - many >= min(4, len(few))):
            return False
        warnings.warn(
            f"step {self._step} of fast adversarial training: of {len(few)} images {one} are read correctly under its "
            f"one step ({several.norm}, eps {several.eps:.4g}), and {many} under PGD of {several.steps} steps: one "
            f"step was learned by heart (catastrophic overfitting). The training goes on with {several.steps} steps, "
            "which take longer",
            OneStepWarning,
            stacklevel=2,
        )
        return True

    def _replaced(self, model: nn.Module, batch: Batch, chosen: Tensor, moved: Tensor, streams: Streams) -> Tensor:
        """The inner loss of attacked and clean images, in one batch or each through its own BatchNorm."""
        if self.settings.normalization == "shared":
            return self.inner.loss(model, with_images(batch, chosen, moved), streams)
        rest = torch.ones(len(batch.ids), dtype=torch.bool).index_fill_(0, chosen, False).nonzero().squeeze(1)
        with self._routed(attacked=True):
            loss = self.inner.loss(model, replace(rows(batch, chosen), images=moved), streams.select(chosen))
        if len(rest) == 0:
            return loss
        with self._routed(attacked=False):
            clean = self.inner.loss(model, rows(batch, rest), streams.select(rest))
        return (len(chosen) * loss + len(rest) * clean) / len(batch.ids)

    def _trades(self, model: nn.Module, batch: Batch, chosen: Tensor, moved: Tensor, streams: Streams) -> Tensor:
        """The inner loss of the clean images, and the divergence of those attacked."""
        victims, own = replace(rows(batch, chosen), images=moved), streams.select(chosen)
        if self.settings.normalization == "shared":
            with _answers(model, self.objective.inputs(model, victims, own)) as seen:
                loss = self.inner.loss(model, batch, streams)
            logits, attacked = _only(seen, self.inner)
        else:
            with self._routed(attacked=False), _answers(model) as seen:
                loss = self.inner.loss(model, batch, streams)
            logits, _ = _only(seen, self.inner)
            with self._routed(attacked=True):
                attacked = model(self.objective.inputs(model, victims, own))
        clean = logits[chosen.to(logits.device)].float().log_softmax(1)
        return loss + self.settings.beta * divergence(clean, attacked) / len(batch.ids)


@contextmanager
def _as_shown(model: nn.Module, batch: Batch, streams: Streams, objective: Task) -> Iterator[Batch]:
    """The batch as a training shows it, augmented; inside the block no task augments again.

    Tasks read from the model's own mode whether to augment, and its layers keep theirs.
    """
    if not (model.training and objective.classifies):
        yield batch
        return
    shown = replace(batch, images=objective.inputs(model, batch, streams))
    model.training = False
    try:
        yield shown
    finally:
        model.training = True


def against_weights(
    model: nn.Module, loss: Callable[[], Tensor], gamma: float, trained: frozenset[int] | None = None
) -> Tensor:
    """A loss with every weight moved against itself, as the module says; its gradient is that of the weights.

    Args:
        model: as it is, before and after.
        loss: asks the model, in any way, for a scalar.
        gamma: of AWP.
        trained: ids of the parameters that may be moved; None = all.
    """
    weights = {
        name: weight
        for name, weight in model.named_parameters()
        if weight.requires_grad and weight.ndim >= 2 and (trained is None or id(weight) in trained)
    }
    if not weights:
        return loss()
    with statistics_untouched(model):
        gradients = torch.autograd.grad(loss(), list(weights.values()), allow_unused=True)
    moved = {
        f"model.{name}": weight + gamma * weight.detach().norm() / gradient.norm().clamp_min(1e-20) * gradient
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        if gradient is not None
    }
    answer: Tensor = torch.func.functional_call(_Asking(model, loss), moved, ())
    return answer


class _Asking(nn.Module):
    """A loss as a module around its model, which is how torch exchanges parameters for one call."""

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self) -> Tensor:
        return self.loss()


@contextmanager
def _answers(model: nn.Module, joined: Tensor | None = None) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What the model answers inside the block, `(N, K)` logits, and those `(M, K)` of images joined to each pass."""
    seen: list[tuple[Tensor, Tensor]] = []

    def join(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return None if joined is None else (torch.cat((given[0], joined)), *given[1:])

    def part(_: nn.Module, given: tuple[Any, ...], logits: Tensor) -> Tensor:
        size = len(given[0]) - (0 if joined is None else len(joined))
        seen.append((logits[:size], logits[size:]))
        return logits[:size]

    handles = (model.register_forward_pre_hook(join), model.register_forward_hook(part))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _only(seen: list[tuple[Tensor, Tensor]], inner: Task) -> tuple[Tensor, Tensor]:
    if len(seen) != 1:
        raise TrainingError(
            f"trades needs a loss that asks the model once, and that of {type(inner).__name__} asked {len(seen)} "
            "times: let its `classifies` be False"
        )
    return seen[0]
