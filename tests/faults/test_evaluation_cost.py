"""Faults of what an evaluation says that it takes: "at most" must bound what is counted, memory must be its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from chains import BENIGN, diffusing
from planted import GoodDetector, GoodPurifier
from torch import Tensor, nn

from medfedpure.core.registry import create
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.voting import Vote
from medfedpure.evaluation import evaluate as module
from medfedpure.evaluation import work
from medfedpure.evaluation.cost import Cost, foresee
from medfedpure.evaluation.evaluate import beside_itself, evaluate
from medfedpure.evaluation.ladder import Preset
from medfedpure.evaluation.pairs import Victims
from medfedpure.parallel import memory
from medfedpure.testing import tiny_classifier, tiny_dataset

SHORT = Preset("short", 6, 3, 2, 2, 2, 3, 2, "for tests")
SHORTEST = Preset("shortest", 4, 2, 1, 1, 1, 1, 1, "for tests")
DATA = tiny_dataset(24, seed=21)
KINDS = ("gradients", "answers", "passes")


class Still(GoodDetector):
    deterministic = True

    def score(self, images: Tensor, *, context: object, streams: object) -> Tensor:
        return images.diff(dim=3).square().flatten(1).mean(1) * 100


class StillPurifier(GoodPurifier):
    deterministic = True

    def purify(self, images: Tensor, strength: Tensor, *, streams: object):
        return super().purify(images, strength, streams=_Silent())


class _Silent:
    def normal(self, shape: object, *, stage: str, like: Tensor) -> Tensor:
        return torch.zeros_like(like)


def made(policy: str, *, stochastic: bool = True) -> DefendedClassifier:
    detector, purifier = (GoodDetector(), GoodPurifier()) if stochastic else (Still(), StillPurifier())
    chain = DefendedClassifier(
        tiny_classifier(),
        detector=detector if policy in ("purify_flagged", "abstain") else None,
        purifier=purifier if policy in ("purify_flagged", "purify_all") else None,
        policy=policy,
    )
    return chain.calibrate(BENIGN, 0.3) if chain.detector is not None else chain


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch, *bare: nn.Module) -> Iterator[Counter[str]]:
    """Rows that defences, and classifiers outside of them, look at inside the block."""
    found: Counter[str] = Counter()
    inside = [0]
    inspect, clean = DefendedClassifier.inspect, DefendedClassifier.clean

    def counted(original, what: str):
        def run(self, images: Tensor, *given, **options):
            asked = torch.is_grad_enabled() and images.requires_grad
            found[f"{what}{'gradients' if asked else 'answers'}"] += len(images)
            inside[0] += 1
            try:
                return original(self, images, *given, **options)
            finally:
                inside[0] -= 1

        return run

    def passed(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        del model
        found["passes"] += 0 if inside[0] else len(inputs[0])

    with monkeypatch.context() as patched:
        patched.setattr(DefendedClassifier, "inspect", counted(inspect, ""))
        patched.setattr(DefendedClassifier, "clean", counted(clean, "cleaned "))
        hooks = [model.register_forward_pre_hook(passed) for model in dict.fromkeys(bare)]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()


def told_and_counted(
    monkeypatch: pytest.MonkeyPatch,
    arms: dict[str, DefendedClassifier],
    attackers: dict[str, nn.Module],
    federation: Victims,
    *,
    eps: tuple[float, ...],
    preset: Preset = SHORT,
    batch_size: int = 64,
) -> tuple[Cost, Counter[str]]:
    """What was foreseen, and what was looked at after that was told."""
    told: list[Cost] = []
    foresee = work.foresee_each
    bare = [chain.classifier for chain in arms.values()] + [chain.classifier for chain, _ in federation.values()]
    with monkeypatch.context() as patched, counting(monkeypatch, *bare, *attackers.values()) as rows:

        def noted(*given, **options) -> list[Cost]:
            each = foresee(*given, **options)
            told.append(sum(each, Cost()))
            rows.clear()
            return each

        patched.setattr(work, "foresee_each", noted)
        told_to = {"attackers": attackers, "federation": federation, "batch_size": batch_size}
        evaluate(arms, DATA, preset=preset, eps=eps, **told_to)
        return told[0], Counter(rows)


def never(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    return torch.zeros(len(logits), dtype=torch.bool)


def every_other_look(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Never in every look of a stochastic view, so that nothing leaves, and often enough that all is judged again."""
    return torch.arange(len(logits)) % 2 == 0


