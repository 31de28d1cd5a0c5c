"""Three recipes: what each fits, what it refuses, and how a policy is chosen by who knows it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chains import BENIGN, DATA, chain_of
from torch import Tensor, nn

import medfedpure
from medfedpure.core.errors import (
    ArtifactError,
    CalibrationError,
    ConfigError,
    InputError,
    MissingRequirementError,
    WeakDefenceWarning,
)
from medfedpure.defence.arms import Subject, choose_policy
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.recipe import ARMS, Arm, Choice, best_of, plan_of
from medfedpure.testing import tiny_classifier, tiny_dataset

QUICK = {"model": {"widths": [8, 8], "unshuffle": 2}, "training": {"steps": 2, "batch_size": 4}}


@pytest.fixture(autouse=True)
def _weak_they_are() -> Iterator[None]:
    """Defences that were trained for two steps are weak, which other tests are about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakDefenceWarning)
        yield


def defend(recipe: Any, **options: Any) -> DefendedClassifier:
    return medfedpure.defend(tiny_classifier(), BENIGN, recipe=recipe, target_fpr=0.1, **options)


# -- what a recipe says -----------------------------------------------------------------------------------------------


def test_paper_is_what_is_done_where_nothing_is_said() -> None:
    plan = plan_of("paper")
    assert (plan.detector, plan.purifier, plan.policy) == ("compose", "ddpm", "purify_flagged")
    said, unsaid = (
        medfedpure.defend(tiny_classifier(), BENIGN, target_fpr=0.1, purifier_config=QUICK, **given)
        for given in ({"recipe": "paper"}, {})
    )
    assert said.policy == unsaid.policy == "purify_flagged"
    assert torch.equal(said.calibration.scores, unsaid.calibration.scores)
    assert said.choice is None


def test_fast_fits_no_purifier_and_refuses_what_it_flags() -> None:
    lines: list[str] = []
    fast = defend("fast", say=lines.append)
    assert (fast.purifier, fast.policy) == (None, "abstain")
    assert fast.detector.name == "feature_squeezing"
    assert fast.detector.config.bits == (), "one filter is one pass"
    found = fast.predict(DATA, seed=0)
    assert torch.equal(found.abstained, found.flagged)
    assert not any("purifier" in line for line in lines)
    assert fast.own_check is not None


def test_what_is_said_wins_where_both_can_be() -> None:
    fast = defend("fast", detector="mahalanobis", policy="none", check_share=0)
    assert (fast.detector.name, fast.policy) == ("mahalanobis", "none")
    coarse = defend("fast", detector_config={"windows": (5,)}, check_share=0)
    assert (coarse.detector.config.bits, coarse.detector.config.windows) == ((), (5,))
    paper = defend("paper", detector="feature_squeezing", purifier="median", policy="purify_all", check_share=0)
    assert (paper.purifier.name, paper.policy) == ("median", "purify_all")
    assert paper.detector.config.bits == (5,), "what is named is taken as it is"


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        ("fast", {"purifier": "median"}, "fits no purifier, and the purifier 'median' was given: leave it out"),
        ("fast", {"purifier_config": QUICK}, "fits no purifier, and purifier_config was given: leave it out"),
        ("fast", {"policy": "purify_all"}, "fits no purifier, which the policy 'purify_all' needs"),
        ("robust", {"policy": "none"}, "chooses the policy on held-out images, and the policy 'none' was given"),
        ("quick", {}, "no recipe is named 'quick'. The recipes are paper, robust, fast"),
        ("robst", {}, "no recipe is named 'robst'. Did you mean 'robust'? The recipes are"),
        ("paper", {"policy": "hope"}, "no policy is named 'hope'"),
        ("robust", {"eps": 2.0}, "eps"),
        ("robust", {"eps": 0}, "eps > 0 is wanted"),
        ("robust", {"eps": "much"}, "eps"),
        ("paper", {"eps": 0.05}, "eps is how far the recipe 'robust' attacks, and the recipe is 'paper'"),
        ("fast", {"eps": 0.05}, "eps is how far the recipe 'robust' attacks, and the recipe is 'fast'"),
        ("paper", {"purifier": ""}, "the purifier has an empty name"),
        ("fast", {"detector": ""}, "the detector has an empty name"),
        ("fast", {"votes": 3}, "a vote over 3 draws has nothing to draw under the policy 'abstain'"),
        ("paper", {"votes": 0}, "a vote has draws >= 1"),
        ("paper", {"purifier": "median", "votes": 3}, "3 draws of the purifier 'median' are all the same"),
    ],
)
def test_contradictions_are_refused_before_anything_is_fitted(recipe: Any, options: dict[str, Any], words: str) -> None:
    lines: list[str] = []
    with pytest.raises(ConfigError, match=re.escape(words)):
        defend(recipe, say=lines.append, **options)
    assert not lines


