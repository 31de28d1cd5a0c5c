"""Images of a group as positives: what the term does, what batches hold, and what stays as it was."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import ArtifactError, DataError, PartnersWarning, TrainingError
from medfedpure.core.settings import AdversarialTraining, Augmentation, GroupPositives, TrainingConfig
from medfedpure.core.streams import Streams
from medfedpure.core.task import Task
from medfedpure.testing import tiny_classifier, tiny_dataset
from medfedpure.testing.checking import global_rng_untouched
from medfedpure.training.adversarial import AdversarialTask, harden
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.group_positives import GroupPositivesTask, contrastive_loss, with_group_positives
from medfedpure.training.group_sampling import Partnered
from medfedpure.training.loop import train
from medfedpure.training.sampling import checked_batches

DATA = tiny_dataset(32)
PLAIN = ClassificationTask(Augmentation(noise=0.05))
ON = GroupPositives(weight=0.5)
BUDGET = TrainingConfig(steps=6, batch_size=8, checks=3)


def trained(task: Task, data: ImageDataset = DATA, checkpoint: Path | None = None) -> dict[str, Tensor]:
    model = tiny_classifier(steps=0).requires_grad_(True)
    train(model, task, data, BUDGET, seed=1, checkpoint=checkpoint)
    return model.state_dict()


def drawn(groups: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of groups of three, two classes, and one image without a partner."""
    units = torch.cat((torch.arange(groups).repeat_interleave(3), torch.tensor([99])))
    features = torch.randn(len(units), 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return features, units, units % 2, torch.arange(len(units)) * 3


def term(features: Tensor, units: Tensor, labels: Tensor, ids: Tensor, *, same_class: bool = False) -> float:
    return float(contrastive_loss(features, units, labels, ids, temperature=0.5, same_class=same_class))


# -- the term -----------------------------------------------------------------------------------------------------


def test_the_term_is_its_formula() -> None:
    features, units, labels, ids = drawn(3, 0)
    direction = features / features.norm(dim=1, keepdim=True)
    means = []
    for i in range(len(ids)):
        partners = [p for p in range(len(ids)) if units[p] == units[i] and p != i]
        strangers = [n for n in range(len(ids)) if labels[n] != labels[i]]
        away = sum((direction[i] @ direction[n] / 0.5).exp() for n in strangers)
        near = [(direction[i] @ direction[p] / 0.5).exp() for p in partners]
        if near:
            means.append(sum(-(one / (one + away)).log() for one in near) / len(near))
    assert len(means) == 9
    assert term(features, units, labels, ids) == pytest.approx(float(sum(means) / 9), rel=1e-5)


@given(st.integers(0, 10_000), st.integers(2, 4), st.floats(0.01, 0.2), st.booleans())
@settings(max_examples=40, deadline=None)
def test_it_falls_as_a_group_comes_nearer_and_rises_as_others_do(
    seed: int, groups: int, closer: float, same_class: bool
) -> None:
    features, units, labels, ids = drawn(groups, seed)
    directions = nn.functional.normalize(features, dim=1)
    similar = 0.6 * torch.eye(len(ids), dtype=torch.float64) + 0.4 * directions @ directions.T
    before = term(torch.linalg.cholesky(similar), units, labels, ids, same_class=same_class)

    def with_closer(first: int, second: int) -> float:
        """With rows of which the similarity of one pair is another, and of no other pair."""
        moved = similar.clone()
        moved[first, second] += closer
        moved[second, first] += closer
        return term(torch.linalg.cholesky(moved), units, labels, ids, same_class=same_class)

    for second in (1, 2):
        assert with_closer(0, second) < before, "partners came nearer, and the loss did not fall"
    strangers = (units != units[0]) if same_class else (labels != labels[0])
    for second in strangers.nonzero().squeeze(1).tolist():
        assert with_closer(0, second) > before, "a stranger came nearer, and the loss did not rise"


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_order_of_rows_is_nothing(seed: int, same_class: bool) -> None:
    features, units, labels, ids = drawn(4, seed)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed + 1))
    shuffled = [rows[order] for rows in (features, units, labels, ids)]
    assert term(*shuffled, same_class=same_class) == pytest.approx(
        term(features, units, labels, ids, same_class=same_class), rel=1e-5
    )


