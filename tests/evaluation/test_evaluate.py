"""The ladder: figures by hand, resuming, and that every way to deceive oneself is named."""

import json
from dataclasses import replace

import pytest
import torch
from chains import BENIGN, chain_of, diffusing
from planted import GoodDetector, GoodPurifier

import medfedpure
from medfedpure.core.errors import ConfigError, DataError
from medfedpure.core.registry import create
from medfedpure.core.results import Purification
from medfedpure.defence.acceleration import Acceleration
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.evaluate import beside_itself, choose, evaluate
from medfedpure.evaluation.ladder import Preset, preset_of, rungs
from medfedpure.evaluation.readings import Reading, hear
from medfedpure.evaluation.readings import reading_of as read_from
from medfedpure.evaluation.records import RungResult
from medfedpure.evaluation.self_checks import clearly_more, compare, probe
from medfedpure.figures.balanced import balanced
from medfedpure.reporting.evaluation.summary import summarize
from medfedpure.testing import tiny_classifier, tiny_dataset

BRIEF = Preset("brief", 16, 8, 2, 1, 2, 2, 12, "for tests")
DATA = tiny_dataset(60, seed=21)


def found_in(chain, *, eps=0.05, preset=BRIEF):
    """Why the evaluation of a defence must not be believed."""
    return evaluate({"it": chain}, DATA, preset=preset, eps=(eps,)).arms[0].unreliable


def purifying(purifier, classifier=None):
    return DefendedClassifier(classifier or tiny_classifier(), purifier=purifier, policy="purify_all")


# -- figures -----------------------------------------------------------------------------------------------------


def reading_of(*draws):
    size = len(draws[0])
    empty = [False] * size
    return Reading(verdicts=[list(d) for d in draws], flagged=empty, purified=empty, scores=None, nfe=0, ms=0, ece=None)


def test_counts_by_hand():
    labels = torch.tensor([0, 0, 1, 1])
    said = reading_of([0, 1, 1, -1], [0, 0, 0, 1], [0, 0, 1, 1])
    assert said.right(labels).tolist() == [True, False, True, False]
    assert said.right(labels, "worst of N").tolist() == [True, False, False, False]
    assert said.right(labels, "majority of N").tolist() == [True, True, True, True]
    assert said.fooled(labels).tolist() == [False, True, False, False]
    assert said.coverage() == 0.75
    assert reading_of([0, 1, 1, 1], [1, 0, 1, 1]).right(labels, "majority of N").tolist() == [False, False, True, True]
    assert balanced(torch.tensor([True, False, True, True]), labels) == 0.75


def test_network_evaluations_of_detector_and_purifier_are_counted():
    chain = diffusing(steps=4)
    said = read_from([hear(chain, DATA.images, DATA.ids, seed=0, draws=2, batch_size=16)], DATA.labels)
    flagged = torch.tensor(said.flagged).double().mean()
    assert said.flagged == said.purified
    assert 0 < flagged < 1
    assert said.nfe == pytest.approx(1 + 4 * float(flagged), abs=0.5)


def test_images_are_independent_and_of_all_classes():
    chosen = choose(DATA, 10, seed=0)
    assert len(chosen) == len(chosen.groups.unique()) == 10
    assert chosen.labels.tolist() == [0, 1] * 5
    with pytest.raises(DataError, match="images of all 2 classes"):
        choose(DATA.select(DATA.labels == 0), 10, seed=0)


# -- the ladder --------------------------------------------------------------------------------------------------


def test_every_rung_is_climbed_where_it_makes_sense():
    chain = chain_of()
    names = {
        policy: [r.name for r in rungs(chain_of(policy), BRIEF, "linf", 0.05, {"b": tiny_classifier()})]
        for policy in ("none", "purify_flagged", "purify_all", "abstain")
    }
    always = ["static", "transfer from b"]
    assert names["none"] == [*always, "square"]
    assert names["purify_all"] == [*always, "bpda", "exact", "square"]
    assert names["purify_flagged"] == [*always, "bpda", "exact", "joint", "orthogonal", "square"]
    assert names["abstain"] == [*always, "orthogonal", "square"]
    for policy in ("purify_flagged", "abstain"):
        noisy = [r.options for r in rungs(chain_of(policy), BRIEF, "linf", 0.05, {}) if r.name == "orthogonal"]
        assert noisy[0]["eot"] == BRIEF.eot, f"the detector draws noise where the chain may {policy}"
        assert noisy[0]["patience"] > 1
    assert list(beside_itself(chain))[-1] == "chain (purify_flagged)"