def test_votes_average_purifications_and_end_where_nothing_is_purified(tmp_path: Path) -> None:
    voting = defend("paper", detector="feature_squeezing", purifier="smoothing", votes=3, check_share=0)
    assert voting.vote == medfedpure.Vote(3)
    voting.save(tmp_path / "saved")
    assert DefendedClassifier.load(tmp_path / "saved").vote.draws == 3
    data = tiny_dataset(160, seed=4)
    parts = {"detector": "feature_squeezing", "purifier": "smoothing", "check_share": 0}
    chosen = medfedpure.defend(tiny_classifier(), data, recipe="robust", votes=3, **parts)
    assert chosen.vote.draws == (3 if chosen.policy in ("purify_flagged", "purify_all") else 1)


def test_a_detector_that_needs_a_purifier_is_refused_by_fast() -> None:
    with pytest.raises(MissingRequirementError, match="denoiser"):
        defend("fast", detector="compose")


def test_a_classifier_without_gradients_is_refused_by_robust_before_anything_is_fitted() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_classifier()

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images).detach()

    lines: list[str] = []
    with pytest.raises(MissingRequirementError, match=r"by its gradient, which failed: .*Take the recipe 'paper'"):
        medfedpure.defend(Detached(), BENIGN, recipe="robust", target_fpr=0.1, say=lines.append)
    assert not lines


def test_images_that_do_not_fit_are_no_matter_of_gradients() -> None:
    with pytest.raises(InputError, match=r"reads images of shape \(N, 3"):
        medfedpure.defend(tiny_classifier(channels=3), BENIGN, recipe="robust", target_fpr=0.1)


# -- the choice -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def robust() -> DefendedClassifier:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakDefenceWarning)
        return defend("robust", detector="feature_squeezing", purifier="median", eps=0.05)


def test_robust_takes_the_policy_of_the_best_worst_case(robust: DefendedClassifier) -> None:
    choice = robust.choice
    assert choice is not None
    assert [arm.policy for arm in choice.arms] == list(ARMS)
    assert min(arm.clean for arm in choice.arms) > choice.guessing == 0.5
    best = max(arm.worst for arm in choice.arms)
    assert robust.policy == choice.policy == next(arm.policy for arm in choice.arms if arm.worst == best)
    for arm in choice.arms:
        assert 0 <= arm.worst <= min(arm.clean, arm.static, arm.knowing)
    assert choice.truth == "labels"
    assert choice.images == 10
    text = choice.describe()
    for words in ("norm linf, eps 0.05", "steps 10", "EoT 1", "flatter", "bpda: identity gradient", *ARMS):
        assert words in text, f"{words!r} is missing:\n{text}"