def test_images_without_a_partner_add_nothing() -> None:
    features, units, labels, ids = drawn(4, 2)
    alone = torch.arange(len(ids))
    assert term(features, alone, labels, ids) == 0.0
    # Of the class of all others, the last image is no stranger either: with and without it the term is the same.
    same = torch.zeros_like(labels)
    same[:3] = 1
    with_it, without = (
        term(*(rows[part] for rows in (features, units, same, ids))) for part in (alone[3:], alone[3:-1])
    )
    assert with_it == without == 0.0
    assert term(features, units, torch.zeros_like(labels), ids) == 0.0, "nothing pushes where there is no stranger"


def test_an_image_twice_in_a_batch_is_no_partner_of_itself() -> None:
    features, units, labels, ids = drawn(2, 3)
    twice = torch.tensor([0, 0, 3, 6])
    assert term(features[twice], units[twice], labels[twice], ids[twice]) == 0.0


def test_a_group_of_two_classes_is_no_group_of_positives() -> None:
    features, units, labels, ids = drawn(2, 4)
    mixed = labels.clone()
    mixed[0] = 1 - mixed[0]
    pair = torch.tensor([0, 1, 3])
    assert term(features[pair], units[pair], mixed[pair], ids[pair]) == 0.0


# -- the task -----------------------------------------------------------------------------------------------------


def test_weight_zero_is_plain_training_to_the_bit() -> None:
    off = GroupPositives()
    plain = trained(PLAIN)
    assert with_group_positives(PLAIN, off, DATA) is PLAIN
    found = trained(GroupPositivesTask(PLAIN, off, DATA))
    assert all(torch.equal(found[key], plain[key]) for key in plain)
    pulled = trained(GroupPositivesTask(PLAIN, ON, DATA))
    assert any(not torch.equal(pulled[key], plain[key]) for key in plain)


def test_the_gradient_reaches_the_network_and_compares_what_is_learned_from() -> None:
    model, batch = tiny_classifier(steps=0).requires_grad_(True).train(), DATA.batch(torch.arange(12))
    task, streams = GroupPositivesTask(PLAIN, ON, DATA), Streams(3, DATA.ids[:12])
    body = [weight for name, weight in model.named_parameters() if "head" not in name]
    pulled = task.loss(model, batch, streams) - PLAIN.loss(model, batch, streams)
    assert float(pulled.detach()) > 0
    for gradient in torch.autograd.grad(pulled, body):
        assert bool(gradient.isfinite().all())
        assert float(gradient.abs().max()) > 1e-6
    seen: list[Tensor] = []
    handle = model.network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    task.loss(model, batch, streams)
    handle.remove()
    assert torch.equal(seen[0], seen[1]), "the same augmented images are classified and compared"


def test_comparing_moves_no_running_statistics() -> None:
    batch, states = DATA.batch(torch.arange(12)), []
    for task in (PLAIN, GroupPositivesTask(PLAIN, ON, DATA)):
        model = tiny_classifier().train()
        task.loss(model, batch, Streams(3, batch.ids))
        states.append(dict(model.named_buffers()))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_it_learns_to_keep_groups_together() -> None:
    held_out = tiny_dataset(64).select(torch.arange(32, 64))
    batch = held_out.batch(torch.arange(32))

    def spread(task: Task) -> float:
        model = tiny_classifier(steps=0).requires_grad_(True)
        train(model, task, DATA, BUDGET.model_copy(update={"steps": 40, "learning_rate": 1e-2}), seed=0)
        with torch.no_grad():
            features = model.features(batch.images)
        return term(features, held_out.groups, batch.labels, batch.ids)

    assert spread(GroupPositivesTask(PLAIN, GroupPositives(weight=2, temperature=0.5), DATA)) < spread(PLAIN)


