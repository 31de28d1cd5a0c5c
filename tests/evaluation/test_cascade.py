"""A cascade saves attacks and changes no count: what is settled, what is crafted, what is kept, merged and shown."""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from chains import chain_of
from planted import GoodPurifier

from medfedpure.core.registry import create
from medfedpure.core.results import Purification
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.cascade import Cascade
from medfedpure.evaluation.evaluate import choose, evaluate
from medfedpure.evaluation.ladder import Preset
from medfedpure.evaluation.merge import merge
from medfedpure.evaluation.readings import Reading
from medfedpure.reporting.evaluation.files import write_report
from medfedpure.reporting.evaluation.summary import summarize
from medfedpure.reporting.evaluation.table import conditions, markdown
from medfedpure.reporting.evaluation.words import weakest_point
from medfedpure.testing import tiny_classifier, tiny_dataset

BRIEF = Preset("brief", 24, 8, 2, 1, 2, 2, 6, "for tests")
SPARING = Preset("sparing", 24, 8, 2, 1, 2, 2, 3, "for tests")
DATA = tiny_dataset(60, seed=21)
FIGURES = (
    "right",
    "fooled",
    "withheld",
    "balanced",
    "worst_of_draws",
    "majority_of_draws",
    "sensitivity",
    "specificity",
    "recalls",
    "coverage",
    "difference",
)


class Shrinking(GoodPurifier):
    """A purifier without noise, through which a gradient passes."""

    deterministic = True

    def purify(self, images, strength, *, streams):
        return Purification(0.5 + 0.8 * (images - 0.5), torch.zeros(len(images), dtype=torch.int64))


def still():
    """Two defences without noise, so that equal attacks have equal results."""
    return {
        "bare": DefendedClassifier(tiny_classifier(), policy="none"),
        "purified": DefendedClassifier(tiny_classifier(), purifier=Shrinking(), policy="purify_all"),
    }