def test_the_suite_is_climbed_by_standard_and_headline():
    for preset in ("standard", "headline"):
        strength = preset_of(preset)
        found = {
            policy: {rung.name: rung for rung in rungs(chain_of(policy), strength, "linf", 0.05, {})}
            for policy in ("none", "purify_flagged", "purify_all", "abstain")
        }
        assert "suite" not in found["abstain"], "it answers as its bare classifier, which is judged undefended"
        bare, noisy = found["none"]["suite"].options, found["purify_all"]["suite"].options
        assert (bare["version"], bare["eot"], bare["steps"]) == ("standard", 1, strength.steps)
        assert (noisy["version"], noisy["eot"], noisy["steps"]) == ("rand", strength.eot, strength.steps)
        assert list(found["purify_flagged"])[-4:] == ["suite", "joint", "orthogonal", "square"]
    assert preset_of("headline").eot == 20
    median = DefendedClassifier(tiny_classifier(), purifier=create("purifier", "median"), policy="purify_all")
    still = {rung.name: rung for rung in rungs(median, preset_of("standard"), "linf", 0.05, {})}
    assert still["suite"].options["version"] == "standard"
    assert still["suite"].view(median).name.startswith("exact")
    quick = [rung.name for rung in rungs(chain_of(), preset_of("quick"), "linf", 0.05, {})]
    assert "suite" not in quick


def test_the_suite_counts_and_its_parts_stand_in_the_threat():
    arms = {"bare": DefendedClassifier(tiny_classifier(), policy="none"), "chain": chain_of()}
    found = evaluate(arms, DATA, preset=replace(BRIEF, suite=True), eps=(0.05,))
    for arm, parts in (("bare", "APGD-CE + APGD-margin + FAB"), ("chain", "APGD-CE + APGD-margin")):
        own = {rung.rung: rung for rung in found[arm].rungs}
        assert f"; parts: {parts}" in own["suite"].attack
        line = summarize(found).line(arm, 0.05)
        assert "suite" in line.attacks
        assert f"auto_attack_suite (version {'standard' if arm == 'bare' else 'rand'}, steps 8" in line.threat
        assert f"{parts}, EoT {1 if arm == 'bare' else BRIEF.eot})" in line.threat


def test_a_killed_evaluation_goes_on_with_the_same_numbers(tmp_path):
    arms = {"undefended": DefendedClassifier(tiny_classifier(), policy="none"), "chain": chain_of()}
    whole = evaluate(arms, DATA, preset=BRIEF, eps=(0.05,))
    seen = []

    def killed(text):
        seen.append(text)
        if "joint" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(arms, DATA, preset=BRIEF, eps=(0.05,), out=tmp_path, say=killed)
    again, before = [], json.loads((tmp_path / "costs.json").read_text())
    resumed = evaluate(arms, DATA, preset=BRIEF, eps=(0.05,), out=tmp_path, say=again.append)
    assert resumed.seconds > before["seconds"] > 0, "what the killed call took is counted"
    assert resumed.peak_memory_mb >= before["peak_memory_mb"]
    assert not set(seen[1:-1]) & set(again), "what was finished is not attacked again"
    for one, two in zip(whole.arms, resumed.arms, strict=True):
        assert one.clean.verdicts == two.clean.verdicts
        assert one.unreliable == two.unreliable
        for a, b in zip([*one.rungs, *one.checks], [*two.rungs, *two.checks], strict=True):
            assert (a.rung, a.view, a.attack, a.success) == (b.rung, b.view, b.attack, b.success)
            assert (a.reading is None) == (b.reading is None)
            assert a.reading is None or a.reading.verdicts == b.reading.verdicts
    with pytest.raises(ConfigError, match=r"another evaluation .*eps"):
        evaluate(arms, DATA, preset=BRIEF, eps=(0.06,), out=tmp_path)
    arms["chain"].accelerate(Acceleration(autocast=True))
    with pytest.raises(ConfigError, match=r"another evaluation .*arms"):
        evaluate(arms, DATA, preset=BRIEF, eps=(0.05,), out=tmp_path)


def test_what_is_missing_is_said_and_the_rest_is_measured(monkeypatch):
    from medfedpure.core.errors import MissingExtraError

    def without_art(kind, name, *args, **options):
        if name == "square":
            raise MissingExtraError("install it")
        return create(kind, name, *args, **options)

    monkeypatch.setattr("medfedpure.evaluation.work.create", without_art)
    bare = DefendedClassifier(tiny_classifier(), policy="none")
    result = evaluate({"bare": bare}, DATA, preset=BRIEF, eps=(0.05,)).arms[0]
    skipped = {rung.rung: rung.skipped for rung in result.rungs}
    assert skipped == {"static": "", "square": "install it", "uniform noise": ""}
    assert result.unreliable == []


