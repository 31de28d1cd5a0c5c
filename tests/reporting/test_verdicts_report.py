"""The page of verdicts: what all rows say, in constant memory, nothing from outside, nothing unescaped."""

import re
import sys
import tracemalloc
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

import medfedpure
from medfedpure.core.errors import ArtifactError, ConfigError, InputError, MissingExtraError
from medfedpure.defence.calibration import Calibration
from medfedpure.defence.own_check import OwnCheck
from medfedpure.reporting.verdicts.counts import OTHER_REASON, Counts, calibrated, edges_of
from medfedpure.reporting.verdicts.page import PAGE, VerdictsPage
from medfedpure.testing import tiny_classifier, tiny_dataset
from medfedpure.verdicts.formats import kept_as
from medfedpure.verdicts.predict import columns_for, predict_files
from medfedpure.verdicts.purified import Purified

EVIL = "<script>alert('x')</script>"
DATA = tiny_dataset(60, size=16)


def row(**changes):
    base = {
        "file": "a.png",
        "frame": 0,
        "frames": 1,
        "label": 0,
        "class": "normal",
        "probability_0": 0.75,
        "probability_1": 0.25,
        "score": 0.5,
        "p_value": 0.5,
        "flagged": False,
        "why": None,
        "strength": 0.0,
        "purified": False,
        "abstained": False,
        "error": None,
        "defence": "abc",
    }
    return base | changes


def failed(why, **changes):
    return row(error=why, frame=None, frames=None, label=None, score=None, flagged=None, purified=None, **changes)


@pytest.fixture(scope="module")
def chain():
    made = medfedpure.DefendedClassifier(
        tiny_classifier(16, 1),
        detector=medfedpure.create("detector", "feature_squeezing"),
        purifier=medfedpure.create("purifier", "smoothing"),
    )
    return made.calibrate(DATA, 0.3, seed=1)


def page_of(chain, tmp_path, rows, **options):
    made = VerdictsPage(tmp_path / "report", chain, **options)
    return made.write(rows).read_text()


def words(page):
    """What a reader sees, in one line."""
    found = []

    class Reader(HTMLParser):
        def handle_data(self, data):
            found.append(data)

    Reader().feed(page.partition("</head>")[2])
    return " ".join(" ".join(found).split())


def test_counts_are_of_all_rows():
    rows = [
        row(flagged=True, purified=True, why="noise"),
        row(file="b", frames=3, frame=0, label=1, **{"class": "lesion"}),
        row(file="b", frames=3, frame=1, label=1, abstained=True, flagged=True, why="noise", **{"class": "lesion"}),
        row(file="b", frames=3, frame=2),
        failed("it holds 12 bytes"),
        failed("it holds 15 bytes", file="d"),
        failed("empty file"),
    ]
    found = Counts().of(iter(rows))
    assert (found.files, found.failed, found.images) == (2, 3, 4)
    assert (found.flagged, found.purified, found.abstained) == (2, 1, 1)
    assert {name: (one.images, one.flagged, one.abstained) for name, one in found.classes.items()} == {
        "normal": (2, 1, 0),
        "lesion": (2, 1, 1),
    }
    assert {text: (one.files, one.example) for text, one in found.reasons.items()} == {
        "it holds N bytes": (2, "a.png"),
        "empty file": (1, "a.png"),
    }
    assert found.parts == {"noise": 2}
    assert list(found.defences) == ["abc"]


def test_the_most_suspicious_are_the_highest_scores_and_of_equal_ones_the_first():
    scores = [0.1, 0.9, 0.9, 0.3, float("nan"), 0.8, 0.9]
    rows = [row(file=str(place), score=score) for place, score in enumerate(scores)]
    assert [one["file"] for one in Counts(shown=4).of(rows).most_suspicious()] == ["4", "1", "2", "6"]
    assert Counts(shown=0).of(rows).most_suspicious() == []
    with pytest.raises(InputError, match="0 to 20 images; 21 were asked for"):
        Counts(shown=21)


def test_bins_of_the_calibrations_own_scores_hold_its_own_shares():
    for scores in (torch.linspace(0, 1, 97), torch.tensor([0.0] * 30 + [1.0] * 20), torch.linspace(0, 1, 10)):
        calibration = Calibration.fit(scores, 0.2)
        edges = edges_of(calibration)
        found = Counts(edges).of(row(score=score) for score in calibration.scores.tolist())
        assert [count / len(scores) for count in found.bins] == calibrated(calibration, edges)
        assert sum(calibrated(calibration, edges)) == pytest.approx(1)
    assert calibrated(Calibration.fit(torch.linspace(0, 1, 100), 0.2), edges_of(Calibration.fit(
        torch.linspace(0, 1, 100), 0.2))) == pytest.approx([0.1] * 10)  # fmt: skip
    assert edges_of(None) == edges_of(Calibration.fit(torch.linspace(0, 1, 9), 0.2)) == []


