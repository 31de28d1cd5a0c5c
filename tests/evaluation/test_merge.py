"""Folds as one evaluation: image by image, and doubted as a whole."""

from dataclasses import replace

import pytest
import torch
from chains import chain_of

from medfedpure.core.errors import ConfigError
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.evaluate import evaluate
from medfedpure.evaluation.ladder import Preset
from medfedpure.evaluation.merge import merge
from medfedpure.evaluation.records import Evaluation
from medfedpure.evaluation.self_checks import compare
from medfedpure.figures.metrics import auroc
from medfedpure.testing import tiny_classifier, tiny_dataset

BRIEF = Preset("brief", 16, 8, 2, 1, 2, 2, 12, "for tests")


def test_folds_are_merged_image_by_image_the_checked_ones_first():
    bare = {"bare": DefendedClassifier(tiny_classifier(), policy="none")}
    parts = [evaluate(bare, tiny_dataset(40, seed=seed), preset=BRIEF, eps=(0.05,)) for seed in (21, 22)]
    whole = merge(parts)

    few = BRIEF.checked

    def joined(one, two):
        return one[:few] + two[:few] + one[few:] + two[few:]

    assert whole.labels == joined(parts[0].labels, parts[1].labels)
    for place, rung in enumerate(whole.arms[0].rungs):
        one, two = (part.arms[0].rungs[place] for part in parts)
        assert rung.reading.verdicts[0] == joined(one.reading.verdicts[0], two.reading.verdicts[0])
        assert rung.success == (joined(one.success, two.success) if one.success else [])
    for place, check in enumerate(whole.arms[0].checks):
        one, two = (part.arms[0].checks[place] for part in parts)
        assert check.reading.flagged == one.reading.flagged + two.reading.flagged
    other = evaluate(bare, tiny_dataset(40, seed=22), preset=BRIEF, eps=(0.1,))
    with pytest.raises(ConfigError, match="the same defences"):
        merge([parts[0], other])


def test_what_was_merged_is_merged_with_more_and_no_fold_counts_twice():
    bare = {"bare": DefendedClassifier(tiny_classifier(), policy="none")}
    one, two, three = (evaluate(bare, tiny_dataset(40, seed=seed), preset=BRIEF, eps=(0.05,)) for seed in (21, 22, 23))
    read_back = Evaluation.model_validate_json(merge([one, two]).model_dump_json())
    later, at_once = merge([read_back, three]), merge([one, two, three])
    assert later.labels == at_once.labels
    assert later.setting == at_once.setting
    for first, second in zip(later.arms[0].rungs, at_once.arms[0].rungs, strict=True):
        assert first.reading.verdicts == second.reading.verdicts
        assert first.success == second.success
    with pytest.raises(ConfigError, match="the same images"):
        merge([read_back, two])


def test_what_no_fold_alone_shows_is_found_in_the_whole():
    """Four images of each fold survive the stronger attack and fall to the weaker one: 8 are beyond chance."""
    bare = {"bare": DefendedClassifier(tiny_classifier(), policy="none")}
    parts = []
    for seed in (21, 22):
        part = evaluate(bare, tiny_dataset(40, seed=seed), preset=BRIEF, eps=(0.05,), cascade=False)
        right, wrong = part.labels, [1 - label for label in part.labels]

        def saying(result, verdicts):
            return result.model_copy(update={"reading": result.reading.model_copy(update={"verdicts": [verdicts]})})

        arm = part.arms[0]
        rungs = [saying(rung, right) if rung.reading else rung for rung in arm.rungs]
        few = BRIEF.checked
        fallen = {"static, half eps": 4, "static, large eps": few}
        checks = []
        for check in arm.checks:
            count = fallen.get(check.rung, 0)
            checks.append(saying(check, wrong[:count] + right[count:few]))
        arm = arm.model_copy(update={"rungs": rungs, "checks": checks, "unreliable": ["probed"]})
        assert compare(rungs, checks, torch.tensor(part.labels), arm.stochastic) == []
        parts.append(part.model_copy(update={"arms": [arm]}))
    reasons = merge(parts).arms[0].unreliable
    assert reasons[:2] == ["part 0: probed", "part 1: probed"]
    assert any("8 images with half eps, 0 with the attack itself" in reason for reason in reasons[2:]), reasons


