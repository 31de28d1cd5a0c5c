"""Rows know which images they are of: ids survive slicing, masks and writing."""

import csv

import torch

import medfedpure
from medfedpure.core.results import AttackResult
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.testing import tiny_classifier, tiny_dataset


def test_verdicts_of_some_images_keep_their_ids(tmp_path):
    data = tiny_dataset(40)
    chain = DefendedClassifier(tiny_classifier(), policy="none")
    some = data.select(torch.tensor([7, 30, 31]))
    first, second, third = names = some.ids.tolist()
    found = chain.predict(some, seed=0)
    assert found.ids.tolist() == names != [0, 1, 2]
    assert [row["image"] for row in found.rows()] == names
    assert found[1]["image"] == second, "the id, not the place"
    assert [row["image"] for row in found[torch.tensor([True, False, True])].rows()] == [first, third]
    found[1:].to_csv(tmp_path / "some.csv")
    with (tmp_path / "some.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == [str(second), str(third)]
    assert chain.predict(data.images[:3], ids=torch.tensor([5, 9, 2]), seed=0).ids.tolist() == [5, 9, 2]


def test_attacked_images_keep_their_ids_and_the_view_stands_beside_them():
    data = tiny_dataset(12)
    chain = DefendedClassifier(tiny_classifier(), policy="none")
    attack = medfedpure.create("attack", "fgsm", eps=0.1)
    streams = medfedpure.Streams(0, torch.arange(100, 112))
    found = attack(medfedpure.static_view(chain), data.images, data.labels, streams=streams)
    assert found[[3, 5]].ids.tolist() == [103, 105]
    assert found[3]["image"] == 103
    assert "static" in repr(found)
    assert set(found.columns()["view"]) == {found.view}


def test_a_result_that_was_given_no_ids_names_places_and_keeps_them():
    found = AttackResult(torch.zeros(4, 1, 2, 2), torch.ones(4, dtype=torch.bool), torch.zeros(4), "none")
    assert [row["image"] for row in found.rows()] == [0, 1, 2, 3]
    assert [row["image"] for row in found[2:].rows()] == [2, 3]
    assert [row["image"] for row in found[2:][1:].rows()] == [3]
    assert found != found[:], "results compare by identity: a table of tensors has no one truth"
