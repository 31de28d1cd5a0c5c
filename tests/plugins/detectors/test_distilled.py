"""The small network that imitates an expensive detector: what it learns, needs and refuses."""

from dataclasses import replace

import pytest
import torch
from exports import TORCH_FITS

import medfedpure
from medfedpure.core.errors import ArtifactError, ConfigError, DataError, InputError, MissingRequirementError
from medfedpure.core.streams import Streams
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.export.write import export_model
from medfedpure.figures.metrics import auroc
from medfedpure.testing import tiny_context, tiny_dataset
from medfedpure.testing.quality import noisy
from medfedpure.testing.setting import Setting

TEACHER = {"plugin": "score_norm"}
OPTIONS = {"teacher": TEACHER, "eps": [0.05], "steps": 2, "width": 16}
LEARNS = {"steps": 200, "batch_size": 16, "learning_rate": 5e-3}
SHORT = {"steps": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def context():
    return tiny_context()


@pytest.fixture(scope="module")
def learned(context):
    return medfedpure.create("detector", "distilled", training=LEARNS, **OPTIONS).fit(tiny_dataset(), context=context)


def test_it_answers_fresh_images_as_the_teacher_does(learned, context):
    fresh = Setting.of(tiny_dataset(seed=1), context, images=48)
    teacher = medfedpure.create("detector", "score_norm")
    images = torch.cat([fresh.images, noisy(fresh, 0.02), noisy(fresh, 0.05)])
    streams = Streams.for_batch(0, len(images))
    found = learned(images, context=context, streams=streams)
    wanted = teacher(images, context=context, streams=streams)
    ranks = torch.stack([found.argsort().argsort().double(), wanted.argsort().argsort().double()])
    assert float(ranks.corrcoef()[0, 1]) > 0.8, "the student orders images as its teacher"
    assert auroc(found[:48], found[96:]) > 0.95


def test_the_target_is_in_standard_deviations_of_benign_scores(learned, context):
    data = tiny_dataset()
    scores = learned(data.images, context=context, streams=Streams(0, data.ids))
    assert abs(float(scores.mean())) < 0.5, "benign images lie about 0"


def test_the_teacher_and_its_diffusion_model_are_not_needed_any_more(learned, context, tmp_path):
    fresh = medfedpure.create("detector", "distilled", training=SHORT, **OPTIONS)
    assert fresh.requires == {"classifier", "denoiser"}
    assert learned.requires == {"classifier"}, "for its log-probabilities"
    learned.save(tmp_path / "distilled")
    loaded, data = medfedpure.Detector.load(tmp_path / "distilled"), tiny_dataset()
    alone = replace(context, denoiser=None, features=None)
    assert torch.equal(loaded(data.images, context=alone), learned(data.images, context=context))
    with pytest.raises(MissingRequirementError, match="denoiser"):
        fresh.fit(data, context=alone)


def test_labels_are_not_looked_at(context):
    data = tiny_dataset(24)
    other = replace(data, labels=1 - data.labels)
    found = [
        medfedpure.create("detector", "distilled", training=SHORT, **OPTIONS).fit(part, context=context)(
            data.images, context=context
        )
        for part in (data, other)
    ]
    assert torch.equal(*found)


def test_attacks_stay_within_their_eps_and_raise_the_classifiers_doubt(context):
    data = tiny_dataset(16)
    part = medfedpure.create("detector", "distilled", **{**OPTIONS, "eps": [0.02, 0.1], "steps": 4})
    batch = data.batch(torch.arange(16))
    near, far, noise = part._varied(batch, context, seed=0)
    said = context.classifier(batch.images).argmax(1, keepdim=True)
    sure = [context.classifier(x).softmax(1).gather(1, said).mean() for x in (batch.images, near, far)]
    for images, eps in ((near, 0.02), (far, 0.1), (noise, 0.1)):
        assert 0 < float((images - batch.images).abs().max()) <= eps + 1e-6
    assert sure[0] > sure[1] > sure[2]


def test_so_many_images_at_most_are_attacked_and_of_as_many_groups_as_can_be(context):
    from medfedpure.plugins.detectors.distilled import _some

    data = tiny_dataset(48)
    some = _some(data, 20, 0)
    assert len(some) == 20
    assert some.num_groups == 20, "one of a group before any other of it"
    assert some.ids.tolist() == list(range(20))
    assert len(_some(data, 48, 0)) == 48


@pytest.mark.parametrize("sees", [["pixels"], ["features"], ["features", "logits"], ["logits"]])
def test_it_looks_at_what_it_is_told(sees, context):
    data = tiny_dataset(16)
    part = medfedpure.create("detector", "distilled", sees=sees, training=SHORT, **OPTIONS).fit(data, context=context)
    wanted = {"features": "features", "logits": "classifier"}
    assert part.requires == {wanted[name] for name in sees if name in wanted}
    lacking = replace(context, **{name: None for name in ("classifier", "features") if name not in part.requires})
    assert part(data.images, context=lacking).shape == (16,)


def test_a_fit_that_is_refused_leaves_it_as_it_was(learned, context):
    with pytest.raises(MissingRequirementError):
        learned.fit(tiny_dataset(), context=replace(context, denoiser=None))
    assert learned.fitted


def test_another_size_is_read_and_another_classifier_or_channel_is_not(learned, context):
    assert learned(torch.rand(2, 1, 33, 47), context=replace(context, logits=torch.zeros(2, 2))).shape == (2,)
    with pytest.raises(InputError, match="fitted on 1 channels"):
        learned(torch.rand(2, 3, 32, 32), context=context)
    three = replace(context, logits=torch.zeros(2, 3))
    with pytest.raises(InputError, match="fit it again beside this classifier"):
        learned(torch.rand(2, 1, 32, 32), context=three)


def test_what_cannot_be_learned_says_so(context):
    class Flat:
        def denoise(self, images, timestep, *, steps, streams):
            return images

        def predict_noise(self, images, timestep):
            return torch.ones_like(images)

    with pytest.raises(DataError, match="score_norm do not vary over 16"):
        medfedpure.create("detector", "distilled", training=SHORT, **OPTIONS).fit(
            tiny_dataset(16), context=replace(context, denoiser=Flat())
        )
    with pytest.raises(ConfigError, match="sees"):
        medfedpure.create("detector", "distilled", sees=[])


def test_a_cut_off_fit_goes_on_and_one_of_other_attacks_does_not(context, tmp_path):
    data, kept = tiny_dataset(16), replace(context, checkpoint=tmp_path / "kept")
    plain = medfedpure.create("detector", "distilled", training=SHORT, **OPTIONS).fit(data, context=context)
    for _ in range(2):
        again = medfedpure.create("detector", "distilled", training=SHORT, **OPTIONS).fit(data, context=kept)
        assert torch.equal(again(data.images, context=context), plain(data.images, context=context))
    other = medfedpure.create("detector", "distilled", training=SHORT, **{**OPTIONS, "eps": [0.06]})
    with pytest.raises(ArtifactError, match="another training"):
        other.fit(data, context=kept)


@TORCH_FITS
def test_an_alarm_of_it_can_be_exported(learned, context, tmp_path):
    """Nothing is drawn, and no diffusion model is asked; the file is compared with torch before it is kept."""
    data = tiny_dataset()
    chain = DefendedClassifier(context.classifier, detector=learned, policy="abstain").calibrate(data, 0.1)
    export_model(chain, tmp_path / "alarm.pt2")
    _, score, flagged = torch.export.load(tmp_path / "alarm.pt2").module()(data.images[:7])
    wanted = chain.predict(data.images[:7], seed=0)
    assert torch.allclose(score, wanted.scores, atol=1e-5)
    assert torch.equal(flagged, wanted.flagged)