@contextmanager
def attacks_that_see(monkeypatch: pytest.MonkeyPatch, judge) -> Iterator[None]:
    with monkeypatch.context() as patched:
        for name in ("gradient", "aware", "fab"):
            patched.setattr(f"medfedpure.plugins.attacks.{name}.is_fooled", judge)
        yield


def victims() -> Victims:
    return {"a": (made("purify_flagged"), DATA), "b": (made("none"), tiny_dataset(20, seed=5))}


@pytest.mark.parametrize("stochastic", [True, False], ids=["stochastic", "deterministic"])
@pytest.mark.parametrize("policy", ["none", "abstain", "purify_flagged", "purify_all"])
def test_a17_no_more_is_counted_than_was_foreseen(policy, stochastic, monkeypatch) -> None:
    """A17: gradients, answers and passes are bounded, and not out of all proportion."""
    arms, attackers = {"it": made(policy, stochastic=stochastic)}, {"other": tiny_classifier(steps=5)}
    for judge in (never, every_other_look):
        with attacks_that_see(monkeypatch, judge):
            told, rows = told_and_counted(monkeypatch, arms, attackers, victims(), eps=(1e-4,))
        for kind in KINDS:
            assert 0 < rows[kind] <= getattr(told, kind), f"{kind}: {rows[kind]} of {getattr(told, kind)} foreseen"
            assert rows[f"cleaned {kind}"] <= rows[kind], "an answer has one purification at the most"
        if judge is never:
            for kind in KINDS:
                assert getattr(told, kind) <= 3 * rows[kind], f"{kind}: {getattr(told, kind)} for {rows[kind]}"