@pytest.mark.parametrize("options", [{"preset": "long"}, {"eps": ()}, {"eps": (-0.1,)}])
def test_wrong_settings_are_refused(options):
    with pytest.raises(ConfigError):
        evaluate(chain_of(), DATA, **options)


# -- broken defences, each named ------------------------------------------------------------------------------------


def test_an_honest_chain_is_believed():
    assert found_in(chain_of()) == []


def test_an_adversarially_trained_classifier_is_believed():
    model = tiny_classifier().train().requires_grad_(True)
    training, optimizer = tiny_dataset(160, seed=2), torch.optim.Adam(model.parameters(), 3e-3)
    attack = create("attack", "pgd_eot", eps=0.05, step=0.02, steps=5, early_stop=False)
    for place in range(80):
        batch = training.batch(torch.arange(place * 16, place * 16 + 16) % len(training))
        attacked = attack(model.eval(), batch.images, batch.labels).images
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.train()(attacked), batch.labels).backward()
        optimizer.step()
    model.eval().requires_grad_(False)
    trained = DefendedClassifier(model, policy="none")
    result = evaluate({"trained": trained}, DATA, preset=BRIEF, eps=(0.05,)).arms[0]
    assert result.unreliable == []
    labels = choose(DATA, 16, 0).labels
    held, clean = (float(r.right(labels).double().mean()) for r in (result.rungs[0].reading, result.clean))
    assert clean > 0.8
    assert held > 0.5


class Rounding(torch.nn.Module):
    """Gradient masking: the classifier reads images rounded to a few grey values."""

    def __init__(self):
        super().__init__()
        self.inner = tiny_classifier()

    def forward(self, images):
        return self.inner((images * 24).round() / 24)


def test_a_rounding_classifier_is_caught():
    reasons = found_in(DefendedClassifier(Rounding(), policy="none"))
    assert any("zero gradient" in reason for reason in reasons)
    assert any("survive eps" in reason for reason in reasons)


class Detached(GoodPurifier):
    def purify(self, images, strength, *, streams):
        return super().purify(images.detach(), strength, streams=streams)


@pytest.mark.parametrize("policy", ["purify_all", "purify_flagged"])
def test_a_detached_purifier_is_caught(policy):
    chain = DefendedClassifier(tiny_classifier(), detector=GoodDetector(), purifier=Detached(), policy=policy)
    chain.calibrate(BENIGN, 0.3)
    assert any("passes no gradient" in reason for reason in found_in(chain))


class Batchwise(GoodDetector):
    def score(self, images, *, context, streams):
        scores = super().score(images, context=context, streams=streams)
        return scores - scores.mean()


def test_a_detector_that_looks_at_the_batch_is_caught():
    chain = DefendedClassifier(tiny_classifier(), detector=Batchwise(), purifier=GoodPurifier()).calibrate(BENIGN, 0.3)
    reasons = probe(chain, DATA.images[:8], DATA.labels[:8], DATA.ids[:8], seed=0)
    assert any("looks at the batch" in reason for reason in reasons)


class ClipsNormalized(GoodPurifier):
    """The trap of the released code: mean and standard deviation first, then the clamp to [0, 1]."""

    def purify(self, images, strength, *, streams):
        normalized = ((images - 0.5) / 0.2).clamp(0, 1)
        return Purification(normalized, torch.zeros(len(images), dtype=torch.int64))


def test_a_purifier_that_clips_in_normalized_space_is_caught():
    assert any("presses" in reason and "bounds" in reason for reason in found_in(purifying(ClipsNormalized())))


def test_an_attack_that_overspends_does_not_count(monkeypatch):
    class Overspends:
        learns_from_batch = False

        def __call__(self, view, images, labels, *, streams):
            return create("attack", "pgd_eot", eps=0.2, step=0.1)(view, images, labels, streams=streams)

    def planted(kind, name, *args, **options):
        return Overspends() if kind == "attack" and name == "pgd_eot" else create(kind, name, *args, **options)

    monkeypatch.setattr("medfedpure.evaluation.work.create", planted)
    arm = evaluate({"it": DefendedClassifier(tiny_classifier(), policy="none")}, DATA, preset=BRIEF, eps=(0.05,)).arms[
        0
    ]
    static = next(rung for rung in arm.rungs if rung.rung == "static")
    assert static.reading is None
    assert any(
        "budget violated" in reason and "spent 0.2 of a linf budget of 0.05" in reason for reason in arm.unreliable
    )


