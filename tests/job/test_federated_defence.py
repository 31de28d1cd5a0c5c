"""`medfedpure federate` with [defence]: parts one after the other, then each one's own defence; refusals before it."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from medfedpure.cli.app import app
from medfedpure.core.errors import (
    CalibrationError,
    ConfigError,
    FederationError,
    MedFedPureError,
    MissingRequirementError,
    UnknownPluginError,
)
from medfedpure.core.registry import create
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.federation import RoundRecord
from medfedpure.job.federate import run_federate
from medfedpure.job.federate_config import FederateConfig, ImagesChoice
from medfedpure.job.federated.ahead import check_ahead
from medfedpure.job.federated.defence import counts
from medfedpure.job.federated_component import FederatedComponent
from medfedpure.job.subject import load_subject

IMAGES = ImagesChoice(size=16, class_names=("healthy", "lesion"))
BUDGET = {"steps": 4, "batch_size": 4}
CONTENT = {
    "seed": 3,
    "data": {
        "plugin": "phantom",
        "config": {"images": 120, "image_size": 16},
        "clients": 2,
        "train": 0.4,
        "validation": 0.1,
        "tune": 0.1,
        "calibrate": 0.2,
        "test": 0.2,
    },
    "classifier": {
        "plugin": "small_cnn",
        "config": {"widths": [4, 4]},
        "strategy": {"plugin": "fedrep"},
        "rounds": 2,
        "training": BUDGET,
    },
    "purifier": {
        "plugin": "ddpm",
        "config": {"model": {"widths": [8, 8], "unshuffle": 4}, "training": BUDGET},
        "rounds": 2,
    },
    "defence": {"target_fpr": 0.1},
}
MAE = {"plugin": "mae", "config": {"score": {"kind": "combined"}, "training": BUDGET}, "rounds": 1}
SQUEEZING = {"plugin": "feature_squeezing"}

pytestmark = pytest.mark.filterwarnings("ignore::medfedpure.WeakDefenceWarning")


def configuration(**changed: object) -> FederateConfig:
    """The content with tables replaced; None leaves one out."""
    return FederateConfig.parse({key: value for key, value in {**CONTENT, **changed}.items() if value is not None})


def test_one_command_goes_from_images_to_defences_that_predict_and_on_where_it_was_cut(tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "federate.toml"
    file.write_text(configuration().to_toml())

    def kill(part: str, history: tuple[RoundRecord, ...]) -> None:
        if part == "purifier":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_federate(configuration(), out, watch=kill)
    cut = json.loads((out / "results.json").read_text())
    assert [(phase["part"], len(phase["history"])) for phase in cut["phases"]] == [("classifier", 2), ("purifier", 1)]
    assert not (out / "defences").exists()

    done = CliRunner().invoke(app, ["federate", str(file), "--out", str(out)])
    assert done.exit_code == 0, done.output
    results = json.loads((out / "results.json").read_text())
    assert results["phases"][0] == cut["phases"][0], "the part that was through is not trained again"
    assert len(results["phases"][1]["history"]) == 2
    assert results["defences"]["done"].keys() == {"client_0", "client_1"}
    assert results["defences"]["failed"] == {}
    assert "classifier: after round 2" in done.output
    assert "purifier: after round 2" in done.output
    chains = [DefendedClassifier.load(out / "defences" / f"client_{place}") for place in range(2)]
    assert all((len(chain.calibration), chain.policy) == (12, "purify_flagged") for chain in chains)
    assert counts(chains[1].own_check) == results["defences"]["done"]["client_1"]
    scores = [chain.calibration.scores for chain in chains]
    assert not torch.equal(*scores), "each is calibrated on its own images"
    assert chains[0].image_facts.class_names == ("healthy", "lesion")

    pixels = create("dataset", "phantom", {"images": 3, "image_size": 16, "seed": 9}).read().pixels
    for place, one in enumerate(pixels):
        Image.fromarray(one[0].numpy()).save(tmp_path / f"scan-{place}.png")
    rows = tmp_path / "rows.csv"
    scans = [str(path) for path in sorted(tmp_path.glob("*.png"))]
    done = CliRunner().invoke(app, ["predict", str(out), *scans, "--client", "client_1", "--out", str(rows), "--quiet"])
    assert done.exit_code == 0, done.output
    assert len(rows.read_text().splitlines()) == 4
    with pytest.raises(ConfigError, match="is a federation, and no record says what its defences have not seen"):
        load_subject(out)


def test_a_detector_that_is_trained_across_clients_is_finished_beside_each_ones_classifier(tmp_path: Path) -> None:
    config = configuration(purifier=None, detector=MAE, defence={"recipe": "fast", "target_fpr": 0.1})
    assert config.kinds == ("classifier", "detector")
    found = run_federate(config, tmp_path)
    assert list(found) == ["classifier", "detector"]
    chain = DefendedClassifier.load(tmp_path / "defences" / "client_0")
    assert chain.detector.fitted
    assert (chain.detector.name, chain.purifier, chain.policy) == ("mae", None, "abstain")
    assert json.loads((tmp_path / "results.json").read_text())["defences"]["detector"] == "mae"


def test_the_recipe_robust_chooses_each_clients_policy_on_images_of_its_own(tmp_path: Path) -> None:
    config = configuration(defence={"recipe": "robust", "target_fpr": 0.2, "detector": SQUEEZING})
    small = config.with_settings(["data.clients=1", "data.config.images=100", "purifier.rounds=1"])
    run_federate(small, tmp_path)
    choice = DefendedClassifier.load(tmp_path / "defences" / "client_0").choice
    assert choice is not None
    assert (choice.images, choice.truth) == (10, "labels")


@pytest.mark.slow
def test_the_simulation_makes_the_same_defences(tmp_path: Path) -> None:
    for runtime in ("in_process", "simulation"):
        run_federate(
            configuration(defence={"target_fpr": 0.1, "detector": SQUEEZING}, runtime=runtime), tmp_path / runtime
        )
    for client in ("client_0", "client_1"):
        files = [
            tmp_path / runtime / "defences" / client / "medfedpure.json" for runtime in ("in_process", "simulation")
        ]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"purifier": None}, r"the recipe 'paper' needs a purifier.* add \[purifier\], such as plugin = \"ddpm\""),
        ({"classifier": None}, r"add \[classifier\]"),
        ({"defence": {"recipe": "fast"}}, "would be trained for nothing"),
        ({"detector": MAE, "defence": {"detector": SQUEEZING}}, "leave one of them out"),
        ({"defence": None}, r"exactly one of .* or \[defence\] beside them"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(changed: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        configuration(**changed)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        (['purifier.strategy.plugin="mixture"'], ConfigError, "leaves a client with a Mixture"),
        (["purifier.rounds=5"], FederationError, "raise steps to at least 5"),
        (['purifier.plugin="median"', "purifier.config={}"], ConfigError, "no network to train across clients"),
        (['defence.detector={plugin="nobody"}'], UnknownPluginError, "nobody"),
        (
            ["federation.privacy={clip=1.0, noise_multiplier=1.0}", 'classifier.strategy.plugin="local"'],
            FederationError,
            "the strategy 'local'",
        ),
    ],
)
def test_what_would_fail_after_a_training_is_said_before_it(
    settings: list[str], error: type[MedFedPureError], text: str
) -> None:
    with pytest.raises(error, match=text):
        check_ahead(configuration().with_settings(settings), IMAGES)


def test_a_detector_that_needs_the_purifier_which_a_recipe_leaves_out_is_refused_before_the_training() -> None:
    wanting = {"recipe": "fast", "detector": {"plugin": "denoising_disagreement"}}
    with pytest.raises(MissingRequirementError, match="denoiser"):
        check_ahead(configuration(purifier=None, defence=wanting), IMAGES)


def test_too_few_images_for_the_rate_are_said_before_the_training(tmp_path: Path) -> None:
    text = "client_0 has 12 independent images that set the threshold, and 49 are wanted: raise data.calibrate"
    with pytest.raises(CalibrationError, match=text):
        run_federate(configuration(defence={"target_fpr": 0.02}), tmp_path)
    assert not (tmp_path / "checkpoint").exists()


def test_what_a_classifier_says_of_its_training_is_heeded() -> None:
    config = configuration().with_settings(["classifier.label_smoothing=0.1", 'classifier.keep="best"'])
    parts = {kind: FederatedComponent(config, IMAGES, kind) for kind in config.kinds}
    assert parts["classifier"].task().recipe()["label_smoothing"] == 0.1
    assert (parts["classifier"].settings.keep, parts["purifier"].settings.keep) == ("best", "last")
