"""Attacks of others climb the ladder: at its norm and eps, through the most of a defence that they can work with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from chains import chain_of, diffusing
from planted import GoodDetector, GoodPurifier
from pydantic import Field

import medfedpure
from medfedpure.core.attack import Attack
from medfedpure.core.config import Config, Radius
from medfedpure.core.errors import ConfigError
from medfedpure.core.registry import create
from medfedpure.core.results import State
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.evaluate import evaluate
from medfedpure.evaluation.extra import at_budget
from medfedpure.evaluation.ladder import Preset
from medfedpure.reporting.evaluation.summary import summarize
from medfedpure.reporting.evaluation.table import markdown
from medfedpure.testing import tiny_classifier, tiny_dataset

BRIEF = Preset("brief", 12, 3, 2, 1, 2, 2, 4, "for tests")
DATA = tiny_dataset(40, seed=21)


class StepConfig(Config):
    norm: str = Field("linf", description="linf only")
    eps: Radius = Field(0.3, description="size of the step")
    share: float = Field(1.0, description="of eps")


class Step(Attack):
    """One step along the sign of the gradient."""

    Config = StepConfig
    uses = "gradients"
    calls: list[float] = []

    def generate(self, view, images, labels, *, mask=None, targets=None, streams):
        self.calls.append(self.config.eps)
        leaf = images.clone().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(view(leaf), labels)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return (images + self.config.share * self.config.eps * gradient.sign()).clamp(0, 1)


class Hidden(Step):
    requires = frozenset({"score", "threshold"})


class Wild(Attack):
    """Half of the images become their negative, the others change by a little."""

    Config = Config
    uses = "verdicts"

    def generate(self, view, images, labels, *, mask=None, targets=None, streams):
        near = (images + 0.01).clamp(0, 1)
        return torch.where((torch.arange(len(images)) % 2 == 0)[:, None, None, None], 1 - images, near)


class Learned(Step):
    needs_fit = True

    def fitted_state(self):
        return State({"seen": 1})

    def restore(self, state):
        assert state.values == {"seen": 1}


def climbed(chain, attack, **options):
    found = evaluate(
        {"it": chain}, DATA, preset=BRIEF, eps=(0.05,), extra_attacks={"mine": attack}, cascade=False, **options
    )
    return found, {rung.rung: rung for rung in found.arms[0].rungs if rung.rung.startswith("mine")}


@pytest.fixture(autouse=True)
def calls():
    Step.calls.clear()


@pytest.mark.parametrize(
    ("policy", "views"),
    [
        ("none", ["static"]),
        ("purify_flagged", ["static", "exact"]),
        ("purify_all", ["static", "exact"]),
        ("abstain", ["static"]),
    ],
)
def test_the_most_of_a_defence_is_attacked(policy, views):
    found, rungs = climbed(chain_of(policy), Step(share=0.5))
    assert [rung.view.partition(":")[0] for rung in rungs.values()] == views
    assert list(rungs) == ["mine (static)", "mine (strongest)"][: len(views)]
    for rung in rungs.values():
        assert (rung.norm, rung.eps, rung.skipped, rung.problem) == ("linf", 0.05, "", "")
        assert max(rung.distance) == pytest.approx(0.025, abs=1e-5), "eps is the evaluation's, the rest its own"
        assert "share 0.5" in rung.attack
    assert set(Step.calls) == {0.05}
    assert "mine (static)" in markdown(summarize(found))


def test_who_sees_the_score_gets_a_view_that_shows_it():
    for policy, view in (("purify_flagged", "exact"), ("abstain", "detector")):
        _, rungs = climbed(chain_of(policy), Hidden())
        assert rungs["mine (strongest)"].view.startswith(view)
        assert "hides" in rungs["mine (static)"].skipped


def test_without_an_exact_gradient_the_identity_serves():
    class Stepped(GoodPurifier):
        differentiable = False

    chain = DefendedClassifier(tiny_classifier(), detector=GoodDetector(), purifier=Stepped(), policy="purify_flagged")
    _, rungs = climbed(chain.calibrate(tiny_dataset(60, seed=3), 0.3), Step())
    assert rungs["mine (strongest)"].view.startswith("bpda")


def test_a_noisy_defence_is_looked_at_several_times():
    _, rungs = climbed(diffusing(steps=2), Step())
    strongest = rungs["mine (strongest)"]
    assert strongest.eot == 2
    assert "mean of 2 draws" in strongest.view


def test_what_goes_beyond_eps_is_withdrawn():
    _, rungs = climbed(chain_of(), Wild())
    static = rungs["mine (static)"]
    assert not static.problem
    assert static.distance[::2] == [0.0] * 6
    assert not any(static.success[::2])
    assert static.distance[1::2] == pytest.approx([0.01] * 6, abs=1e-5)
    assert "6 changes beyond it were withdrawn" in static.attack
    assert (rungs["mine (strongest)"].kind, rungs["mine (strongest)"].view[:9]) == ("black-box", "black-box")


def test_it_is_resumed_like_the_others_and_another_attack_is_another_evaluation(tmp_path):
    first, _ = climbed(chain_of(), Step(), out=tmp_path)
    Step.calls.clear()
    again, _ = climbed(chain_of(), Step(), out=tmp_path)
    assert Step.calls == [], "nothing is crafted twice"
    assert [rung.model_dump() for rung in again.arms[0].rungs] == [rung.model_dump() for rung in first.arms[0].rungs]
    for other in (Step(share=0.5), Wild()):
        with pytest.raises(ConfigError, match="extra_attacks differ"):
            climbed(chain_of(), other, out=tmp_path)


def test_an_attack_that_learns_is_fitted_or_says_why_not():
    _, rungs = climbed(chain_of("none"), Learned())
    assert "not fitted" in rungs["mine (static)"].skipped
    _, rungs = climbed(chain_of("none"), Learned().mark_fitted())
    assert not rungs["mine (static)"].skipped
    _, rungs = climbed(chain_of("none"), Learned(), reference=tiny_dataset(20, seed=77))
    assert not rungs["mine (static)"].skipped


def test_an_attack_of_another_norm_says_so():
    found = evaluate(
        {"it": chain_of("none")},
        DATA,
        preset=BRIEF,
        norm="l2",
        eps=(1.0,),
        extra_attacks={"s": create("attack", "square")},
    )
    assert "it works at linf 1 only" in next(rung.skipped for rung in found.arms[0].rungs if rung.rung == "s (static)")


def test_what_is_no_attack_is_refused():
    for wrong in ({"mine": Step}, {"": Step()}, {"mine": "pgd"}):
        with pytest.raises(ConfigError):
            evaluate(chain_of(), DATA, preset=BRIEF, extra_attacks=wrong)
    with pytest.raises(ConfigError, match="eps"):
        at_budget(create("attack", "square"), "linf", 1.5)


def test_without_extra_attacks_old_evaluations_go_on(tmp_path):
    chain = chain_of("none")
    medfedpure.evaluate({"it": chain}, DATA, preset=replace(BRIEF, images=6), eps=(0.05,), out=tmp_path)
    assert "extra_attacks" not in (tmp_path / "setting.json").read_text()


@pytest.mark.parametrize(
    ("options", "looks"), [({"version": "standard", "queries": 0}, 2), ({"version": "rand", "eot": 3}, 3)]
)
def test_a_suite_climbs_to_a_chain_that_draws_noise(options, looks):
    """Its standard version takes one look, and so sees the mean of them; it used to end the evaluation."""
    attack = create("attack", "auto_attack_suite", steps=1, **options)
    _, rungs = climbed(chain_of(), attack)
    strongest = rungs["mine (strongest)"]
    assert strongest.reading is not None
    assert strongest.eot == looks
    assert ("mean of 2 draws" in strongest.view) == (options["version"] == "standard")
    assert rungs["mine (static)"].eot == 1


def test_an_attack_never_gets_fewer_looks_than_it_has():
    _, rungs = climbed(chain_of(), create("attack", "pgd_eot", steps=1, eot=5))
    strongest = rungs["mine (strongest)"]
    assert strongest.eot == 5
    assert "eot 5" in strongest.attack