@pytest.mark.parametrize("stochastic", [True, False], ids=["stochastic", "deterministic"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a17_the_suite_is_foreseen_by_its_parts(classes, stochastic, monkeypatch) -> None:
    """A17: which parts it has follows from the classes and the noise."""
    bare, wide = made("none"), made("purify_all", stochastic=stochastic)
    for chain in (bare, wide):
        monkeypatch.setattr(chain, "classifier", Wider(chain.classifier, classes))
    with attacks_that_see(monkeypatch, never):
        preset = replace(SHORTEST, suite=True)
        told, rows = told_and_counted(monkeypatch, {"bare": bare, "it": wide}, {}, {}, eps=(1e-4,), preset=preset)
    for kind in KINDS:
        assert 0 < rows[kind] <= getattr(told, kind), f"{kind}: {rows[kind]} of {getattr(told, kind)} foreseen"
        assert getattr(told, kind) <= 3 * rows[kind], f"{kind}: {getattr(told, kind)} for {rows[kind]}"


@pytest.mark.parametrize("kind", KINDS)
def test_a17_chunks_of_one_image_are_foreseen(kind, monkeypatch) -> None:
    """A17: what an attack asks once of every chunk is counted for each."""
    preset = replace(SHORTEST, suite=True)
    arms = {"bare": made("none", stochastic=False), "it": made("purify_all", stochastic=False)}
    with attacks_that_see(monkeypatch, never):
        told, rows = told_and_counted(monkeypatch, arms, {}, {}, eps=(1e-4,), preset=preset, batch_size=1)
    assert 0 < rows[kind] <= getattr(told, kind)


class Wider(nn.Module):
    """The same answers, and further classes that are less likely."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model, self.classes = model, classes

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        lower = [logits[:, :1] - 1 - place for place in range(self.classes - 2)]
        return torch.cat((logits, *lower), 1)


def test_a17_what_defences_share_is_foreseen_once(monkeypatch) -> None:
    """A17: attacks that know the classifier alone are crafted once for all defences around it."""
    arms = beside_itself(made("purify_flagged"))
    with attacks_that_see(monkeypatch, never):
        told, rows = told_and_counted(monkeypatch, arms, {"other": tiny_classifier(steps=5)}, {}, eps=(1e-4,))
    for kind in KINDS:
        assert rows[kind] <= getattr(told, kind) <= 3 * rows[kind]


def test_a17_a_vote_and_a_shortened_purifier_are_bounded(monkeypatch) -> None:
    """A17: a vote is one answer, a shortened purifier one gradient."""
    arms = {"it": diffusing(2, Vote(draws=3))}
    told, rows = told_and_counted(monkeypatch, arms, {}, {}, eps=(0.05,), preset=SHORTEST)
    for kind in KINDS:
        assert 0 < rows[kind] <= getattr(told, kind)


def test_a17_what_has_no_gradient_is_foreseen_without(monkeypatch) -> None:
    """A17: attacks that a defence cannot be attacked by cost nothing."""
    detector = create("detector", "feature_squeezing")
    chain = DefendedClassifier(tiny_classifier(), detector=detector, policy="abstain").calibrate(BENIGN, 0.3)
    told, rows = told_and_counted(monkeypatch, {"it": chain}, {}, {}, eps=(0.01, 0.05))
    for kind in KINDS:
        assert rows[kind] <= getattr(told, kind)
    assert told.gradients <= 2 * SHORT.checked


def test_a17_every_kind_is_told() -> None:
    """A17: the line names all that is counted, and the seconds of all."""
    said = str(Cost(1000, 20, 3, 7.0))
    assert "3 passes of bare classifiers" in said
    assert "20 answers" in said
    assert "1,000 gradient evaluations of whole defences, at most 7 s here" in said


def test_a17_timing_leaves_an_attackers_model_as_it_is() -> None:
    """A17: to time an attacker's model in training mode moves none of its statistics."""
    norm = nn.BatchNorm2d(1)
    other = nn.Sequential(norm, tiny_classifier()).train()
    foresee([made("none")], DATA.images[:8], SHORT, "linf", (0.05,), {"other": other}, seed=0)
    assert float(norm.running_mean) == 0
    assert norm.training


class OnAnotherCard(nn.Module):
    """Stands in for a module on a second GPU."""


def test_a19_memory_is_that_of_the_evaluation_alone(monkeypatch, tmp_path) -> None:
    """A19: the peak of every GPU concerned is forgotten at the start, and read from those."""
    peaks = {torch.device("cuda", 0): 900 * 2**20, torch.device("cuda", 1): 700 * 2**20}

    def forget(device: torch.device) -> None:
        peaks[torch.device(device)] = 0

    def held(device: torch.device) -> int:
        peaks[device] = max(peaks[device], 2**20 if device.index == 1 else 0)
        return peaks[device]

    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", forget)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", held)
    from medfedpure.evaluation.store import Store

    there = OnAnotherCard()
    where = memory.device_of
    monkeypatch.setattr(memory, "device_of", lambda one: torch.device("cuda", 1) if one is there else where(one))
    store = Store(tmp_path / "new", {"seed": 0}, [there, nn.Linear(1, 1)])
    assert store.costs()["peak_memory_mb"] == 1
    assert peaks[torch.device("cuda", 0)] == 900 * 2**20, "a card that holds nothing of this is left alone"
    assert memory.peak_memory_mb([nn.Linear(1, 1)]) not in (None, 900)


def test_a19_memory_of_attackers_and_clients_is_seen(monkeypatch) -> None:
    """A19: whoever takes part is asked where it is: defences, attackers' models, and clients of a federation."""
    seen: list[nn.Module] = []

    class Noted(module.Store):
        def __init__(self, out, setting, modules=()) -> None:
            seen.extend(modules)
            super().__init__(out, setting)

    monkeypatch.setattr(module, "Store", Noted)
    arms, others, clients = {"it": made("none")}, {"other": tiny_classifier(steps=5)}, victims()
    evaluate(arms, DATA, preset=SHORT, eps=(1e-4,), attackers=others, federation=clients)
    assert {*arms.values(), *others.values(), *(chain for chain, _ in clients.values())} == set(seen)
