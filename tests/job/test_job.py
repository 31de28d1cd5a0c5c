"""The main job, very small: it runs, repeats, saves what it says, and swaps parts by name."""

import csv
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import medfedpure
from medfedpure.cli.app import app
from medfedpure.core.errors import CalibrationError, ConfigError, DataError, FederationError, UnknownPluginError
from medfedpure.job.config import RunConfig
from medfedpure.job.presets import folder_demo, phantom_demo
from medfedpure.job.run import run_job
from medfedpure.reporting.job.picture import save_gallery
from medfedpure.reporting.job.table import ROWS, cells, markdown, strategy_cells, strategy_conditions

SMALL = {
    "data": {
        "plugin": "phantom",
        "config": {"images": 300, "image_size": 24},
        "clients": 2,
        "train": 0.4,
        "calibrate": 0.3,
    },
    "classifier": {
        "plugin": "small_cnn",
        "config": {"widths": [8, 8]},
        "strategy": {"plugin": "fedper"},
        "rounds": 2,
        "training": {"steps": 6, "batch_size": 16},
    },
    "purifier": {
        "plugin": "ddpm",
        "config": {
            "model": {"widths": [8, 8], "unshuffle": 4},
            "training": {"steps": 4, "batch_size": 8},
            "sampling": {"num_inference_steps": 2},
        },
    },
    "detector": {"plugin": "denoising_disagreement", "config": {"steps": 1}},
    "attack": {"plugin": "pgd", "config": {"steps": 2}},
    "evaluation": {"bpda": True, "compare": ["local"]},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished job and its folder."""
    out = tmp_path_factory.mktemp("job")
    said = []
    return run_job(RunConfig.parse(SMALL), out, say=said.append), out, said


def test_results_hold_every_row_for_every_client(finished):
    job, out, _ = finished
    stored = json.loads((out / "results.json").read_text())
    assert [client["client"] for client in stored["clients"]] == ["client_0", "client_1"]
    assert {key for _, key in ROWS} <= stored["mean"].keys()
    assert len(cells(job.result)) == len(ROWS) + 1


def test_other_strategies_stand_beside_the_jobs_own(finished):
    job, out, said = finished
    own, local = job.result.strategies
    assert (own.strategy, local.strategy) == ("fedper", "local")
    assert own.clients == job.result.clients
    assert own.mean == job.result.mean
    for found in (own, local):
        clean = [client.bare.clean_balanced_accuracy for client in found.clients]
        assert found.worst["bare.clean_balanced_accuracy"] == min(clean)
        assert found.mean["bare.clean_balanced_accuracy"] == pytest.approx(sum(clean) / 2)
    assert any(line.startswith("compare: the same by local") for line in said)
    sent = [record["bytes_up"] for record in job.result.federated["classifier by local"]]
    assert max(sent) < min(record["bytes_up"] for record in job.result.federated["classifier"])
    header, *rows = strategy_cells(job.result)
    assert header[2:] == ["client_0", "client_1", "mean", "worst client"]
    assert [row[1] for row in rows] == ["fedper", "local"] * 4
    assert "fedper" in strategy_conditions(job.result)[0]


def test_comparing_classifiers_leaves_the_jobs_own_figures_alone(finished, tmp_path):
    alone = {**SMALL, "evaluation": {"bpda": True}}
    job = run_job(RunConfig.parse(alone), tmp_path, say=lambda _: None)
    assert len(job.result.strategies) == 1
    timed = {key for key in job.result.mean if "ms_per_image" in key}
    for key, value in job.result.mean.items():
        assert key in timed or value == finished[0].result.mean[key], key


@pytest.mark.parametrize(("compare", "error"), [(["fedper"], "each once"), (["local", "local"], "each once")])
def test_a_comparison_with_itself_is_refused_before_training(compare, error, tmp_path):
    with pytest.raises(ConfigError, match=error):
        run_job(RunConfig.parse({**SMALL, "evaluation": {"compare": compare}}), tmp_path, say=lambda _: None)
    with pytest.raises(UnknownPluginError, match="Did you mean 'fedavg'"):
        run_job(RunConfig.parse({**SMALL, "evaluation": {"compare": ["fedvag"]}}), tmp_path, say=lambda _: None)
    assert not list(tmp_path.iterdir())


def test_every_robust_number_stands_beside_its_threat(finished):
    text = markdown(finished[0].result)
    for needed in ("norm linf", "eps 0.015", "steps 2", "attacker ignores the defence", "EoT", "bpda"):
        assert needed in text


def test_phases_say_their_step_budget(finished):
    assert any("6 steps of 16 images" in line for line in finished[2])
    assert not any("second" in line for line in finished[2]), "budgets are steps, never seconds"


def test_parts_are_disjoint_and_named_by_hash(finished):
    job, _, _ = finished
    hashes = [value for own in job.result.splits.values() for value in own.values()]
    assert len(hashes) == len(set(hashes)) == 10


def test_saved_config_repeats_the_numbers(finished, tmp_path):
    job, out, _ = finished
    again = run_job(RunConfig.from_toml(out / "config.toml"), tmp_path / "again", say=lambda _: None)
    timed = {key for key in job.result.mean if "ms_per_image" in key}
    first = {key: value for key, value in job.result.mean.items() if key not in timed}
    assert first == {key: value for key, value in again.result.mean.items() if key not in timed}


def test_the_output_of_a_run_reads_new_scans(finished, tmp_path):
    """It says what images it is for, without which no file could be shown to it."""
    job, out, _ = finished
    Image.fromarray(job.parts["client_1"]["test"].pixels[0, 0].numpy()).save(tmp_path / "scan.png")
    words = ["predict", out, tmp_path / "scan.png", "--client", "client_1", "--out", tmp_path / "v.csv", "--quiet"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    (row,) = csv.DictReader((tmp_path / "v.csv").read_text().splitlines())
    assert row["class"] in job.parts["client_1"]["test"].class_names
    assert job.chains["client_1"].image_facts.class_names == job.parts["client_1"]["test"].class_names


def test_saved_defence_predicts_the_same_in_a_fresh_process(finished, tmp_path):
    job, out, _ = finished
    test = job.parts["client_1"]["test"]
    code = (
        "import sys, torch, medfedpure\n"
        "from safetensors.torch import load_file, save_file\n"
        "torch.set_num_threads(int(sys.argv[4]))\n"
        "chain = medfedpure.DefendedClassifier.load(sys.argv[1])\n"
        "p = chain.predict(load_file(sys.argv[2])['images'], seed=3)\n"
        "save_file({'logits': p.logits, 'scores': p.scores, 'images': p.images}, sys.argv[3])\n"
    )
    from safetensors.torch import load_file, save_file

    save_file({"images": test.images}, tmp_path / "in.safetensors")
    arguments = [out / "defences" / "client_1", tmp_path / "in.safetensors", tmp_path / "out.safetensors"]
    command = [sys.executable, "-c", code, *map(str, arguments), str(torch.get_num_threads())]
    subprocess.run(command, check=True, timeout=120)
    found = load_file(tmp_path / "out.safetensors")
    here = job.chains["client_1"].predict(test.images, seed=3)
    assert torch.equal(found["logits"], here.logits)
    assert torch.equal(found["scores"], here.scores)
    assert torch.equal(found["images"], here.images)


def test_gallery_is_a_picture(finished):
    job, out, _ = finished
    save_gallery(job, out / "gallery.png", rows=4)
    assert (out / "gallery.png").read_bytes().startswith(b"\x89PNG")


def test_parts_swap_by_name(tmp_path):
    changed = {
        **SMALL,
        "detector": {
            "plugin": "mae",
            "config": {
                "model": {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_depth": 1},
                "training": {"steps": 2, "batch_size": 4},
                "score": {"kind": "reconstruction", "masks": 2},
            },
        },
        "purifier": {"plugin": "median"},
        "evaluation": {"bpda": False},
    }
    job = run_job(RunConfig.parse(changed), tmp_path, say=lambda _: None)
    assert job.chains["client_0"].detector.name == "mae"
    assert job.result.bpda is None


def test_presets_survive_toml(tmp_path):
    for config in (phantom_demo(3), folder_demo(tmp_path)):
        path = tmp_path / "config.toml"
        path.write_text(config.to_toml())
        assert RunConfig.from_toml(path) == config


def test_bad_configurations_are_named(tmp_path):
    with pytest.raises(ConfigError, match="unknown key"):
        RunConfig.parse({**SMALL, "sede": 1})
    with pytest.raises(ConfigError, match="cannot be read"):
        RunConfig.from_toml(tmp_path / "missing.toml")
    (tmp_path / "broken.toml").write_text("seed = [")
    with pytest.raises(ConfigError, match="not a TOML file"):
        RunConfig.from_toml(tmp_path / "broken.toml")


def test_too_few_groups_are_an_error(tmp_path):
    few = {**SMALL, "data": {**SMALL["data"], "config": {"images": 60, "image_size": 24}}}
    with pytest.raises(CalibrationError, match="at least 19"):
        run_job(RunConfig.parse(few), tmp_path, say=lambda _: None)
    none = {**SMALL, "data": {**SMALL["data"], "config": {"images": 6, "image_size": 24}}}
    with pytest.raises(DataError):
        run_job(RunConfig.parse(none), tmp_path, say=lambda _: None)


def test_command_line_runs_a_file_and_prints_json(tmp_path):
    (tmp_path / "job.toml").write_text(RunConfig.parse(SMALL).to_toml())
    result = CliRunner().invoke(
        app, ["run", str(tmp_path / "job.toml"), "--out", str(tmp_path / "out"), "--quiet", "--json"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["clients"][0]["client"] == "client_0"
    assert (tmp_path / "out" / "gallery.png").is_file()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for needed in (
        "classifier by fedper",
        "classifier by local",
        "purifier by fedavg",
        "data:image/png",
        "worst client",
    ):
        assert needed in page


def test_command_line_lists_and_describes_plugins():
    runner = CliRunner()
    listed = json.loads(runner.invoke(app, ["plugins", "--json"]).stdout)
    assert {record["name"] for record in listed["plugins"]} >= {"mae", "ddpm", "fedper", "pgd", "phantom"}
    table = runner.invoke(app, ["plugins", "detector"], env={"COLUMNS": "40"}).stdout
    assert "prediction shift under fewer bits and median filters (Xu 2018)" in table, (
        f"a summary is cut short:\n{table}"
    )
    assert "required" not in runner.invoke(app, ["plugins", "classifier", "timm"]).stdout, "timm has defaults for all"
    shown = runner.invoke(app, ["plugins", "purifier", "ddpm"])
    assert "sampling.num_inference_steps" in shown.stdout
    assert json.loads(runner.invoke(app, ["info", "--json"]).stdout)["medfedpure"] == medfedpure.__version__


def test_errors_on_the_command_line_are_one_line(tmp_path):
    command = [sys.executable, "-m", "medfedpure", "demo", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "nowhere" in done.stderr


@pytest.mark.parametrize(
    ("changes", "kind", "sentence"),
    [
        ({"attack": {"plugin": "pgdd"}}, UnknownPluginError, "Did you mean 'pgd'"),
        ({"attack": {"plugin": "pgd", "config": {"stepz": 1}}}, ConfigError, "stepz"),
        ({"attack": {"plugin": "orthogonal_pgd"}}, ConfigError, "must see score and threshold of a detector"),
        ({"evaluation": {"anchor": {"plugin": "medan"}}}, UnknownPluginError, "Did you mean 'median'"),
        ({"evaluation": {"anchor": {"plugin": "ddpm"}}}, ConfigError, "'ddpm' has to be"),
        ({"purifier": {**SMALL["purifier"], "rounds": 5}}, FederationError, "raise steps to at least 5"),
        ({"defence": {"target_fpr": 0.001}}, CalibrationError, "at least 999"),
        ({"defence": {"target_fpr": 0.001, "scope": "federation"}}, CalibrationError, "at least 999"),
    ],
)
def test_what_would_fail_after_the_training_is_refused_before_it(tmp_path, changes, kind, sentence):
    said = []
    with pytest.raises(kind, match=sentence):
        run_job(RunConfig.parse({**SMALL, **changes}), tmp_path / "out", say=said.append)
    assert [text.partition(":")[0] for text in said] in ([], ["data"])