def test_the_images_of_choice_check_and_threshold_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[int]] = {}
    choose, calibrate = medfedpure.defence.defend.choose_policy, DefendedClassifier.calibrate  # type: ignore[attr-defined]
    check = medfedpure.defence.defend.check_itself  # type: ignore[attr-defined]

    def note(what: str, data: Any) -> None:
        seen[what] = set(data.groups.tolist())

    monkeypatch.setattr(
        "medfedpure.defence.defend.choose_policy",
        lambda subjects, **options: (note("choose", subjects[0].images), choose(subjects, **options))[1],
    )
    monkeypatch.setattr(
        "medfedpure.defence.defend.check_itself",
        lambda chain, data, **options: (note("check", data), check(chain, data, **options))[1],
    )
    monkeypatch.setattr(
        DefendedClassifier,
        "calibrate",
        lambda self, data, *given, **options: (note("calibrate", data), calibrate(self, data, *given, **options))[1],
    )
    lines: list[str] = []
    data = tiny_dataset(160, seed=4)
    robust = medfedpure.defend(
        tiny_classifier(), data, recipe="robust", detector="feature_squeezing", purifier="median", say=lines.append
    )
    assert len(seen) == 3
    assert all(not one & other for what, one in seen.items() for name, other in seen.items() if what != name)
    assert robust.own_check is not None
    assert robust.own_check.policy == robust.policy
    assert any("to choose" in line for line in lines)


def test_too_few_images_say_how_many_are_wanted() -> None:
    with pytest.raises(CalibrationError, match=r"bring about 45 in all.* 10 to choose the policy on and as many"):
        medfedpure.defend(tiny_classifier(), tiny_dataset(60), recipe="robust", target_fpr=0.1, check_share=0.1)


def test_the_choice_is_saved_and_loaded_and_forgotten_with_another_threshold(
    robust: DefendedClassifier, tmp_path: Path
) -> None:
    robust.save(tmp_path / "robust")
    loaded = DefendedClassifier.load(tmp_path / "robust")
    assert loaded.choice == robust.choice
    assert loaded.policy == robust.policy
    assert loaded.calibrate(BENIGN, 0.3).choice is None


def test_a_choice_that_cannot_be_is_refused(robust: DefendedClassifier) -> None:
    choice = robust.choice
    assert choice is not None
    document = choice.document()
    assert Choice.read(document, "here") == choice
    better = {**document["arms"][0], "worst": 1.0, "policy": next(p for p in ARMS if p != choice.policy)}
    for changes in (
        {"images": 0},
        {"arms": []},
        {"policy": "abstain"},
        {"arms": [*document["arms"], better]},
        {"arms": [{**document["arms"][0], "clean": 1.5}, *document["arms"][1:]]},
        {"arms": [{"policy": "none"}]},
        {"images": "ten"},
        {"colour": "red"},
    ):
        with pytest.raises(ArtifactError):
            Choice.read({**document, **changes}, "here")


def arm(policy: Any, clean: float, worst: float) -> Arm:
    return Arm(policy, clean, worst, worst, worst, None, None, "exact, EoT 4", 0.002)


class Brittle(nn.Module):
    """Reads a class from one pixel of little contrast, which a small change turns over."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(50.0))

    def forward(self, images: Tensor) -> Tensor:
        said = self.weight * (images[:, 0, 0, 0] - 0.5)
        return torch.stack((-said, said), 1)


def a_choice(eps: float, contrast: int = 8) -> Choice:
    """Of three policies around a median filter, which takes the one pixel that matters from its neighbours.

    Args:
        eps: of the attacks.
        contrast: of the neighbours, of 255; the pixel itself has 8.
    """
    count = 24
    labels = torch.arange(count) % 2
    pixels = torch.full((count, 1, 8, 8), 128, dtype=torch.uint8)
    sign = 2 * labels - 1
    pixels[:, 0, :3, :3] = (128 + contrast * sign).to(torch.uint8)[:, None, None]
    pixels[:, 0, 0, 0] = (128 + 8 * sign).to(torch.uint8)
    data = medfedpure.ImageDataset(pixels, labels, torch.arange(count), ("dark", "bright"))
    detector, median = medfedpure.create("detector", "feature_squeezing"), medfedpure.create("purifier", "median")
    chain = DefendedClassifier(Brittle(), detector=detector, purifier=median)
    chain.calibrate(data.images, 0.1)
    return choose_policy([Subject(chain, data)], eps=eps)


def test_the_policy_that_holds_is_found() -> None:
    choice = a_choice(0.05, contrast=60)
    worst = {arm.policy: arm.worst for arm in choice.arms}
    assert (worst["none"], worst["purify_all"]) == (0.0, 1.0)
    assert worst[choice.policy] == 1.0


def test_a_gate_without_gradient_does_not_look_strong_for_it() -> None:
    """Through the gate only BPDA works, which is weak here; what goes by the filter's own gradient falls on both."""
    choice = a_choice(0.05)
    gated, filtered = choice.arms[1:]
    assert gated.view.startswith("bpda")
    assert filtered.view.startswith("exact")
    assert gated.knowing > filtered.knowing
    assert gated.worst <= filtered.worst


