"""Folds as one evaluation: image by image, and doubted as a whole."""

import pytest
import torch

from medfedpure.core.defense import DefendedClassifier
from medfedpure.core.errors import ConfigError
from medfedpure.core.evaluation import evaluate
from medfedpure.core.evaluation_merge import merge
from medfedpure.core.evaluation_results import Evaluation
from medfedpure.core.findings import compare
from medfedpure.core.ladder import Preset
from medfedpure.testing import tiny_classifier, tiny_dataset

BRIEF = Preset("brief", 16, 8, 2, 1, 2, 2, 12, "for tests")


def test_folds_are_merged_image_by_image_the_checked_ones_first():
    bare = {"bare": DefendedClassifier(tiny_classifier(), policy="none")}
    parts = [evaluate(bare, tiny_dataset(40, seed=seed), preset=BRIEF, eps=(0.05,)) for seed in (21, 22)]
    whole = merge(parts)

    def joined(one, two):
        few = BRIEF.checked
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
        part = evaluate(bare, tiny_dataset(40, seed=seed), preset=BRIEF, eps=(0.05,))
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
