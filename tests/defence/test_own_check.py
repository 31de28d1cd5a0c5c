"""What a fresh defence says of itself: of images that it held out, how many attacked ones it flagged and restored."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import medfedpure
from medfedpure import DefendedClassifier, ImageDataset, defend
from medfedpure.core.errors import ArtifactError, CalibrationError, ConfigError, WeakDefenceWarning
from medfedpure.defence.budget import Budget
from medfedpure.defence.defend import _divided, _held_out
from medfedpure.defence.own_attack import ATTACK, CONDITIONS, check_itself
from medfedpure.defence.own_check import OwnCheck
from medfedpure.testing import tiny_classifier, tiny_dataset

DATA = replace(tiny_dataset(120, seed=3), groups=torch.arange(120))
PARTS = {"detector": "feature_squeezing", "purifier": "median", "target_fpr": 0.2}
SEEN = OwnCheck(20, 12, 3, 9, 1, 19, "purify_flagged", CONDITIONS)


class Foreign(nn.Module):
    """A model whose answer has no gradient, or refuses to be asked for one."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how = tiny_classifier(), how

    def forward(self, images: Tensor) -> Tensor:
        if self.how == "numpy":
            return self.inner(torch.from_numpy(images.numpy()))  # which numpy refuses where a gradient is wanted
        return self.inner(images.detach())


def quietly(model: nn.Module, data: ImageDataset = DATA, **options: object) -> DefendedClassifier:
    """Whatever it is worth."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakDefenceWarning)
        return defend(model, data, **{**PARTS, **options})


@pytest.fixture(scope="module")
def defended() -> DefendedClassifier:
    return quietly(tiny_classifier())


def test_it_counts_what_can_be_counted_again(defended: DefendedClassifier) -> None:
    """The same images, attacked here, are fooled, flagged and restored as often as the check says."""
    held_out = tiny_dataset(40, seed=11).one_per_group()
    found = check_itself(defended, held_out, seed=5)
    said = defended.classifier(held_out.images).argmax(1)
    attack = medfedpure.create("attack", "pgd_eot", ATTACK)
    attacked = attack(medfedpure.static_view(defended), held_out.images, said)
    read, benign = defended.predict(attacked.images, seed=0), defended.predict(held_out.images, seed=0)
    fooled = read.bare_logits.argmax(1) != said
    assert 0 < int(fooled.sum()) < len(held_out), "some, not all, must be fooled for this test to say anything"
    assert (found.images, found.fooled) == (len(held_out), int(fooled.sum()))
    assert found.flagged == int((fooled & read.flagged).sum())
    assert found.restored == int((fooled & (read.labels == said)).sum())
    assert found.benign_flagged == int(benign.flagged.sum())
    assert found.benign_kept == int((benign.labels == said).sum())


def test_its_words_hold_every_condition_of_the_attack(defended: DefendedClassifier) -> None:
    text = str(defended.own_check)
    for word in (
        "norm linf",
        "eps 8/255",
        "step 2/255",
        "10 steps",
        "static",
        "ignores the defence",
        "EoT 1",
        "pgd_eot",
    ):
        assert word in text, f"{word!r} is missing: {text}"
    config = medfedpure.create("attack", "pgd_eot", ATTACK).config
    assert (config.norm, config.steps, config.eot) == ("linf", 10, 1)
    assert (config.eps, config.step) == (pytest.approx(8 / 255), pytest.approx(2 / 255))
    assert len(text.splitlines()) == 2


def test_little_is_warned_of_with_numbers_and_a_remedy() -> None:
    with pytest.warns(
        WeakDefenceWarning, match=r"only 3 of 12 \(25%, 95 % interval .* flagged \(pgd_eot, .*\. Do this"
    ):
        SEEN.warn("Do this")
    with pytest.warns(WeakDefenceWarning, match=r"flagged and 5 of 12 .* restored"):
        replace(SEEN, restored=5).warn("Do this")
    replace(SEEN, flagged=6, restored=6).warn("nothing")  # half is not little
    replace(SEEN, fooled=0, flagged=0, restored=0).warn("nothing")


def test_what_a_policy_does_not_do_is_not_asked_of_it() -> None:
    assert replace(SEEN, flagged=0, policy="purify_all").weaknesses() == []
    assert replace(SEEN, flagged=12, restored=0, policy="abstain").weaknesses() == []
    assert "restored" not in replace(SEEN, policy="abstain").describe()
    assert "restored" in SEEN.describe()


@pytest.mark.parametrize(
    ("budget", "purifier", "remedy"),
    [
        ("quick", "ddpm", r'Train longer, budget="standard" or "thorough", or bring more'),
        ("standard", "ddpm", r'Train longer, budget="thorough", or bring more'),
        ("thorough", "ddpm", r"\. Bring more benign images, or choose another"),
        ("quick", "median", r"\. Choose another detector or purifier, for these learn nothing"),
    ],
)
def test_a_weak_defence_is_warned_of_where_it_is_made(
    budget: Budget, purifier: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever called `defend` is told, and to train longer only where something is trained."""
    monkeypatch.setattr("medfedpure.defence.defend.check_itself", lambda *_, **__: SEEN)
    hasty = {"model": {"widths": [8, 8]}, "training": {"steps": 1, "batch_size": 4}} if purifier == "ddpm" else None
    with pytest.warns(WeakDefenceWarning, match=remedy) as caught:
        defend(tiny_classifier(), DATA, **PARTS | {"purifier": purifier, "purifier_config": hasty}, budget=budget)
    assert caught[0].filename == __file__


