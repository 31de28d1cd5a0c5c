"""ImageFolder reads what people have, and names what it cannot read."""

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from medfedpure.core.dataset import check_disjoint
from medfedpure.core.errors import ConfigError, DataError
from medfedpure.plugins.datasets.image_folder import ImageFolder


def noise(seed: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """A blocky random grey picture."""
    values = torch.randint(0, 256, (64,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Image.frombytes("L", (8, 8), bytes(values)).resize(size, Image.Resampling.BICUBIC)


def put(path: Path, image: Image.Image | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or noise(sum(path.name.encode()))).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    """Three pictures of each of two classes."""
    folder = tmp_path / "scans"
    for place in range(3):
        put(folder / "no" / f"n{place}.png", noise(place))
        put(folder / "yes" / f"y{place}.png", noise(10 + place))
    return folder


# What is loaded


def test_a_folder_becomes_a_dataset(root):
    folder = ImageFolder(root=root, image_size=32)
    data = folder.read()
    assert data.pixels.shape == (6, 1, 32, 32)
    assert data.pixels.dtype == torch.uint8
    assert data.class_names == ("no", "yes")
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.ids.tolist() == list(range(6))
    assert data.name == "scans"
    assert [path.name for path in folder.paths] == ["n0.png", "n1.png", "n2.png", "y0.png", "y1.png", "y2.png"]
    assert folder.skipped == ()
    assert ImageFolder(root=str(root), image_size=32).read().fingerprint() == data.fingerprint()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("no", "yes"), ("no", "yes")),
        (("glioma", "normal"), ("normal", "glioma")),
        (("Healthy", "Alzheimer"), ("Healthy", "Alzheimer")),
        (("case", "controls"), ("controls", "case")),
        (("brain_tumor", "no_tumor"), ("no_tumor", "brain_tumor")),
        (("malignant", "benign"), ("benign", "malignant")),
        (("pituitary", "normal", "glioma"), ("glioma", "normal", "pituitary")),
    ],
)
def test_the_negative_class_of_two_comes_first(tmp_path, names, expected):
    for name in names:
        put(tmp_path / name / f"{name}.png")
    data = ImageFolder(root=tmp_path, image_size=16).read()
    assert data.class_names == expected


def test_classes_choose_folders_and_their_order(root):
    put(root / "pred" / "p.png")
    data = ImageFolder(root=root, image_size=16, classes=("yes", "no")).read()
    assert data.class_names == ("yes", "no")
    assert data.labels.tolist() == [1, 1, 1, 0, 0, 0]
    assert ImageFolder(root=root, image_size=16).read().class_names == ("no", "pred", "yes")


def test_other_files_are_passed_over_and_images_known_by_content(root):
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "._n0.png", "BMI.csv"):
        (root / "no" / name).write_bytes(b"BMI of the patients, in a text that begins like a bitmap")
    (root / ".git").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "readme.txt").write_text("about")
    put(root / "no" / "without_ending", noise(77), format="BMP")
    put(root / "no" / "zz.jpg", noise(78), format="PNG")
    folder = ImageFolder(root=root, image_size=16)
    assert folder.read().labels.tolist() == [0] * 5 + [1] * 3
    assert [path.name for path in folder.paths][3:5] == ["without_ending", "zz.jpg"]


# What is refused


def damage(root: Path) -> list[str]:
    """Add four files that cannot be read; returns their names in order."""
    whole = put(root / "no" / "whole.jpg", noise(50, (200, 200))).read_bytes()
    (root / "no" / "whole.jpg").unlink()
    (root / "no" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "no" / "empty.png").touch()
    (root / "yes" / "text.jpg").write_text("this is no image")
    put(root / "yes" / "volume.tif", noise(1), save_all=True, append_images=[noise(2), noise(3)])
    return ["no/cut.jpg", "no/empty.png", "yes/text.jpg", "yes/volume.tif"]


def test_all_damaged_files_are_named_in_one_error(root):
    names = damage(root)
    with pytest.raises(DataError) as caught:
        ImageFolder(root=root, image_size=16).read()
    text = str(caught.value)
    assert text.startswith("4 of 10 files")
    assert all(name in text for name in names)
    assert "empty file" in text
    assert "a volume is read slice by slice" in text
    assert 'on_error="skip"' in text


def test_damaged_files_can_be_skipped_and_are_counted(root, caplog):
    names = damage(root)
    folder = ImageFolder(root=root, image_size=16, on_error="skip")
    with caplog.at_level(logging.WARNING):
        data = folder.read()
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.ids.tolist() == list(range(6))
    assert len(folder.paths) == 6
    assert [path.relative_to(root).as_posix() for path in folder.skipped] == names
    assert "skipped 4 files" in caplog.text


def test_only_the_first_ten_of_many_are_named(root):
    for place in range(13):
        (root / "no" / f"bad{place:02}.png").touch()
    with pytest.raises(DataError, match=r"bad09.png and 3 more \(empty file\)"):
        ImageFolder(root=root, image_size=16).read()


