"""Rungs of the ladder: what hides its gradient is attacked at its member; presets leave something to do."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from medfedpure.core.errors import ConfigError, InputError, MissingRequirementError
from medfedpure.core.registry import create
from medfedpure.defence.arms import Subject, choose_policy
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.views import member_view, stand_in_of
from medfedpure.evaluation.evaluate import choose, evaluate
from medfedpure.evaluation.ladder import LARGE, MEMBER, Preset, checks, rungs
from medfedpure.testing import tiny_classifier, tiny_dataset

BRIEF = Preset("brief", 12, 5, 2, 1, 2, 2, 4, "for tests")
DATA = tiny_dataset(40, seed=21)
LABELS = choose(DATA, BRIEF.images, 0).labels
EPS = 0.15


class Blind(nn.Module):
    """Says what a classifier says; its gradient is that of the image turned around, which leads nowhere."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        other = self.inner(images.flip(2))
        answer: Tensor = self.inner(images).detach() + other - other.detach()
        return answer


class Frank(Blind):
    """And names what to attack in its place."""

    @property
    def stand_in(self) -> nn.Module:
        return self.inner


class Plugin(nn.Module):
    """As a plugin's model holds its network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.network(images)
        return answer


def right_under(classifier: nn.Module, **parts: Any) -> dict[str, int]:
    chain = DefendedClassifier(classifier, **{"policy": "none", **parts})
    found = evaluate({"it": chain}, DATA, preset=BRIEF, eps=EPS, cascade=False).arms[0]
    return {rung.rung: int(rung.reading.right(LABELS).sum()) for rung in found.rungs if rung.reading is not None}


def test_what_a_classifier_hides_its_member_shows() -> None:
    model = tiny_classifier()
    honest, blind, frank = (right_under(one) for one in (model, Blind(model), Plugin(Frank(model))))
    assert MEMBER not in honest
    assert MEMBER not in blind
    assert blind["static"] > honest["static"], "or nothing is shown"
    assert frank["static"] == blind["static"]
    assert frank[MEMBER] == honest["static"]


@pytest.mark.parametrize("purifier", ["median", "smoothing"])
def test_it_is_attacked_through_the_purifier_too(purifier: str) -> None:
    model, parts = tiny_classifier(), {"purifier": create("purifier", purifier), "policy": "purify_all"}
    blind, frank = right_under(Blind(model), **parts), right_under(Frank(model), **parts)
    assert set(frank) - set(blind) == {MEMBER, f"{MEMBER}, purified"}
    assert frank[f"{MEMBER}, purified"] < min(blind["exact"], blind["bpda"])
    assert frank[f"{MEMBER}, purified"] <= frank[MEMBER]


def test_a_mix_names_its_robust_network() -> None:
    built = create("classifier", "mixed", robust_config={"widths": (4,)}, plain_config={"widths": (4,)})
    model = built.create_model(in_channels=1, num_classes=2, image_size=32)
    assert stand_in_of(model) is model.network.robust
    assert stand_in_of(tiny_classifier()) is None
    with pytest.raises(MissingRequirementError, match="names no network"):
        member_view(DefendedClassifier(tiny_classifier(), policy="none"))


def test_the_choice_of_a_policy_is_not_taken_in() -> None:
    model, median = tiny_classifier(), create("purifier", "median")
    detector = create("detector", "feature_squeezing")
    chosen = {}
    for name, classifier in (("blind", Blind(model)), ("frank", Frank(model))):
        chain = DefendedClassifier(classifier, detector=detector, purifier=median).calibrate(tiny_dataset(60, seed=3))
        chosen[name] = choose_policy([Subject(chain, tiny_dataset(32, seed=5))], eps=EPS, steps=4)
    for blind, frank in zip(chosen["blind"].arms, chosen["frank"].arms, strict=True):
        assert frank.clean == blind.clean
        assert frank.worst < blind.worst
        assert "the network in its place" in frank.view
        assert "the network in its place" not in blind.view


@pytest.mark.parametrize(
    "few", [{"images": 1}, {"checked": 0}, {"steps": 0}, {"eot": 0}, {"queries": 0}, {"draws": 0}, {"restarts": 1.0}]
)
def test_a_preset_that_leaves_nothing_to_do_is_refused(few: dict[str, Any]) -> None:
    usual = {"images": 12, "steps": 2, "eot": 1, "restarts": 1, "draws": 1, "queries": 1, "checked": 1}
    with pytest.raises(ConfigError, match=f"{next(iter(few))}="):
        Preset("brief", note="for tests", **{**usual, **few})


@pytest.mark.parametrize("eps", [0.2, 0.7])
def test_a_check_with_more_has_no_less(eps: float) -> None:
    chain = DefendedClassifier(tiny_classifier(), policy="none")
    sizes = {rung.name.split(", ")[1]: rung.eps for rung in checks(chain, BRIEF, "linf", eps)}
    assert sizes["half eps"] == eps / 2
    assert eps <= sizes["double eps"] <= 2 * eps
    assert sizes["large eps"] == max(eps, LARGE["linf"])
    assert {rung.eps for rung in rungs(chain, BRIEF, "linf", eps, {})} == {eps}


def test_a_policy_of_no_defence_is_not_chosen() -> None:
    with pytest.raises(InputError, match="one defence or more; got none"):
        choose_policy([])


def test_what_lets_images_go_comes_before_what_goes_on_where_nothing_purifies():
    suite = Preset("brief", 12, 5, 2, 1, 2, 2, 4, "for tests", suite=True)
    chain = DefendedClassifier(tiny_classifier(), policy="none")
    assert [rung.name for rung in rungs(chain, suite, "linf", EPS, {})] == ["suite", "static", "square"]


def test_the_check_at_a_large_eps_starts_anywhere():
    found = {
        check.name: check.options
        for check in checks(DefendedClassifier(tiny_classifier(), policy="none"), BRIEF, "linf", EPS)
    }
    assert {name for name, options in found.items() if options["random_start"]} == {"static, large eps"}
