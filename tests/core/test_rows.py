"""Results and images by place, and as tables."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chains import DATA, assert_same, chain_of
from hypothesis import given
from hypothesis import strategies as st

from medfedpure import AttackResult, ImageDataset, InputError, MissingExtraError, Prediction, create
from medfedpure.core.dataset import Attribute
from medfedpure.core.rows.index import places_of
from medfedpure.core.rows.table import csv_text
from medfedpure.testing import tiny_classifier, tiny_dataset


@pytest.fixture(scope="module")
def found() -> Prediction:
    return chain_of().predict(DATA, seed=0)


def known() -> ImageDataset:
    data = tiny_dataset(6, seed=1)
    return ImageDataset(
        pixels=data.pixels,
        labels=torch.tensor([0, 1, 0, 1, 0, 0]),
        groups=torch.arange(6) // 2,
        class_names=("healthy", "lesion"),
        ids=torch.arange(6) + 10,
        levels={"patient": torch.arange(6) // 2, "site": torch.arange(6)},
        attributes={"sex": Attribute(("F", "M"), torch.tensor([0, 1, -1, 0, 1, -1]))},
        name="six",
    )


@given(size=st.integers(0, 6), index=st.data())
def test_places_are_those_of_a_list(size: int, index: Any) -> None:
    rows = list(range(size))
    start, stop = (index.draw(st.none() | st.integers(-9, 9)) for _ in range(2))
    cut = slice(start, stop, index.draw(st.sampled_from((None, 1, 2, -1, -3))))
    several = places_of(cut, size)
    assert isinstance(several, torch.Tensor)
    assert several.tolist() == rows[cut]
    for place in range(-size, size):
        assert places_of(place, size) == rows[place]
        assert places_of(torch.tensor([place]), size).tolist() == [rows[place]]  # type: ignore[union-attr]
    for place in (size, -size - 1):
        for asked in (place, torch.tensor(place), torch.tensor([place])):
            with pytest.raises(IndexError, match=f"there are {size} rows"):
                places_of(asked, size)


@pytest.mark.parametrize("index", [True, 1.5, "labels", (1, 2), None, torch.rand(3), [[1], [2]], ["a"], [True, False]])
def test_what_is_no_place_is_refused(index: Any) -> None:
    with pytest.raises(InputError):
        places_of(index, 3)


def test_an_index_or_a_mask_may_come_as_list_array_or_tensor() -> None:
    for mask in ([True, False, True], torch.tensor([True, False, True]), torch.tensor([True, False, True]).numpy()):
        assert places_of(mask, 3).tolist() == [0, 2]
    for places in ([0, -1], torch.tensor([0, -1], dtype=torch.int32), torch.tensor([0, -1]).numpy()):
        assert places_of(places, 3).tolist() == [0, 2]
    assert places_of([], 3).tolist() == []


class Labelled(list[Any]):
    """As a series of pandas whose rows were sorted: in square brackets it answers by label, not by place."""

    def __getitem__(self, label: Any) -> Any:
        return super().__getitem__(len(self) - 1 - label)

    def tolist(self) -> list[Any]:
        return list(self)


def test_an_array_of_any_order_and_dtype_gives_its_values() -> None:
    array = torch.tensor([0, 1, 1]).numpy()
    for dtype in ("uint16", ">i8", "object"):
        assert places_of(array.astype(dtype), 3).tolist() == [0, 1, 1]
    assert places_of(array[::-1], 3).tolist() == [1, 1, 0], "an argsort that was turned round"
    assert places_of(Labelled([0, 2]), 3).tolist() == [0, 2]
    assert places_of(Labelled([True, True, False]), 3).tolist() == [0, 1]


@pytest.mark.parametrize(
    "index", [torch.tensor([0, 1, 1], dtype=torch.uint8), torch.tensor([0, 1]).numpy().astype("u1")]
)
def test_bytes_may_be_a_mask_or_places(index: Any) -> None:
    with pytest.raises(InputError, match="to bool or to int64"):
        places_of(index, 3)


def test_a_part_of_a_prediction_is_a_prediction(found: Prediction) -> None:
    flagged = found[found.flagged]
    assert 0 < len(flagged) < len(found)
    assert bool(flagged.flagged.all())
    for index in (slice(2, 5), found.flagged, [-1, 0]):
        assert_same(found[index], found, str(index), index)
        assert torch.equal(found[index].trace.nfe, found.trace.nfe[index])


def test_one_image_of_a_prediction_is_its_row(found: Prediction) -> None:
    assert found[3] == found.rows()[3]
    assert found[-1] == found.rows()[-1]
    assert [row["image"] for row in found] == found.ids.tolist(), "iteration ends"


def test_without_images_the_table_has_its_heads(found: Prediction, tmp_path: Path) -> None:
    found[:0].to_csv(tmp_path / "none.csv")
    assert (tmp_path / "none.csv").read_text().splitlines() == [",".join(found.columns())]


def test_attacked_images_by_place_and_as_a_table(tmp_path: Path) -> None:
    result = create("attack", "pgd_eot", steps=2, eps=0.1)(tiny_classifier(), DATA.images, DATA.labels)
    fallen = result[result.success]
    assert isinstance(fallen, AttackResult)
    assert len(fallen) == int(result.success.sum())
    assert fallen.description == result.description
    result.to_csv(tmp_path / "attacked.csv")
    with (tmp_path / "attacked.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["success"] == "True" for row in rows] == result.success.tolist()
    assert "eps 0.1" in rows[0]["attack"], "no success stands without its attack"


def test_images_are_one_line() -> None:
    channels, height, width = known().image_shape
    assert repr(known()) == (
        f"ImageDataset 'six': 6 images of {channels} x {height} x {width} uint8 in 3 groups; 4 'healthy', 2 'lesion'"
    )


def test_images_by_place() -> None:
    data = known()
    image, label = data[1]
    assert torch.equal(image, data.images[1])
    assert label == 1
    assert [label for _, label in data] == data.labels.tolist()
    for index in (slice(1, 4), data.labels == 0, [5, -6]):
        part = data[index]
        assert torch.equal(part.ids, data.ids[index])
        assert torch.equal(part.images, data.images[index])
        assert part.levels["patient"].tolist() == data.levels["patient"][index].tolist()


def test_images_as_a_table() -> None:
    rows = known().rows()
    wanted = {
        "id": 12,
        "label": 0,
        "group": 1,
        "site": -1,
        "class": "healthy",
        "patient": 1,
        "level site": 2,
        "sex": None,
    }
    assert rows[2] == wanted
    assert [row["sex"] for row in rows] == ["F", "M", None, "F", "M", None]


def test_no_cell_runs_as_a_formula() -> None:
    text = csv_text(
        {"class": ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "a=1", None], "score": [-0.5, 1, 2, 3, 4, 5, True]}
    )
    rows = list(csv.reader(text.splitlines()))
    assert [row[0] for row in rows[1:]] == ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\tx", "a=1", ""]
    assert rows[1][1] == "-0.5", "a number stays one"


def test_no_cell_breaks_its_row(tmp_path: Path) -> None:
    names = ["scan\r=1+1", "a\nb", "c\r\n", 'd"', "e,f"]
    text = csv_text({"class": names, "place": range(5)})
    (tmp_path / "table.csv").write_bytes(text.encode())
    with (tmp_path / "table.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [["class", "place"], *([name, str(at)] for at, name in enumerate(names))]
    assert text.startswith('class,place\n"scan\r=1+1",0\n')


def test_a_name_that_is_no_text_loses_no_table(tmp_path: Path) -> None:
    named = replace(known(), class_names=("healthy", "l\udce9sion"))
    named.to_csv(tmp_path / "table.csv")
    assert "l\\udce9sion" in (tmp_path / "table.csv").read_text()


def test_a_data_frame_holds_the_columns(found: Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda columns: columns))
    assert found.to_dataframe() == dict(found.columns())


def test_a_data_frame_of_pandas(found: Prediction) -> None:
    pandas = pytest.importorskip("pandas")
    table = found.to_dataframe()
    assert isinstance(table, pandas.DataFrame)
    assert table.to_dict("records") == found.rows()
    assert known().to_dataframe()["sex"].isna().sum() == 2


def test_without_pandas_it_is_said_what_to_install(found: Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        found.to_dataframe()
