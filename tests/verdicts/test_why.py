"""Why an image was flagged: parts within parts, and a plugin that cannot tell takes no verdict with it."""

import warnings

import pytest
import torch
from written import DATA, pictures, rows_of

import medfedpure
from medfedpure.core.streams import Streams
from medfedpure.plugins.detectors.feature_squeezing import FeatureSqueezing
from medfedpure.service.batching import Batcher
from medfedpure.service.drift import Drift
from medfedpure.service.limits import Limits
from medfedpure.testing import tiny_classifier
from medfedpure.verdicts.predict import predict_files

LEAF, OTHER = {"plugin": "feature_squeezing"}, {"plugin": "mahalanobis"}
PAIR = {"plugin": "compose", "config": {"parts": [LEAF, OTHER]}}
TWINS = {"plugin": "compose", "config": {"parts": [LEAF, LEAF]}}


def chain_of(detector):
    made = medfedpure.DefendedClassifier(
        tiny_classifier(16, 1), detector=detector, purifier=medfedpure.create("purifier", "median")
    )
    if detector.needs_fit:
        detector.fit(DATA, context=made.context(), seed=1)
    return made.calibrate(DATA, 0.5, seed=1)


@pytest.fixture
def inbox(tmp_path):
    return pictures(tmp_path / "inbox", 12)


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        ([LEAF, PAIR], {"compose > feature_squeezing", "compose > compose > feature_squeezing"}),
        ([PAIR, PAIR], {f"compose > compose {k} > feature_squeezing" for k in (0, 1)}),
        ([TWINS, TWINS], {f"compose > compose {k} > feature_squeezing {m}" for k in (0, 1) for m in (0, 1)}),
    ],
)
def test_a_number_stands_behind_the_part_that_it_counts(parts, wanted):
    detector = medfedpure.create("detector", "compose", parts=parts)
    chain = chain_of(detector)
    found = set(detector.reasons(DATA.images, context=chain.context(), streams=Streams.for_batch(3, len(DATA))))
    told = {text for text in found if "mahalanobis" not in text}
    assert told <= wanted
    assert told, found


class Named(FeatureSqueezing):
    """Says what it is told to."""

    said = None

    def reasons(self, images, *, context, streams):
        return self.said(images)


def fails(images):
    raise RuntimeError("secret")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (fails, "its reasons raise RuntimeError"),
        (lambda images: ["short"], "one text for each image"),
        (lambda images: [None] * len(images), "one text for each image"),
        (lambda images: torch.zeros(len(images)), "one text for each image"),
        (lambda images: None, "its reasons raise TypeError"),
    ],
)
def test_a_detector_that_cannot_say_why_takes_no_verdict_with_it(inbox, tmp_path, said, words):
    usual, odd = chain_of(FeatureSqueezing()), chain_of(Named())
    odd.detector.said = said
    predict_files(usual, [inbox], tmp_path / "u.jsonl", format="jsonl", seed=7)
    with pytest.warns(medfedpure.ReasonsWarning, match=f"the detector 'Named' cannot say why .*{words}") as caught:
        predict_files(odd, [inbox], tmp_path / "v.jsonl", format="jsonl", seed=7)
    assert "secret" not in str(caught[0].message)
    wanted, found = rows_of(tmp_path / "u.jsonl"), rows_of(tmp_path / "v.jsonl")
    assert {row["why"] for row in found} == {None, "Named"}
    assert [row | {"why": None} for row in found] == [row | {"why": None} for row in wanted]


@pytest.mark.parametrize("seen", [fails, lambda images: images.mean((1, 2, 3))])
def test_a_map_that_cannot_be_drawn_takes_no_verdict_with_it(seen, caplog):
    chain = chain_of(FeatureSqueezing())
    chain.detector.suspicion_map = lambda images, **_: seen(images)
    drift = Drift(chain.calibration, 3)
    batcher = Batcher(chain, Limits(max_batch=3, max_wait_ms=60_000), drift, seed=7)
    futures = [batcher.submit(image, explain=True) for image in DATA.images[:3]]
    batcher.start()
    try:
        found = [future.result(20) for future in futures]
    finally:
        batcher.stop()
    wanted = chain.predict(DATA.images[:3], torch.zeros(3, dtype=torch.int64), seed=7).rows()
    assert [answer.row["score"] for answer in found] == pytest.approx([row["score"] for row in wanted], abs=1e-6)
    assert [answer.suspicion for answer in found] == [None, None, None]
    assert drift.looks == 1, "each image is one score of the monitor"
    assert "its map could not be drawn" in caplog.text


def test_a_detector_without_a_word_of_its_own_is_named(inbox, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict_files(chain_of(FeatureSqueezing()), [inbox], tmp_path / "v.jsonl", format="jsonl", seed=7)
    assert {row["why"] for row in rows_of(tmp_path / "v.jsonl")} == {None, "feature_squeezing"}