def test_inside_adversarial_training_plain_and_attacked_images_are_pulled_together() -> None:
    attack = AdversarialTraining(share=0.5, eps=0.05, step=0.02, steps=2)
    inner = GroupPositivesTask(PLAIN, ON, DATA)
    task = AdversarialTask(inner, attack, PLAIN)
    assert isinstance(task.sampler(), Partnered)
    model, batch = tiny_classifier().train(), DATA.batch(torch.arange(16))
    streams = Streams(5, batch.ids)
    shown = replace(batch, images=PLAIN.inputs(model, batch, streams))
    untouched = copy.deepcopy(model)
    found = task.loss(untouched, batch, streams)
    model.training = False  # as a task is shown images that are augmented: its layers train, and it augments no more
    attacked = harden(model, shown, streams, attack, PLAIN)
    moved = (attacked.images != shown.images).flatten(1).any(1)
    pairs = moved.view(8, 2).sum(1)
    assert bool((pairs == 1).any()), "no group of this batch is half attacked: choose another seed"
    wanted = inner.loss(model, attacked, streams)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "options",
    [{"method": "trades"}, {"method": "fast"}, {"normalization": "dual"}, {"awp": 0.01}],
    ids=["trades", "fast", "dual", "awp"],
)
def test_every_adversarial_training_goes_around_it(options: dict[str, object]) -> None:
    attack = AdversarialTraining.parse({"share": 0.5, "eps": 0.05, "step": 0.05, "steps": 1, **options})
    states = [
        trained(
            AdversarialTask(GroupPositivesTask(PLAIN, ON.model_copy(update={"weight": weight}), DATA), attack, PLAIN)
        )
        for weight in (0.1, 2.0, 2.0)
    ]
    assert all(bool(value.isfinite().all()) for value in states[1].values())
    assert all(torch.equal(states[1][key], states[2][key]) for key in states[1])
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[1])


def test_a_training_that_was_cut_off_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = GroupPositivesTask(PLAIN, ON, DATA)
    whole = trained(task)
    seen, loss = [], GroupPositivesTask.loss

    def cut(self, *given):
        seen.append(1)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return loss(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(GroupPositivesTask, "loss", cut)
        with pytest.raises(KeyboardInterrupt):
            trained(task, checkpoint=tmp_path / "state")
    found = trained(task, checkpoint=tmp_path / "state")
    assert all(torch.equal(found[key], whole[key]) for key in whole)
    for other in (GroupPositives(weight=0.6), GroupPositives(weight=0.5, images=3)):
        with pytest.raises(ArtifactError, match="task"):
            trained(GroupPositivesTask(PLAIN, other, DATA), checkpoint=tmp_path / "state")


def test_what_cannot_work_is_said_before_training() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(1024, 2))
    before = linear[1].weight.detach().clone()
    for task in (
        with_group_positives(PLAIN, ON, DATA),
        AdversarialTask(GroupPositivesTask(PLAIN, ON, DATA), AdversarialTraining(share=0.5), PLAIN),
    ):
        with pytest.raises(
            TrainingError, match=r"Sequential has no features\(images\): build the model by a classifier"
        ):
            train(linear, task, DATA, BUDGET, seed=0)
    assert torch.equal(linear[1].weight, before)
    with pytest.raises(DataError, match="got 'patient': name one of these"):
        with_group_positives(PLAIN, GroupPositives(weight=1, unit="patient"), DATA)
    single = replace(DATA, groups=torch.arange(len(DATA)))
    with pytest.warns(PartnersWarning, match="no two of the 32 images of tiny share a group"):
        with_group_positives(PLAIN, ON, single)
    stranger = tiny_dataset(40).batch(torch.arange(36, 40))
    with pytest.raises(TrainingError, match="give it the training data"):
        GroupPositivesTask(PLAIN, ON, DATA).loss(tiny_classifier(), stranger, Streams(0, stranger.ids))