class SkipsOnBenign(DefendedClassifier):
    """Clean accuracy of the bare classifier under the name of the chain."""

    def predict(self, images, ids=None, **options):
        if torch.equal(images, choose(DATA, BRIEF.images, 0).images):
            return DefendedClassifier(self.classifier, policy="none").predict(images, ids, **options)
        return super().predict(images, ids, **options)


def test_clean_accuracy_that_skips_the_chain_is_caught():
    chain = SkipsOnBenign(tiny_classifier(), purifier=GoodPurifier(), policy="purify_all")
    assert any("clean accuracy skipped the chain" in reason for reason in found_in(chain))


class Backwards(torch.autograd.Function):
    """Forward the identity, backward the opposite."""

    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class WrongGradient(GoodPurifier):
    deterministic = True

    def purify(self, images, strength, *, streams):
        return Purification(Backwards.apply(images), torch.zeros(len(images), dtype=torch.int64))


def test_an_exact_gradient_weaker_than_bpda_is_caught():
    reasons = found_in(purifying(WrongGradient()), eps=0.15)
    assert any("exact is weaker than bpda" in reason for reason in reasons)
    assert any("survive eps" in reason for reason in reasons)


# -- what results say about themselves ------------------------------------------------------------------------------


def result_of(rung, fell, *, kind="white-box", eps=0.05, eot=2):
    verdicts = [1 if bad else 0 for bad in fell]
    return RungResult(
        rung=rung, kind=kind, norm="linf", eps=eps, view="", attack="", eot=eot, seconds=0, reading=reading_of(verdicts)
    )


def some(count, total=20):
    return [place < count for place in range(total)]


LABELS = torch.zeros(20, dtype=torch.int64)


@pytest.mark.parametrize(
    ("rungs_found", "checks_found", "text"),
    [
        ([("exact", 4), ("square", 15, "black-box")], [], "square, without gradients"),
        ([("exact", 4), ("uniform noise", 15, "control")], [], "uniform noise, without gradients"),
        ([("static", 15, "replayed"), ("exact", 4)], [], "exact is weaker than static"),
        ([("exact", 4)], [("exact, half eps", 15)], "a larger eps helps the defender"),
        ([("exact", 15)], [("exact, double eps", 4)], "a larger eps helps the defender"),
        ([("exact", 4)], [("exact, a quarter of the steps", 15)], "more steps helps the defender"),
        ([("exact", 4)], [("exact, EoT 1", 15)], "more EoT looks helps the defender"),
        ([("exact", 4)], [("exact, large eps", 12)], "8 of 20 images survive eps 0.05"),
    ],
)
def test_results_that_contradict_themselves_are_caught(rungs_found, checks_found, text):
    made = [result_of(r[0], some(r[1]), kind=r[2] if len(r) > 2 else "white-box") for r in rungs_found]
    tests = [result_of(name, some(count)) for name, count in checks_found]
    assert any(text in reason for reason in compare(made, tests, LABELS, stochastic=True))


def test_a_stochastic_defence_without_eot_is_caught():
    blind = [result_of("exact", some(10), eot=1)]
    assert any("without EoT: exact" in reason for reason in compare(blind, [], LABELS, stochastic=True))
    assert compare(blind, [], LABELS, stochastic=False) == []


def test_consistent_results_are_believed():
    made = [result_of("static", some(9), kind="replayed"), result_of("exact", some(12)), result_of("square", some(13))]
    tests = [
        result_of(name, some(count))
        for name, count in (
            ("exact, half eps", 6),
            ("exact, double eps", 18),
            ("exact, large eps", 20),
            ("exact, a quarter of the steps", 10),
            ("exact, EoT 1", 12),
        )
    ]
    assert compare(made, tests, LABELS, stochastic=True) == []


def test_a_handful_of_images_decides_nothing():
    one, other = torch.tensor([True] * 5 + [False] * 5), torch.tensor([False] * 10)
    assert not clearly_more(one, other)
    assert clearly_more(torch.tensor([True] * 7), torch.tensor([False] * 7))
    assert not clearly_more(other, one)


def test_the_default_chain_is_evaluated_beside_itself():
    result = evaluate(chain_of(), DATA, preset=BRIEF, eps=(0.05,))
    assert [arm.name for arm in result.arms] == [
        "undefended",
        "median, all",
        "purify all",
        "detector only",
        "chain (purify_flagged)",
    ]
    assert result.gradients > 0
    assert medfedpure.__version__ == result.versions["medfedpure"]