def test_a_class_of_which_nothing_can_be_read_is_an_error_even_when_skipping(root):
    (root / "other").mkdir()
    (root / "other" / "a.png").touch()
    with pytest.raises(DataError, match=r"no file in .*other can be read"):
        ImageFolder(root=root, image_size=16, on_error="skip").read()


def test_dark_sixteen_bit_files_are_pointed_out(root, caplog):
    dark = Image.frombytes("I;16", (20, 20), bytes([255, 15]) * 400)
    put(root / "no" / "dark.png", dark)
    with caplog.at_level(logging.WARNING):
        ImageFolder(root=root, image_size=16).read()
    assert "no/dark.png" in caplog.text
    assert "bit_depth=12" in caplog.text
    caplog.clear()
    ImageFolder(root=root, image_size=16, bit_depth=12).read()
    assert caplog.text == ""


def test_animations_and_dangling_links_are_refused(root):
    put(root / "no" / "film.gif", noise(1), save_all=True, append_images=[noise(2)])
    (root / "yes" / "gone.png").symlink_to(root / "nowhere.png")
    with pytest.raises(DataError, match=r"no/film.gif \(holds 2 pictures.*yes/gone.png \(.*No such file"):
        ImageFolder(root=root, image_size=16).read()


def test_folders_that_do_not_fit_are_explained(tmp_path, root):
    def message(folder: Path, **options) -> str:
        with pytest.raises(DataError) as caught:
            ImageFolder(root=folder, image_size=16, **options).read()
        return str(caught.value)

    assert "does not exist" in message(tmp_path / "absent")
    assert "is a file" in message(root / "no" / "n0.png")
    assert "only files such as n0.png" in message(root / "no")
    assert "holds no folder maybe; it holds no, yes: rename those, or" in message(root, classes=("no", "maybe"))
    (root / "later").mkdir()
    assert "later holds no image, it is empty" in message(root)
    (root / "later" / "scan.dcm").write_bytes(bytes(200))
    assert "only other files such as scan.dcm: put" in message(root)
    (root / "later" / "scan.dcm").write_bytes(bytes(128) + b"DICM")
    assert "only other files such as scan.dcm (the data set dicom_folder reads it)" in message(root)
    (root / "later" / "scan.dcm").unlink()
    (root / "later" / "patient").mkdir()
    assert "only empty folders" in message(root)
    assert "holds folders (later, no, yes)" in message(tmp_path)


@pytest.mark.parametrize(
    "options", [{}, {"image_size": 4}, {"image_size": 16, "classes": ()}, {"image_size": 16, "classes": ("../x",)}]
)
def test_wrong_configurations(tmp_path, options):
    with pytest.raises(ConfigError):
        ImageFolder(root=tmp_path, **options)


# Groups


def test_near_duplicates_share_a_group_and_a_split(root):
    for place in range(3):
        turned = noise(place).rotate(90).point(lambda value: value * 0.7)
        put(root / "no" / f"copy{place}.png", turned)
    data = ImageFolder(root=root, image_size=32).read()
    assert data.groups.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5]
    check_disjoint(data.split({"train": 1, "test": 1}))
    assert ImageFolder(root=root, image_size=32, groups="none").read().groups.tolist() == list(range(9))


def groups_csv(root: Path, rows: list[str], header: str = "path,label,group") -> None:
    (root / "groups.csv").write_text("\n".join([header, *rows]), encoding="utf-8-sig")


ROWS = [
    "no/n0.png,no,7",
    "no/n1.png,no,7",
    "no\\n2.png,no,4",
    "yes/y0.png,yes,5",
    "./yes/y1.png,yes,5",
    "yes/y2.png,yes,6",
]


def test_groups_are_read_from_csv(root):
    groups_csv(root, ROWS)
    assert ImageFolder(root=root, image_size=16).read().groups.tolist() == [7, 7, 4, 5, 5, 6]
    assert ImageFolder(root=root, image_size=16, groups="hash").read().num_groups == 6
    only = ImageFolder(root=root, image_size=16, classes=("yes",)).read()
    assert only.groups.tolist() == [5, 5, 6]


def test_groups_may_be_names(root):
    groups_csv(
        root,
        [f"{kind}/{kind[0]}{place}.png,patient {place}" for kind in ("no", "yes") for place in range(3)],
        "path,group",
    )
    assert ImageFolder(root=root, image_size=16).read().groups.tolist() == [0, 1, 2, 0, 1, 2]


def test_groups_follow_skipped_files(root):
    (root / "no" / "n1.png").write_bytes(b"")
    groups_csv(root, ROWS)
    assert ImageFolder(root=root, image_size=16, on_error="skip").read().groups.tolist() == [7, 4, 5, 5, 6]


@pytest.mark.parametrize(
    ("rows", "header", "text"),
    [
        (ROWS[1:], "path,label,group", "lacks 1 images: no/n0.png"),
        ([*ROWS, "no/n9.png,no,1"], "path,label,group", "names 1 files that do not exist: no/n9.png"),
        ([*ROWS, "no/n0.png,no,8"], "path,label,group", "two groups .* to no/n0.png"),
        (["no/n0.png,yes,7", *ROWS[1:]], "path,label,group", "another class than the folder to no/n0.png"),
        (["no/n0.png,no,", *ROWS[1:]], "path,label,group", "no group.* to no/n0.png"),
        (ROWS, "file,label,patient", "path and group are wanted"),
    ],
)
def test_a_groups_csv_that_does_not_fit(root, rows, header, text):
    groups_csv(root, rows, header)
    with pytest.raises(DataError, match=text):
        ImageFolder(root=root, image_size=16).read()