def test_a_level_of_the_data_can_be_what_belongs_together() -> None:
    patients = replace(DATA, groups=DATA.groups // 4, levels={"patient": DATA.groups})
    by_group, by_patient = (
        GroupPositivesTask(PLAIN, GroupPositives(weight=1, unit=unit), patients) for unit in ("group", "patient")
    )
    model, batch = tiny_classifier(), patients.batch(torch.arange(16))
    streams = Streams(0, batch.ids)
    wanted = GroupPositivesTask(PLAIN, GroupPositives(weight=1), DATA).loss(model, batch, streams)
    assert torch.equal(by_patient.loss(model, batch, streams), wanted)
    assert not torch.equal(by_group.loss(model, batch, streams), wanted)


# -- its batches --------------------------------------------------------------------------------------------------


def grouped(sizes: list[int], classes: int = 2) -> ImageDataset:
    """Groups of such sizes, each of one class but the last, which has both."""
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = groups % classes
    labels[-1] = (labels[-1] + 1) % classes
    pixels = torch.zeros(len(groups), 1, 2, 2, dtype=torch.uint8)
    names = tuple(map(str, range(classes)))
    return ImageDataset(pixels, labels, groups * 10, names, torch.arange(len(groups)) + 5)


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=8)


@given(SIZES, st.integers(1, 12), st.integers(2, 4), st.booleans(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_image_stands_beside_a_partner_and_as_often_as_any(
    sizes: list[int], batch_size: int, images: int, balanced: bool, seed: int
) -> None:
    data = grouped(sizes)
    key = torch.stack((data.groups, data.labels), 1).unique(dim=0, return_inverse=True)[1]
    partners = key.bincount()[key] - 1
    seen, of_class = torch.zeros(len(data), dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    for batch in islice(checked_batches(Partnered(images=images, balanced=balanced), data, batch_size, seed), 40):
        assert len(batch) > 0
        assert len(batch) <= max(batch_size, 3), "a pair and one more is the least that a batch must hold"
        for place in batch.unique().tolist():
            if partners[place]:
                mates = batch[key[batch] == key[place]].unique()
                assert len(mates) >= min(2, int(partners[place]) + 1), "an image stands without its partners"
        seen += batch.bincount(minlength=len(data))
        of_class += data.labels[batch].bincount(minlength=2)
    for part in [data.labels == 0, data.labels == 1] if balanced else [torch.ones(len(data), dtype=torch.bool)]:
        if bool(part.any()):
            # A batch may end within an epoch.
            assert int(seen[part].max() - seen[part].min()) <= 1
    if balanced and len(data.labels.unique()) == 2:
        assert int((of_class[0] - of_class[1]).abs()) <= 2 * images - 1


def test_batches_are_repeatable_differ_by_seed_and_touch_no_global_state() -> None:
    data = grouped([3, 2, 5, 1, 4, 2])

    def batches(seed: int) -> list[list[int]]:
        return [batch.tolist() for batch in islice(Partnered().batches(data, 6, seed), 12)]

    with global_rng_untouched("the sampler"):
        first = batches(0)
    assert first == batches(0)
    assert first != batches(1)
    assert Counter(place for batch in first for place in batch).total() >= 50


def test_more_images_of_a_group_stand_together_where_asked_for() -> None:
    data = grouped([8, 8, 8, 8, 2])
    for images in (2, 4, 8):
        for batch in islice(Partnered(images=images).batches(data, 8, 0), 20):
            whole = batch[data.groups[batch] < 40]
            assert not len(whole) or int(data.groups[whole].unique(return_counts=True)[1].min()) >= images