@contextmanager
def gradients(*models):
    """Rows that are looked at with a gradient, of classifiers: those inside a defence too."""
    found = Counter()

    def seen(model, inputs):
        found["rows"] += len(inputs[0]) if torch.is_grad_enabled() and inputs[0].requires_grad else 0

    hooks = [model.register_forward_pre_hook(seen) for model in dict.fromkeys(models)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def figures(found):
    return {(line.arm, line.eps): {name: getattr(line, name) for name in FIGURES} for line in summarize(found).lines}


# -- what is settled -----------------------------------------------------------------------------------------------


def reading(*draws, places=None):
    size = len(draws[0])
    plain = {"flagged": [False] * size, "purified": [False] * size, "scores": None, "nfe": 0, "ms": 0, "ece": None}
    return Reading(verdicts=[list(draw) for draw in draws], places=places, **plain)


@pytest.mark.parametrize(
    ("readings", "left", "why"),
    [
        ([[[1], [1], [1]]], [], "misread in every draw"),
        ([[[0], [1], [1]]], [0], "right in the first draw"),
        ([[[1], [0], [0]]], [0], "right in a majority"),
        ([[[1], [0], [0]], [[0], [1], [1]]], [], "the one here and the other there"),
        ([[[-1], [-1], [-1]]], [0], "refused, and may be misread yet"),
        ([[[-1], [-1], [-1]], [[1], [0], [0]]], [], "refused here and misread there"),
    ],
)
def test_an_image_is_settled_when_no_count_can_change(readings, left, why):
    cascade = Cascade(torch.tensor([0]), [1], always=0, alone=False)
    for draws in readings:
        cascade.took(reading(*draws))
    assert cascade.met().tolist() == left, why


def test_a_finding_taken_for_another_finding_may_be_missed_yet():
    """Of three classes 1 and 2 are findings: sensitivity asks for any of them."""
    cascade = Cascade(torch.tensor([1, 1, 0, 0]), [1, 2], always=0, alone=False)
    cascade.took(reading([2, 0, 2, 0]))
    assert cascade.met().tolist() == [0, 3]
    none = Cascade(torch.tensor([1, 1, 0, 0]), [], always=0, alone=False)
    none.took(reading([2, 0, 2, 0]))
    assert none.met().tolist() == [3], "without findings there is no sensitivity"


def test_the_first_images_meet_everything_and_readings_say_which_images_they_are_of():
    cascade = Cascade(torch.zeros(5, dtype=torch.int64), [1], always=2, alone=False)
    cascade.took(reading([1, 1, 1], places=[0, 2, 4]))
    assert cascade.met().tolist() == [0, 1, 3]
    alone = Cascade(torch.zeros(5, dtype=torch.int64), [1], always=2, alone=True)
    alone.took(reading([1] * 5))
    assert alone.met().tolist() == [0, 1, 2, 3, 4]


# -- the same counts for less --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both():
    """The whole ladder and the cascade of equal seeds, at two eps that are not in order, with another's model."""
    other = tiny_classifier(steps=40)
    return {
        cascade: evaluate(still(), DATA, preset=BRIEF, eps=(0.1, 0.04), attackers={"b": other}, cascade=cascade)
        for cascade in (False, True)
    }


def test_the_worst_case_is_that_of_the_whole_ladder(both):
    whole, part = both[False], both[True]
    assert figures(part) == figures(whole)
    taken = [line.right for line in summarize(part).lines if line.eps is not None]
    assert any(0 < right < 24 for right in taken), "some stand and some fall, or nothing is shown"
    assert [arm.unreliable for arm in part.arms] == [arm.unreliable for arm in whole.arms]


def undefended():
    return still()["bare"]


@pytest.mark.parametrize(("made", "eps"), [(undefended, (0.05, 0.1)), (chain_of, (0.1, 0.2))])
def test_attacks_take_half_the_gradients_or_less(made, eps, monkeypatch):
    """The self-checks, which are no attacks that count, cost the same in both."""
    monkeypatch.setattr("medfedpure.evaluation.work.checks", lambda *given: [])
    looked, other = {}, tiny_classifier(steps=40)
    for cascade in (False, True):
        chain = made()
        with gradients(other, chain.classifier) as rows:
            evaluate({"it": chain}, DATA, preset=SPARING, eps=eps, attackers={"b": other}, cascade=cascade)
        looked[cascade] = rows["rows"]
    assert looked[True] <= looked[False] / 2, looked


def test_what_is_attacked_is_attacked_as_in_the_whole_ladder(both):
    """Where two looks are equal, and the attack draws by image: all but ART's."""
    compared = 0
    for one, two in zip(both[True].arms, both[False].arms, strict=True):
        for part, whole in zip(one.rungs, two.rungs, strict=True):
            assert (part.rung, part.eps) == (whole.rung, whole.eps), "the order is that of the whole ladder"
            if part.reading is None or part.reading.places is None or part.rung == "square":
                continue
            places = part.reading.places
            assert places[:6] == list(range(6)), "the images of the self-checks meet every attack"
            assert part.reading.verdicts == [[draw[place] for place in places] for draw in whole.reading.verdicts]
            assert part.distance == pytest.approx([whole.distance[place] for place in places], abs=1e-5)
            compared += 1
    assert compared >= 4


def test_survivors_alone_are_attacked_later(both):
    """Of undefended images at the smaller eps: whoever survived the first attack, and the first six."""
    arm = both[True].arms[0]
    first, second = (rung for rung in arm.rungs if rung.eps == 0.04 and rung.rung in ("static", "transfer from b"))
    assert first.reading.places is None
    right = first.reading.right(torch.tensor(both[True].labels))
    kept = set(torch.nonzero(right).squeeze(1).tolist()) | set(range(6))
    assert second.reading.places == sorted(kept)


def test_what_falls_at_a_smaller_eps_has_fallen_at_a_larger_one(both):
    for found in both.values():
        summary = summarize(found)
        for arm in ("bare", "purified"):
            assert summary.line(arm, 0.1).right <= summary.line(arm, 0.04).right
        assert any(text.startswith("What falls at a smaller eps") for text in conditions(summary))


def test_a_replayed_attack_is_crafted_once_for_each_image(monkeypatch):
    """Two defences around one classifier meet different images of it; none is crafted twice."""
    model, met = tiny_classifier(), []
    arms = {
        "bare": DefendedClassifier(model, policy="none"),
        "purified": DefendedClassifier(model, purifier=Shrinking(), policy="purify_all"),
    }
    original = create

    def noted(kind, name, *args, **options):
        attack = original(kind, name, *args, **options)
        if options.get("early_stop") is False:
            generate = type(attack).generate

            def told(view, images, labels, **more):
                met.append((options["eps"], view.name, more["streams"].ids.tolist()))
                return generate(attack, view, images, labels, **more)

            monkeypatch.setattr(attack, "generate", told, raising=False)
        return attack

    monkeypatch.setattr("medfedpure.evaluation.work.create", noted)
    found = evaluate(arms, DATA, preset=BRIEF, eps=(0.04, 0.1), attackers={"b": tiny_classifier(steps=40)})
    crafted = Counter((eps, view, one) for eps, view, ids in met for one in ids)
    assert set(crafted.values()) == {1}
    whole = evaluate(arms, DATA, preset=BRIEF, eps=(0.04, 0.1), attackers={"b": tiny_classifier(steps=40)})
    assert figures(found) == figures(whole)


def test_an_attack_that_learns_from_its_batch_meets_all_images():
    bare = {"bare": DefendedClassifier(tiny_classifier(), policy="none")}
    learning = create("attack", "hfc", steps=3)
    said = []
    evaluate(bare, DATA, preset=BRIEF, eps=(0.1,), extra_attacks={"mine": learning}, say=said.append)
    told = {name: next(text for text in said if name in text and "linf" in text) for name in ("square", "mine")}
    assert told["square"].endswith(" of 24 images")
    assert "images" not in told["mine"], "it is crafted among all of them, as in the whole ladder"


# -- kept, merged, shown -------------------------------------------------------------------------------------------


def test_a_killed_cascade_goes_on_with_the_same_numbers(tmp_path):
    whole = evaluate(still(), DATA, preset=BRIEF, eps=(0.04, 0.1))

    def killed(text):
        if "bpda" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(still(), DATA, preset=BRIEF, eps=(0.04, 0.1), out=tmp_path, say=killed)
    resumed = evaluate(still(), DATA, preset=BRIEF, eps=(0.04, 0.1), out=tmp_path)
    for one, two in zip(whole.arms, resumed.arms, strict=True):
        for a, b in zip([*one.rungs, *one.checks], [*two.rungs, *two.checks], strict=True):
            assert (a.rung, a.success, a.distance) == (b.rung, b.success, b.distance)
            assert (a.reading and a.reading.verdicts) == (b.reading and b.reading.verdicts)
            assert (a.reading and a.reading.places) == (b.reading and b.reading.places)
    with pytest.raises(Exception, match="cascade differ"):
        evaluate(still(), DATA, preset=BRIEF, eps=(0.04, 0.1), out=tmp_path, cascade=False)


def test_what_was_kept_of_too_few_images_is_attacked_again(tmp_path, monkeypatch):
    """Square was missing and is there later; nothing that was kept of fewer images than are wanted is believed."""
    bare = {"bare": DefendedClassifier(tiny_classifier(), policy="none")}
    evaluate(bare, DATA, preset=BRIEF, eps=(0.04,), out=tmp_path)
    monkeypatch.setattr(Cascade, "took", lambda self, reading: None)
    again = evaluate(bare, DATA, preset=BRIEF, eps=(0.04,), out=tmp_path)
    assert all(rung.reading.places is None for rung in again.arms[0].rungs)


def test_folds_of_a_cascade_are_merged_as_those_of_the_whole_ladder():
    parts = {
        cascade: [
            evaluate(still(), tiny_dataset(40, seed=seed), preset=BRIEF, eps=(0.04, 0.1), cascade=cascade)
            for seed in (21, 22)
        ]
        for cascade in (False, True)
    }
    whole, merged = merge(parts[False]), merge(parts[True])
    assert merged.met_by_all == 12
    assert whole.met_by_all is None
    assert merged.labels == whole.labels
    assert figures(merged) == figures(whole)
    for one, two in zip(merged.arms, whole.arms, strict=True):
        for part, full in zip(one.rungs, two.rungs, strict=True):
            if part.reading is not None and part.reading.places is not None and part.rung != "square":
                places = part.reading.places
                assert places[:12] == list(range(12))
                assert part.reading.verdicts[0] == [full.reading.verdicts[0][place] for place in places]
                assert part.success == [full.success[place] for place in places]
    mixed = merge([parts[False][0], parts[True][1]])
    assert figures(mixed) == figures(whole)


def test_a_report_says_how_many_images_each_attack_met(tmp_path):
    pytest.importorskip("jinja2")
    found = evaluate(
        still(), DATA, preset=BRIEF, eps=(0.04, 0.1), out=tmp_path, attackers={"b": tiny_classifier(steps=40)}
    )
    benign = choose(DATA, BRIEF.images, seed=0)
    summary = write_report(found, tmp_path, benign=benign, chain=still()["purified"])
    rows = {(row.arm, row.rung, row.eps): row for row in summary.rungs}
    last = rows["purified", "exact", 0.1]
    assert last.images == len(last_places(found, "exact", 0.1)) < 24
    assert 0 <= last.right <= last.images
    text = markdown(summary)
    assert "Right of those that met each attack" in text
    assert f"{last.right}/{last.images}" in text
    assert "The first 6 images met every attack" in text
    assert " of 6 images" in weakest_point(summary, 0.1)
    assert "Share of the first 6 images" in (tmp_path / "report.html").read_text()


def last_places(found, rung, eps):
    return next(r.reading.places for r in found.arms[1].rungs if (r.rung, r.eps) == (rung, eps))