def test_a_weak_defence_without_a_purifier_needs_another_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medfedpure.defence.defend.check_itself", lambda *_, **__: SEEN)
    with pytest.warns(WeakDefenceWarning, match=r"take the recipe 'paper' or 'robust', or another detector") as caught:
        defend(tiny_classifier(), DATA, recipe="fast")
    assert "purifier:" not in str(caught[0].message), "it has none to be replaced"


@pytest.mark.parametrize("how", ["numpy", "detached"])
def test_a_model_without_gradient_is_no_crash(how: str) -> None:
    found = defend(Foreign(how), DATA, **PARTS).own_check
    assert found is not None
    assert found.fooled == found.flagged == found.restored == 0
    assert found.benign_kept > 0
    assert "no attack was made: the classifier could not be attacked by its gradient" in str(found)


class Certain(nn.Module):
    """Sees nothing but the mean of an image, which no small change moves across the border."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack((images.flatten(1).mean(1) + 5, images.flatten(1).mean(1) * 0), 1)


def test_a_model_that_nothing_fools_says_so() -> None:
    found = defend(Certain(), DATA, **PARTS).own_check
    assert found is not None
    assert "fools the bare classifier on none" in str(found)


# -- the images that it holds out -------------------------------------------------------------------------------------


def test_the_threshold_is_the_same_without_a_check() -> None:
    """Feature squeezing and a median learn nothing, so the threshold could only move by the split."""
    with_check, without = quietly(tiny_classifier(), check_share=0.2), quietly(tiny_classifier(), check_share=0)
    assert torch.equal(with_check.calibration.scores, without.calibration.scores)
    assert without.own_check is None
    assert with_check.own_check.images == 24


@pytest.mark.parametrize(("groups", "share", "images"), [(120, 0.1, 12), (60, 0.1, 10), (120, 0.6, 64)])
def test_ten_to_sixty_four_images_are_held_out(groups: int, share: float, images: int) -> None:
    some = DATA.select(torch.arange(groups))
    assert quietly(tiny_classifier(), some, check_share=share).own_check.images == images


def test_groups_are_kept_together_and_counted_once() -> None:
    twins = replace(DATA, groups=torch.arange(120) // 2)
    assert quietly(tiny_classifier(), twins, check_share=0.25).own_check.images == 15
    rest, held_out = _held_out(twins, 15, seed=1)
    assert (len(rest), len(held_out)) == (90, 15)
    assert not torch.isin(held_out.groups, rest.groups).any()


def test_too_few_are_answered_with_how_many_in_all() -> None:
    few = DATA.select(torch.arange(24))
    with pytest.raises(CalibrationError, match=r"24 .* bring about 30 in all, .* 4 are kept .* 10 for the own check"):
        defend(tiny_classifier(), few, **PARTS)
    assert defend(tiny_classifier(), few, check_share=0, **PARTS).own_check is None
    assert quietly(tiny_classifier(), DATA.select(torch.arange(30))).own_check.images == 10


@pytest.mark.parametrize(("classes", "came"), [(2, 98), (3, 3), (7, 3)])
def test_as_many_as_were_asked_for_are_enough_of_several_classes_too(classes: int, came: int) -> None:
    """Each class is dealt by itself, so that the threshold may get one image less of each."""

    def asking(count: int) -> ImageDataset:
        pixels, names = torch.zeros(count, 1, 2, 2, dtype=torch.uint8), tuple("abcdefg"[:classes])
        return ImageDataset(
            pixels=pixels, labels=torch.arange(count) % classes, groups=torch.arange(count), class_names=names
        )

    with pytest.raises(CalibrationError, match=f"{came} independent benign images came") as refused:
        _divided(asking(came), 0.5, 0.09, 0.02, 0)
    wanted = int(str(refused.value).partition("bring about ")[2].partition(" ")[0])
    assert _divided(asking(wanted), 0.5, 0.09, 0.02, 0)["calibrate"].num_groups >= 49


@pytest.mark.parametrize("share", [-0.1, 0.7, 1.0])
def test_shares_that_leave_nothing_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="check_share must lie in"):
        defend(tiny_classifier(), DATA, check_share=share, **PARTS)


# -- saved with the defence -------------------------------------------------------------------------------------------


def test_it_is_saved_and_forgotten_with_another_threshold(defended: DefendedClassifier, tmp_path: Path) -> None:
    defended.save(tmp_path / "saved")
    loaded = DefendedClassifier.load(tmp_path / "saved")
    assert loaded.own_check == defended.own_check
    assert loaded.calibrate(DATA, 0.1).own_check is None, "it was of another threshold"


@pytest.mark.parametrize(
    "changes",
    [
        {"flagged": 13},
        {"restored": -1},
        {"fooled": 21},
        {"images": 0},
        {"benign_kept": 21},
        {"images": 20.0},
        {"images": 10**400},
        {"fooled": True},
        {"policy": "pray"},
        {"attack": 5},
        {"more": 1},
    ],
    ids=lambda changes: str(changes)[:30],
)
def test_counts_that_cannot_be_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ArtifactError):
        OwnCheck.read(asdict(SEEN) | changes, "here")
    with pytest.raises(ArtifactError):
        OwnCheck.read([asdict(SEEN)], "here")
    assert OwnCheck.read(asdict(SEEN), "here") == SEEN


def test_more_false_alarms_than_promised_are_a_warning() -> None:
    many = OwnCheck(18, 4, 4, 4, 8, 15, "purify_flagged", CONDITIONS)
    with pytest.warns(WeakDefenceWarning, match=r"flags more benign images than it promises: 8 of 18 .* to 8\.2%"):
        many.warn("", 0.082)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OwnCheck(18, 4, 4, 4, 2, 15, "purify_flagged", CONDITIONS).warn("", 0.082)