def test_memory_does_not_grow_with_the_rows():
    def peak(count):
        rows = (failed(f"odd {chr(97 + n % 26)}{chr(97 + n // 26 % 26)}") if n % 2 else row(file=f"{n}", score=n)
                for n in range(count))  # fmt: skip
        tracemalloc.start()
        found = Counts([0.5]).of(rows)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest, found

    few, _ = peak(2000)
    many, found = peak(20000)
    assert many < 1.5 * few + 20000
    assert len(found.reasons) == 101
    assert found.reasons[OTHER_REASON].files > 0
    assert sum(one.files for one in found.reasons.values()) == found.failed == 10000


def test_flags_stand_beside_the_calibrated_rate(chain, tmp_path):
    for flagged, verdict in (
        (0, "Less than that: of"),
        (30, "do not contradict"),
        (95, "More than that: of"),
    ):
        rows = [row(flagged=place < flagged) for place in range(100)]
        text = words(page_of(chain, tmp_path, rows))
        assert f"{flagged / 100:.1%} flagged, 95 % interval" in text
        assert "at most 30.0% are flagged on average" in text
        assert verdict in text
        assert "too narrow" not in text
    assert "at most 80.0% are flagged" in words(page_of(chain, tmp_path, rows, target_fpr=0.8))
    frames = [row(frame=place, frames=3) for place in range(3)]
    assert "not independent, so these intervals are too narrow" in words(page_of(chain, tmp_path, frames))


def test_drift_is_hinted_at_where_scores_lie_elsewhere(chain, tmp_path):
    own = [row(score=score) for score in chain.calibration.scores.tolist()]
    assert "Scores lie as those of the calibration do." in words(page_of(chain, tmp_path, own))
    page = page_of(chain, tmp_path, [row(score=1e9)] * 50)
    assert "0% of these images score at most" in words(page)
    assert "calibration" in re.search(r'<figure class="chart">.*?</figure>', page, re.S)[0]


def test_a_robust_figure_stands_with_its_words_or_not_at_all(chain, tmp_path):
    text = words(page_of(chain, tmp_path, [row()]))
    assert "No check under an attack is saved" in text
    assert f"calibrated on {len(chain.calibration)} benign images" in text
    checked = OwnCheck(40, 20, 15, 12, 2, 38, "purify_flagged", "PGD, linf, eps 0.03, 10 steps, static, EoT 1")
    chain.own_check = checked
    try:
        told = words(page_of(chain, tmp_path, [row()]))
    finally:
        chain.own_check = None
    assert "15 of 20" in told
    assert "PGD, linf, eps 0.03, 10 steps, static, EoT 1; not an evaluation" in told
    for warning in ("no medical device", "No acquittal", "No proof of an attack", "no accuracy"):
        assert warning in told


def test_nothing_is_loaded_from_outside_and_nothing_is_unescaped(chain, tmp_path):
    rows = [row(file=EVIL, why=EVIL, flagged=True, defence=EVIL, **{"class": EVIL}), failed(EVIL, file=EVIL)]
    page = page_of(chain, tmp_path, rows)
    assert "<script" not in page
    assert EVIL in words(page)
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_the_page_of_a_continued_run_has_all_rows_and_pictures_of_the_most_suspicious(chain, tmp_path):
    inbox, out = tmp_path / "inbox", tmp_path / "v.csv"
    inbox.mkdir()
    (inbox / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for place, pixels in enumerate(DATA.pixels[:9]):
        Image.fromarray(pixels[0].numpy()).save(inbox / f"{place}.png")
        if place in (3, 8):
            saving = Purified(tmp_path / "purified", chain)
            predict_files(chain, [inbox], out, target_fpr=0.8, also=[saving])
    rows = list(kept_as("csv", out, columns_for(chain), "").rows())
    page = page_of(chain, tmp_path, rows, purified=tmp_path / "purified", most=4)
    text = words(page)
    purified = sum(bool(one["purified"]) for one in sorted(rows, key=lambda one: -(one["score"] or 0))[:4])
    assert "9 images in 9 files" in text
    assert "1 file could not be read" in text
    assert page.count("data:image/png;base64,") == 4 + purified > 4
    (inbox / "torn.png").unlink()
    for path in inbox.iterdir():
        path.unlink()
    gone = page_of(chain, tmp_path, rows, purified=tmp_path / "purified")
    assert "data:image" not in gone
    assert gone.count("not shown in full:") == 9
    assert (tmp_path / "report").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "report" / PAGE).stat().st_mode & 0o777 == 0o600


def test_a_defence_without_a_detector_has_a_page_too(tmp_path):
    bare = medfedpure.DefendedClassifier(
        tiny_classifier(16, 1), policy="none", image_facts=medfedpure.defence.images.ImageFacts((1, 16, 16), (), 255)
    )
    plain = {key: value for key, value in row().items() if key not in ("class", "score", "p_value", "why")}
    text = words(page_of(bare, tmp_path, [plain]))
    assert "no calibration and flags nothing" in text
    assert "most suspicious" not in text
    only = words(page_of(bare, tmp_path, [failed("empty file")]))
    assert "No image was judged; 1 file could not be read." in only


def test_what_is_missing_is_said_before_anything_is_read(chain, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="there is no row to report"):
        page_of(chain, tmp_path, [])
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="a folder is wanted"):
        VerdictsPage(tmp_path / "file", chain)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"medfedpure\[report\]"):
        VerdictsPage(tmp_path / "new", chain)
    assert not (tmp_path / "new").exists()
