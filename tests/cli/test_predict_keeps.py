"""`medfedpure predict --save-purified --report`: what is kept beside the rows, and never taken for scans."""

from __future__ import annotations

import pytest
from PIL import Image
from typer.testing import CliRunner

import medfedpure
from medfedpure.cli.app import app
from medfedpure.core.errors import ArtifactError, ConfigError
from medfedpure.testing import tiny_classifier, tiny_dataset
from medfedpure.verdicts.formats import kept_as
from medfedpure.verdicts.predict import columns_for

DATA = tiny_dataset(60, size=16)


def chain(policy="purify_all"):
    made = medfedpure.DefendedClassifier(
        tiny_classifier(16, 1),
        detector=medfedpure.create("detector", "feature_squeezing"),
        purifier=medfedpure.create("purifier", "smoothing"),
        policy=policy,
    )
    return made.calibrate(DATA, 0.3, seed=1)


@pytest.fixture
def inbox(tmp_path, monkeypatch):
    """A folder of two scans, from which everything is called, and whose outputs lie within it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "inbox"
    folder.mkdir()
    for place in range(2):
        Image.fromarray(DATA.pixels[place, 0].numpy()).save(folder / f"{place}.png")
    chain().save(tmp_path / "guarded")
    return folder


def run(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_purified_scans_and_a_page_of_all_rows_are_kept_and_not_read(inbox, tmp_path, format):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"v.{format}"
    words = ("predict", tmp_path / "guarded", inbox, "--out", out, "--quiet", "--target-fpr", 0.5)
    keep = ("--save-purified", inbox / "purified", "--report", inbox / "report")
    for count in (2, 3):
        assert f"report: {inbox / 'report' / 'report.html'}" in run(*words, *keep).output.replace("\n", "")
        assert len(list((inbox / "purified").glob("*.png"))) == count
        page = (inbox / "report" / "report.html").read_text()
        assert f"of {count} images in {count} files flagged" in page
        assert "at most 50.0%" in page
        assert page.count("<img") == 2 * count
        Image.fromarray(DATA.pixels[count, 0].numpy()).save(inbox / f"{count}.png")
    speaks = next(iter(kept_as(format, out, columns_for(chain()), "").rows()))["defence"]
    assert f"Verdicts of the defence <b>{speaks}</b>" in page


def test_what_cannot_be_kept_is_said_before_anything_is_read(inbox, tmp_path):
    chain("abstain").save(tmp_path / "refusing")
    out = tmp_path / "v.csv"
    with pytest.raises(ConfigError, match="purifies no file"):
        run("predict", tmp_path / "refusing", inbox, "--out", out, "--save-purified", tmp_path / "p")
    (tmp_path / "file").write_text("mine")
    for option in ("--save-purified", "--report"):
        with pytest.raises(ArtifactError, match="a folder is wanted"):
            run("predict", tmp_path / "guarded", inbox, "--out", out, option, tmp_path / "file")
    assert not out.exists()
    run("predict", tmp_path / "guarded", inbox, "--out", out, "--save-purified", tmp_path / "p")
    with pytest.raises(ArtifactError, match="of another defence"):
        run("predict", tmp_path / "guarded", inbox, "--out", tmp_path / "w.csv", "--window", "full",
            "--save-purified", tmp_path / "p")  # fmt: skip
    assert not (tmp_path / "w.csv").exists()
