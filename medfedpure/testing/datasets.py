"""The contract of data sets."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from medfedpure.core.dataset import Dataset, ImageDataset, bits_of, check_disjoint
from medfedpure.testing.components import ComponentContract, new_like


class DatasetContract(ComponentContract):
    """Equal configuration, equal data; images of one group never part."""

    kind: ClassVar[str] = "dataset"

    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, component: Dataset) -> ImageDataset:
        """What it reads."""
        return component.read()

    def test_data(self, data: ImageDataset) -> None:
        """Pixels of 8 or 16 bits, labels in range, distinct ids, every class present."""
        size = len(data)
        assert isinstance(data, ImageDataset), f"read must return an ImageDataset; got {type(data).__name__}"
        assert size > 0, "there is no image"
        depths = (torch.uint8, torch.uint16)
        assert data.pixels.dtype in depths, f"pixels must be uint8 or uint16; got {data.pixels.dtype}"
        assert data.image_shape[0] in (1, 3), f"images must have 1 or 3 channels; got {data.image_shape[0]}"
        assert data.num_classes >= 2, f"at least 2 classes are wanted; got {data.class_names}"
        assert all(data.class_names), f"a class has no name: {data.class_names}"
        assert len(set(data.class_names)) == data.num_classes, f"class names must differ; got {data.class_names}"
        assert len(set(data.positive)) < data.num_classes, f"not every class is a finding; got {data.positive}"
        assert sorted(data.labels.unique().tolist()) == list(range(data.num_classes)), "a class has no image"
        assert data.ids.unique().numel() == size, "ids must be distinct"
        assert float(data.images.max()) <= 1, "images must lie in [0, 1]"
        assert bits_of(data.pixels).unique().numel() > 1, "every pixel has one value"
        assert data.name, "a data set needs a name for reports"

    def test_equal_images_share_a_group(self, data: ImageDataset) -> None:
        """Images that are equal pixel by pixel stand in one group, or a split leaks them into the test part."""
        _, same = bits_of(data.pixels).flatten(1).unique(dim=0, return_inverse=True)
        for picture in (same.bincount() > 1).nonzero().flatten().tolist():
            groups = data.groups[same == picture].unique().tolist()
            ids = data.ids[same == picture].tolist()
            assert len(groups) == 1, f"images {ids} are equal pixel by pixel and stand in groups {groups}"

    def test_reading_repeats(self, component: Dataset, data: ImageDataset) -> None:
        """Read again, and by another instance: equal in every part."""
        for again in (component.read(), new_like(component).read()):
            assert again.fingerprint(1) == data.fingerprint(1), "reading twice gives other pixels, labels or groups"
            assert torch.equal(again.ids, data.ids), "reading twice gives other ids"
            assert torch.equal(again.sites, data.sites), "reading twice gives other sites"
            assert again.class_names == data.class_names, "reading twice gives other class names"
            assert again.fingerprint() == data.fingerprint(), "reading twice gives other masks, levels or attributes"

    def test_splits_keep_groups_together(self, data: ImageDataset) -> None:
        """Disjoint parts, together complete, with ids carried along; equal for equal seeds."""
        shares = {"train": 0.6, "test": 0.4}
        parts = data.split(shares, by="group", seed=3)
        check_disjoint(parts)
        ids = torch.cat([part.ids for part in parts.values()])
        assert torch.equal(ids.sort().values, data.ids.sort().values), "a split loses or doubles images"
        again = data.split(shares, by="group", seed=3)
        assert all(torch.equal(again[name].ids, part.ids) for name, part in parts.items()), "a split does not repeat"

    def test_partitions_keep_groups_together(self, data: ImageDataset) -> None:
        """Clients hold disjoint groups, together everything."""
        clients = data.partition(2, by="equal", seed=3)
        check_disjoint({str(place): client for place, client in enumerate(clients)})
        assert sum(len(client) for client in clients) == len(data), "a partition loses or doubles images"