def test_parts_that_were_attacked_less_hard_are_refused():
    bare = {"bare": DefendedClassifier(tiny_classifier(), policy="none")}
    one = evaluate(bare, tiny_dataset(40, seed=21), preset=BRIEF, eps=(0.05,))
    for weaker in (replace(BRIEF, steps=2), replace(BRIEF, queries=1)):
        other = evaluate(bare, tiny_dataset(40, seed=22), preset=weaker, eps=(0.05,))
        with pytest.raises(ConfigError, match="strength"):
            merge([one, other])


def test_what_was_noticed_in_one_fold_alone_makes_it_no_other_attack():
    bare = {"bare": DefendedClassifier(tiny_classifier(), policy="none")}
    one, two = (evaluate(bare, tiny_dataset(40, seed=seed), preset=BRIEF, eps=(0.05,)) for seed in (21, 22))
    noticed = "; the gradient was zero at 3% of looks at images not fooled: it is blind there"
    rungs = [
        rung.model_copy(update={"attack": rung.attack + noticed}) if rung.rung == "static" else rung
        for rung in two.arms[0].rungs
    ]
    arm = two.arms[0].model_copy(update={"rungs": rungs})
    assert len(merge([one, two.model_copy(update={"arms": [arm]})]).labels) == 32


def test_a_check_that_one_part_lacks_is_left_out():
    bare = {"bare": DefendedClassifier(tiny_classifier(), policy="none")}
    one, two = (evaluate(bare, tiny_dataset(40, seed=seed), preset=BRIEF, eps=(0.05,)) for seed in (21, 22))
    arm = two.arms[0].model_copy(update={"checks": two.arms[0].checks[1:]})
    whole = merge([one, two.model_copy(update={"arms": [arm]})])
    assert [check.rung for check in whole.arms[0].checks] == [check.rung for check in arm.checks]


def test_scores_of_folds_are_compared_within_each_fold():
    """Detectors whose scores differ by a factor of 100, each perfect in its own fold."""
    chain = {"it": chain_of()}
    parts = [
        evaluate(chain, tiny_dataset(40, seed=seed), preset=BRIEF, eps=(0.05,), cascade=False) for seed in (21, 22)
    ]
    scaled = []
    for part, factor in zip(parts, (1.0, 100.0), strict=True):
        arm, size = part.arms[0], len(part.labels)

        def scored(reading, scores):
            return reading.model_copy(update={"scores": scores})

        benign = [factor * (1 + place / size) for place in range(size)]
        rungs = [
            rung.model_copy(update={"reading": scored(rung.reading, [3 * score for score in benign])})
            for rung in arm.rungs
        ]
        arm = arm.model_copy(update={"clean": scored(arm.clean, benign), "rungs": rungs, "checks": []})
        scaled.append(part.model_copy(update={"arms": [arm]}))
    whole = merge(scaled).arms[0]
    assert auroc(torch.tensor(whole.clean.scores), torch.tensor(whole.rungs[0].reading.scores)) == 1
    assert merge(scaled[:1]).arms[0].clean.scores == pytest.approx(scaled[0].arms[0].clean.scores)


def test_pairs_of_a_federation_have_no_folds():
    bare = DefendedClassifier(tiny_classifier(), policy="none")
    one, two = (
        evaluate({"it": bare}, data, preset=BRIEF, eps=(0.05,), federation={"a": (bare, data)})
        for data in (tiny_dataset(40, seed=21), tiny_dataset(40, seed=22))
    )
    with pytest.raises(ConfigError, match="were paired"):
        merge([one, two])