def test_of_equal_worst_cases_the_cheapest_is_taken() -> None:
    choice = a_choice(0.01)
    assert {arm.worst for arm in choice.arms} == {1.0}
    assert choice.policy == "none"


def test_clients_are_pooled_and_their_order_changes_nothing_that_matters() -> None:
    one, other = (Subject(chain_of(), tiny_dataset(16, seed=seed)) for seed in (5, 6))
    alone = choose_policy([one], eps=0.05, steps=3)
    both = choose_policy([one, other], eps=0.05, steps=3)
    assert (alone.images, both.images) == (8, 16)
    again = choose_policy([one, other], eps=0.05, steps=3)
    assert [replace(arm, seconds=0.0) for arm in again.arms] == [replace(arm, seconds=0.0) for arm in both.arms]


def test_without_labels_the_classifiers_own_verdicts_are_the_truth() -> None:
    choice = choose_policy([Subject(chain_of(), medfedpure.defence.defend.from_tensor(DATA.images[:6]))], steps=2)  # type: ignore[attr-defined]
    assert choice.truth == "the classifier's verdicts on the unattacked images"
    assert choice.arms[0].clean == 1.0


def test_labels_are_the_truth_of_all_clients_or_of_none() -> None:
    bare = medfedpure.defence.defend.from_tensor(DATA.images[:6])  # type: ignore[attr-defined]
    labelled = tiny_dataset(16, seed=5)
    chain = chain_of()
    wrong = replace(labelled, labels=1 - chain.classifier(labelled.images).argmax(1))
    both = choose_policy([Subject(chain, wrong), Subject(chain_of(), bare)], steps=1)
    assert both.truth == "the classifier's verdicts on the unattacked images"
    assert both.arms[0].clean == 1.0


def test_eps_may_be_written_as_a_fraction() -> None:
    one, other = (choose_policy([Subject(chain_of(), DATA)], eps=eps, steps=1) for eps in ("4/80", 0.05))
    assert one.attack == other.attack
    assert [found.worst for found in one.arms] == [found.worst for found in other.arms]


def test_a_policy_that_reads_no_better_than_a_coin_is_not_taken_for_its_worst_case() -> None:
    arms = (arm("none", 0.9, 0.2), arm("purify_flagged", 0.9, 0.1), arm("purify_all", 0.5, 0.4))
    assert best_of(arms, 0.5) == "none"
    assert best_of([replace(one, clean=0.4) for one in arms], 0.5) == "purify_all", "of those that all guess the best"
    choice = Choice("none", 40, "labels", 0.5, "norm linf, eps 0.03", arms)
    assert choice.describe().startswith(
        "no policy holds: the best worst case is 20.0% on 40 images, and guessing gives"
    )
    assert not Choice("none", 40, "labels", 0.1, "x", (arm("none", 0.9, 0.2),)).weakness()


def test_that_nothing_holds_is_a_warning_where_it_is_made() -> None:
    with pytest.warns(WeakDefenceWarning, match=r"no policy holds: .*eps 0\.3.*adversarial examples"):
        defend("robust", detector="feature_squeezing", purifier="median", eps=0.3, check_share=0)


def test_an_arm_says_its_interval_and_time() -> None:
    one = replace(arm("none", 0.9, 0.4), low=0.2, high=0.6)
    assert "worst case 40.0% (95 % interval 20% to 60%), 2 ms an image; exact, EoT 4" in one.describe()