def test_a_csv_that_is_asked_for_must_be_there(root):
    with pytest.raises(DataError, match=r"groups.csv does not exist"):
        ImageFolder(root=root, image_size=16, groups="csv").read()


def test_groups_can_be_capped_and_paths_follow(root):
    groups_csv(root, ROWS)
    folder = ImageFolder(root=root, image_size=16, max_per_group=1)
    data = folder.read()
    everything = ImageFolder(root=root, image_size=16).read()
    assert sorted(data.groups.tolist()) == [4, 5, 6, 7]
    assert torch.equal(data.pixels, everything.pixels[data.ids])
    assert [path.stem for path in folder.paths] == [["n0", "n1", "n2", "y0", "y1", "y2"][i] for i in data.ids.tolist()]
    assert folder.read().ids.tolist() == data.ids.tolist()
    chosen = {
        tuple(ImageFolder(root=root, image_size=16, max_per_group=1, seed=s).read().ids.tolist()) for s in range(8)
    }
    assert len(chosen) > 1


# The cache


@pytest.fixture
def decoded(monkeypatch) -> list[Path]:
    """The files that are decoded from now on."""
    from medfedpure.data.readers.images import Decoder

    seen: list[Path] = []
    read = Decoder.read

    def counted(self, path):
        seen.append(path)
        return read(self, path)

    monkeypatch.setattr(Decoder, "read", counted)
    return seen


def test_a_second_load_comes_from_the_cache(root, tmp_path, decoded):
    options = {"root": root, "image_size": 16, "cache": tmp_path / "kept"}
    first = ImageFolder(options).read()
    second = ImageFolder(options)
    again = second.read()
    assert len(decoded) == 6
    assert again.fingerprint() == first.fingerprint()
    assert len(second.paths) == 6
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.suffix == ".safetensors"
    assert kept.stat().st_mode & 0o077 == 0


def test_the_cache_notices_changed_files_and_configurations(root, tmp_path, decoded):
    options = {"root": root, "image_size": 16, "cache": tmp_path / "kept"}
    first = ImageFolder(options).read()
    put(root / "no" / "n0.png", noise(99, (41, 41)))
    assert ImageFolder(options).read().fingerprint() != first.fingerprint()
    assert ImageFolder({**options, "channels": 3}).read().pixels.shape[1] == 3
    assert ImageFolder({**options, "image_size": 20}).read().pixels.shape[2] == 20
    assert ImageFolder({**options, "groups": "none"}).read().num_groups == 6
    assert ImageFolder({**options, "classes": ("yes", "no")}).read().labels.tolist() == [1, 1, 1, 0, 0, 0]


def test_skipped_files_are_remembered_and_never_hidden(root, tmp_path, decoded):
    damage(root)
    options = {"root": root, "image_size": 16, "cache": tmp_path / "kept"}
    ImageFolder(options, on_error="skip").read()
    again = ImageFolder(options, on_error="skip")
    again.read()
    assert len(decoded) == 10
    assert len(again.skipped) == 4
    with pytest.raises(DataError, match="4 of 10"):
        ImageFolder(options).read()


@pytest.mark.parametrize("content", [b"", b"garbage", None], ids=["empty", "garbage", "truncated"])
def test_a_damaged_cache_is_built_again(root, tmp_path, decoded, content, caplog):
    options = {"root": root, "image_size": 16, "cache": tmp_path / "kept"}
    first = ImageFolder(options).read()
    (kept,) = (tmp_path / "kept").iterdir()
    kept.write_bytes(kept.read_bytes()[:-100] if content is None else content)
    with caplog.at_level(logging.WARNING):
        assert ImageFolder(options).read().fingerprint() == first.fingerprint()
    assert "built again" in caplog.text
    ImageFolder(options).read()
    assert len(decoded) == 12


def test_a_cache_that_cannot_be_written_does_not_stop_a_load(root, tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert len(ImageFolder(root=root, image_size=16, cache=tmp_path / "file").read()) == 6
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize("value", [True, "true"])
def test_the_default_cache_is_the_users(root, tmp_path, monkeypatch, value):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    ImageFolder(root=root, image_size=16, cache=value).read()
    assert len(list((tmp_path / "xdg" / "medfedpure").rglob("*.safetensors"))) == 1


def test_without_a_cache_nothing_is_written(root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    before = sorted(tmp_path.rglob("*"))
    ImageFolder(root=root, image_size=16).read()
    assert sorted(tmp_path.rglob("*")) == before


def test_the_configuration_survives_json(root):
    config = ImageFolder(root=root, image_size=16, classes=("no", "yes"), cache=root.parent / "kept").config
    assert type(config).model_validate_json(config.model_dump_json()) == config
