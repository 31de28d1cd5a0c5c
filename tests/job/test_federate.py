"""`medfedpure federate`: one part, one file; seen while it runs, resumed where it stood."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from scans import write_dicom_folder
from typer.testing import CliRunner

from medfedpure.cli.app import app
from medfedpure.cli.federate import clients_table, rounds_table
from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.component import Component
from medfedpure.core.errors import ConfigError, DataError
from medfedpure.federation import RoundRecord
from medfedpure.job.federate import mean_figures, run_federate, worst_client
from medfedpure.job.federate_config import FederateConfig, ImagesChoice
from medfedpure.job.federated_component import FederatedComponent

DATA = {
    "plugin": "phantom",
    "config": {"images": 60, "image_size": 16},
    "clients": 2,
    "train": 0.5,
    "validation": 0.4,
    "tune": 0.03,
    "calibrate": 0.03,
    "test": 0.04,
}
CLASSIFIER = {
    "plugin": "small_cnn",
    "config": {"widths": [4, 4]},
    "strategy": {"plugin": "fedrep"},
    "rounds": 2,
    "training": {"steps": 4, "batch_size": 4},
}


def configuration(**parts: object) -> FederateConfig:
    """Two clients and the given part."""
    return FederateConfig.parse({"seed": 3, "data": DATA, **parts})


def test_a_file_trains_a_classifier_and_says_how_each_client_fares(tmp_path: Path) -> None:
    file, out = tmp_path / "federate.toml", tmp_path / "out"
    file.write_text(configuration(classifier=CLASSIFIER).to_toml())
    done = CliRunner().invoke(app, ["federate", str(file), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    results = json.loads((out / "results.json").read_text())
    assert json.loads(done.stdout) == results
    assert (results["part"], results["strategy"], len(results["history"])) == ("classifier", "fedrep", 2)
    for round in results["history"]:
        assert set(round["clients"]) == {"client_0", "client_1"}
        for figures in (*round["clients"].values(), round["mean"]):
            assert {"loss", "accuracy", "balanced_accuracy", "auroc", "train_loss"} <= set(figures)
        assert round["worst"]["value"] == min(own["balanced_accuracy"] for own in round["clients"].values())
        assert round["bytes_up"] > 0
        assert round["bytes_down"] > 0
    assert "classifier small_cnn by fedrep" in (out / "report.html").read_text(encoding="utf-8")
    for client in ("client_0", "client_1"):
        assert isinstance(ClassifierModel.load(out / "parts" / client), ClassifierModel)
    again = CliRunner().invoke(app, ["federate", str(file), "--out", str(out), "--quiet"])
    assert again.exit_code == 0
    assert json.loads((out / "results.json").read_text()) == results, "a finished run is not trained again"
    other = configuration(classifier={**CLASSIFIER, "rounds": 3})
    with pytest.raises(ConfigError, match="is another configuration"):
        run_federate(other, out)


def test_a_partition_that_the_images_do_not_allow_is_told_and_mended_in_the_same_folder(tmp_path: Path) -> None:
    config = configuration(classifier={**CLASSIFIER, "rounds": 1})
    scanners = {**config.model_dump()["data"], "partition": "site", "config": {**DATA["config"], "scanners": 1}}
    with pytest.raises(DataError, match=r'data.partition is "site", and .* names 1 sites, not 2.*"equal" deals'):
        run_federate(configuration(classifier={**CLASSIFIER, "rounds": 1}, data=scanners), tmp_path)
    run_federate(config, tmp_path)
    assert (tmp_path / "results.json").is_file()


def test_a_folder_of_one_class_is_told_and_not_a_validation_error(tmp_path: Path) -> None:
    archive = write_dicom_folder(tmp_path / "archive", patients=12)
    own = {**DATA, "plugin": "dicom_folder", "config": {"root": str(archive), "image_size": 16, "classes": ["normal"]}}
    with pytest.raises(DataError, match="archive holds one class, normal, and a classifier tells two or more apart"):
        run_federate(configuration(classifier=CLASSIFIER, data=own), tmp_path / "out")


def test_a_run_that_was_killed_is_resumed_to_the_same_parts(tmp_path: Path) -> None:
    config = configuration(classifier=CLASSIFIER)
    run_federate(config, tmp_path / "whole")

    def kill(part: str, history: tuple[RoundRecord, ...]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_federate(config, tmp_path / "cut", watch=kill)
    assert not (tmp_path / "cut" / "parts").exists()
    run_federate(config, tmp_path / "cut")
    for client in ("client_0", "client_1"):
        files = [tmp_path / run / "parts" / client / "tensors.safetensors" for run in ("whole", "cut")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("kind", "choice"),
    [
        ("purifier", {"plugin": "ddpm", "config": {"model": {"widths": [8, 8], "unshuffle": 4}}}),
        ("detector", {"plugin": "mae", "config": {"score": {"kind": "reconstruction"}}}),
    ],
)
def test_other_parts_are_trained_and_saved_ready_to_use(kind: str, choice: dict[str, dict], tmp_path: Path) -> None:
    choice["config"]["training"] = {"steps": 2, "batch_size": 4}
    run_federate(configuration(**{kind: {**choice, "strategy": {"plugin": "fedavg"}, "rounds": 1}}), tmp_path)
    part = Component.load(tmp_path / "parts" / "client_0")
    assert part.fitted
    assert part.kind == kind


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({}, "exactly one of .* got none"),
        ({"classifier": CLASSIFIER, "detector": {"plugin": "mae"}}, "got classifier, detector"),
        ({"detector": {"plugin": "feature_squeezing"}}, "no network to train across clients"),
        (
            {"detector": {"plugin": "mae", "config": {"score": {"kind": "combined"}}}},
            "train it within `medfedpure run`",
        ),
    ],
)
def test_what_cannot_be_trained_like_this_is_refused_before_it_starts(parts: dict[str, object], text: str) -> None:
    images = ImagesChoice(size=16, class_names=("healthy", "lesion"))
    with pytest.raises(ConfigError, match=text):
        FederatedComponent(configuration(**parts), images)


def test_the_worst_client_is_the_one_with_the_poorest_figure() -> None:
    figures = {"a": {"loss": 0.2, "accuracy": 0.9}, "b": {"loss": float("nan"), "accuracy": 0.5}, "c": {"loss": 0.7}}
    assert worst_client(figures, "accuracy") == ("b", 0.5)
    assert worst_client(figures, "loss") == ("c", 0.7)
    assert worst_client(figures, "auroc") is None
    assert mean_figures(figures) == {"accuracy": pytest.approx(0.7), "loss": pytest.approx(0.45)}


def test_the_live_table_fits_80_columns_and_names_who_was_left_out() -> None:
    names = [f"hospital-number-{place}" for place in range(9)]
    clients = {name: {"balanced_accuracy": 0.5, "loss": 0.7, "auroc": 0.6} for name in names}
    history = (RoundRecord(1, 2.5, clients, {"x": "LookupError (local_update)"}, {"x": 2_000_000}, {"x": 3_000}),)
    history += (RoundRecord(2, 2.5, {"x": {"train_loss": 1.0}}, {}),)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rounds_table(history, 80))
    console.print(clients_table(history[0]))
    text = console.export_text()
    assert "balanced accuracy" in text
    assert "round 1 without x: LookupError (local_update)" in text
    assert "2.0 MB" in text
    assert "hospital-number-8" in text
    assert "…" not in text
