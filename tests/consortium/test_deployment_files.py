"""What `federation init` writes, and the deployed apps without a network."""

from __future__ import annotations

import csv
import json
import struct
from collections.abc import Iterable
from pathlib import Path

import pytest
from deployment_setting import change_federation, tiny_federation
from flwr.app import Message
from scans import write_dicom_folder
from typer.testing import CliRunner
from wire import Wire

from medfedpure.cli.app import app
from medfedpure.consortium.deployment import client_app, defence_side, read_site, rehearse, server_app
from medfedpure.consortium.init import FEDERATION_FILE
from medfedpure.core.errors import CalibrationError, ConfigError, DataError, FederationError
from medfedpure.core.storage import read_document_only
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.federation import InProcessGrid
from medfedpure.federation.client import working
from medfedpure.federation.grid import Tap, acting_as_server
from medfedpure.job.federate_config import DeploymentConfig, SiteConfig
from medfedpure.job.federated_component import FederatedComponent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny federation."""
    return tiny_federation(tmp_path / "f")


class SitesGrid(InProcessGrid):
    """Nodes that know where their site.toml is, and a new process, so to say, for every message."""

    sites: tuple[Path, ...] = ()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Configure the nodes, then work."""
        for context, site in zip(self._contexts.values(), self.sites, strict=False):
            context.node_config = {"site": str(site)}
        return super().push_messages(messages)


def _run(folder: Path, kind: type[SitesGrid] = SitesGrid, tap: Tap | None = None) -> SitesGrid:
    SitesGrid.sites = tuple(sorted(folder.glob("sites/*/site.toml")))
    grid = kind(client_app(folder / FEDERATION_FILE), 3, tap=tap)
    with working(1, 0), acting_as_server(grid.run.run_id):
        server_app(folder / FEDERATION_FILE)(grid, grid.server_context())
    return grid


def test_deployed_apps_leave_at_each_site_the_model_of_the_rehearsal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDFEDPURE_SERVER_OUT", str(folder / "server" / "out"))
    _run(folder)
    done = CliRunner().invoke(app, ["federation", "rehearse", str(folder), "--out", str(tmp_path / "rehearsal")])
    assert done.exit_code == 0, done.output
    for site in ("site-0", "site-1", "site-2"):
        deployed = folder / "sites" / site / "out" / "classifier" / "tensors.safetensors"
        rehearsed = tmp_path / "rehearsal" / "parts" / site / "tensors.safetensors"
        assert deployed.read_bytes() == rehearsed.read_bytes()
        assert len(list((folder / "sites" / site / "private").glob("classifier/run-*/*/*.json"))) == 2
    assert not list((folder / "server").rglob("*head*"))


class Cut(SitesGrid):
    """A network that is lost before the given message of the server."""

    left = 10**9

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Work, or be cut off."""
        type(self).left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().push_messages(messages)


def defended(folder: Path) -> None:
    """Classifier, purifier and a defence with a detector that is quickly fitted."""
    change_federation(folder, 1, defended=True)
    file = folder / FEDERATION_FILE
    content = DeploymentConfig.from_toml(file).model_dump()
    content["defence"]["detector"] = {"plugin": "feature_squeezing"}
    file.write_text(DeploymentConfig.parse(content).to_toml())


def parts_of(results: dict) -> dict[str, list[dict]]:
    """The rounds by part."""
    return {phase["part"]: phase["history"] for phase in results["phases"]}


@pytest.mark.filterwarnings("ignore::medfedpure.WeakDefenceWarning")
def test_one_run_trains_both_parts_and_leaves_each_site_its_defence_though_it_was_cut_in_the_second(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defended(folder)
    teller = folder / "sites" / "site-1" / "site.toml"
    teller.write_text(teller.read_text().replace("tell_check = false", "tell_check = true"))
    monkeypatch.setenv("MEDFEDPURE_SERVER_OUT", str(folder / "server" / "out"))
    # 3 hellos, 3 orders of the one round, 3 evaluations: the classifier; 3 hellos, a round, one order: the purifier
    monkeypatch.setattr(Cut, "left", 3 + 3 + 3 + 3 + 3 + 1)
    with pytest.raises(KeyboardInterrupt):
        _run(folder, Cut)
    cut = parts_of(json.loads((folder / "server" / "out" / "results.json").read_text()))
    assert {part: len(history) for part, history in cut.items()} == {"classifier": 1, "purifier": 1}
    classifiers = [path.read_bytes() for path in sorted(folder.glob("sites/*/out/classifier/tensors.safetensors"))]
    assert len(classifiers) == 3

    wire = Wire()
    _run(folder, SitesGrid, wire)
    results = json.loads((folder / "server" / "out" / "results.json").read_text())
    assert {part: len(history) for part, history in parts_of(results).items()} == {"classifier": 1, "purifier": 2}
    assert parts_of(results)["classifier"] == cut["classifier"], "what was through is not trained again"
    assert results["defences"]["done"].keys() == {"site-0", "site-1", "site-2"}
    told = {client: sorted(counts) for client, counts in results["defences"]["done"].items() if counts}
    assert told == {"site-1": ["benign_flagged", "benign_kept", "flagged", "fooled", "images", "restored"]}

    done = CliRunner().invoke(app, ["federation", "rehearse", str(folder), "--out", str(tmp_path / "rehearsal")])
    assert done.exit_code == 0, done.output
    rehearsed = json.loads((tmp_path / "rehearsal" / "results.json").read_text())
    assert rehearsed["defences"] == results["defences"]
    for site in ("site-0", "site-1", "site-2"):
        there, here = folder / "sites" / site / "out" / "defence", tmp_path / "rehearsal" / "defences" / site
        assert read_document_only(there) == read_document_only(here), "defence and digests are those of the rehearsal"
        chain = DefendedClassifier.load(there)
        assert chain.calibration is not None
        for score in chain.calibration.scores.tolist():
            assert struct.pack("<d", score) not in wire.everything, "a calibration score left the site"
            assert struct.pack("<f", score) not in wire.everything, "a calibration score left the site"
    parts = {path.name for path in (tmp_path / "rehearsal" / "parts" / "site-0").iterdir()}
    assert parts == {"classifier", "purifier"}
    page = (tmp_path / "rehearsal" / "report.html").read_text(encoding="utf-8")
    for needed in ("classifier small_cnn by fedrep", "purifier ddpm by fedavg", "3 of 3 clients have a defence"):
        assert needed in page
    assert "eps 8/255" in page, "counts of an attack stand beside its conditions"


@pytest.mark.filterwarnings("ignore::medfedpure.WeakDefenceWarning")
def test_a_defence_of_another_run_is_made_anew_and_that_of_this_run_is_not(folder: Path) -> None:
    defended(folder)
    config = DeploymentConfig.from_toml(folder / FEDERATION_FILE)
    site = folder / "sites" / "site-0" / "site.toml"
    for part in config.kinds:
        component = FederatedComponent(config, config.images, part)
        images = read_site(config, SiteConfig.from_toml(site), site).train
        component.export(component.make_model(), images, site.parent / "out" / part)
    work, defence = defence_side(config, site), site.parent / "out" / "defence" / "medfedpure.json"
    assert work.work() == {}, "nothing is told unless site.toml says so"
    first = defence.stat().st_mtime_ns
    defence_side(config, site).work()
    assert defence.stat().st_mtime_ns == first
    other = FederatedComponent(config.with_settings(["seed=1"]), config.images, "classifier")
    other.export(other.make_model(), images, site.parent / "out" / "classifier")
    defence_side(config, site).work()
    assert defence.stat().st_mtime_ns > first, "it would have been the defence of another classifier"


@pytest.mark.filterwarnings("ignore::medfedpure.WeakDefenceWarning")
def test_hospitals_with_dicom_files_come_to_defences_that_read_dicom_files(folder: Path, tmp_path: Path) -> None:
    archive = write_dicom_folder(tmp_path / "archive", patients=40)
    defended(folder)
    file = folder / FEDERATION_FILE
    content = DeploymentConfig.from_toml(file).model_dump()
    content["images"]["class_names"] = ("normal", "lesion")
    fast = {"recipe": "fast", "target_fpr": 0.1}
    file.write_text(DeploymentConfig.parse({**content, "purifier": None, "defence": fast}).to_toml())
    options = {"root": str(archive), "image_size": 16, "classes": ["normal", "lesion"]}
    for path in folder.glob("sites/*/site.toml"):
        own = SiteConfig.from_toml(path).model_dump()
        own.update(data={"plugin": "dicom_folder", "config": options}, calibration=0.25, check=0.25)
        path.write_text(SiteConfig.parse(own).to_toml())
    out, rows = tmp_path / "out", tmp_path / "rows.csv"
    done = CliRunner().invoke(app, ["federation", "rehearse", str(folder), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert DefendedClassifier.load(out / "defences" / "site-2").calibration.scores.numel() == 10, "one of each patient"
    scans = [str(archive / "lesion" / "patient0"), "--client", "site-2", "--out", str(rows), "--quiet"]
    done = CliRunner().invoke(app, ["predict", str(out), *scans])
    assert done.exit_code == 0, done.output
    (row,) = csv.DictReader(rows.read_text().splitlines())
    assert row["class"] in ("normal", "lesion")
    assert row["error"] == ""


def test_a_site_file_s_paths_begin_beside_it_and_its_errors_name_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = folder / "sites" / "site-1" / "site.toml"
    write_dicom_folder(file.parent / "archive", patients=12)
    content = DeploymentConfig.from_toml(folder / FEDERATION_FILE).model_dump()
    content["images"]["class_names"] = ("normal", "lesion")
    config, own = DeploymentConfig.parse(content), SiteConfig.from_toml(file).model_dump()

    def site(**options: object) -> SiteConfig:
        return SiteConfig.parse({**own, "data": {"plugin": "dicom_folder", "config": options}})

    right = {"root": "archive", "image_size": 16, "classes": ["normal", "lesion"], "key_file": "groups.key"}
    assert len(read_site(config, site(**right), file).train)
    assert (file.parent / "groups.key").is_file(), "a key lies beside the site.toml too"
    with pytest.raises(DataError, match=r"size 32, not 16: change \[data\] in .*site-1"):
        read_site(config, site(**{**right, "image_size": 32}), file)
    with pytest.raises(DataError, match=r"\[data\] in .*site-1/site.toml: .*elsewhere does not exist"):
        read_site(config, site(**{**right, "root": "elsewhere"}), file)
    with pytest.raises(ConfigError, match=r"\[data\] in .*site-1/site.toml: invalid DicomFolderConfig: root"):
        read_site(config, site(image_size=16), file)
    with pytest.raises(DataError, match=r"site-1/site.toml has no images of lesion: a site needs some of every class"):
        read_site(config, site(**{**right, "classes": ["normal"]}), file)
    file.write_text(file.read_text().replace("validation", "validate"))
    with pytest.raises(ConfigError, match=r"site-1/site.toml: invalid SiteConfig: validate"):
        SiteConfig.from_toml(file)


def test_a_site_with_too_few_images_is_told_before_anything_is_trained(
    folder: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defended(folder)
    for path in folder.glob("sites/*/site.toml"):
        path.write_text(path.read_text().replace("calibration = 0.2", "calibration = 0.1"))
    text = "site-0 has 6 independent images that set the threshold, and 9 are wanted: raise `calibration` in its site"
    with pytest.raises(CalibrationError, match=text):
        rehearse(folder / FEDERATION_FILE, sorted(folder.glob("sites/*/site.toml")), tmp_path / "rehearsal")
    monkeypatch.setenv("MEDFEDPURE_SERVER_OUT", str(tmp_path / "out"))
    with pytest.raises(FederationError, match=r"only 0 of 3 .* CalibrationError \(find_site\)"):
        _run(folder)
    assert not (tmp_path / "out" / "results.json").exists()
    change_federation(folder, 1)
    rehearse(folder / FEDERATION_FILE, sorted(folder.glob("sites/*/site.toml")), tmp_path / "rehearsal")
    assert (tmp_path / "rehearsal" / "results.json").exists(), "nothing was trained, so the file may be mended"
    assert text in caplog.text, "the site's own log must say how many"


def test_the_server_says_where_it_needs_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDFEDPURE_SERVER_OUT", raising=False)
    with pytest.raises(ConfigError, match="set MEDFEDPURE_SERVER_OUT"):
        _run(folder)


def test_a_site_that_cannot_be_set_up_is_left_out_and_tells_the_server_no_more_than_the_type(
    folder: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_federation(folder, start_timeout=1.0)
    secret = "ward-7-archive"
    site = folder / "sites" / "site-1" / "site.toml"
    site.write_text(site.read_text().replace('plugin = "phantom"', f'plugin = "{secret}"'))
    (folder / "sites" / "site-2" / "site.toml").unlink()
    SitesGrid.sites = tuple(folder / "sites" / name / "site.toml" for name in ("site-0", "site-1", "site-2"))
    grid = SitesGrid(client_app(folder / FEDERATION_FILE), 3)
    monkeypatch.setenv("MEDFEDPURE_SERVER_OUT", str(tmp_path / "out"))
    app = server_app(folder / FEDERATION_FILE)
    with acting_as_server(grid.run.run_id), pytest.raises(FederationError) as caught:
        app(grid, grid.server_context())
    reason = json.loads((tmp_path / "out" / "failure.json").read_text())
    assert reason == {"error": "FederationError", "text": str(caught.value)}
    assert "only 1 of 3 clients answered" in str(caught.value)
    assert "UnknownPluginError" in str(caught.value)
    assert "ConfigError (set_up)" in str(caught.value)
    assert secret not in str(caught.value)
    assert secret in caplog.text, "the site's own log must say what happened"


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('client = "site-1"', 'client = "other"', "calls this site 'other'; the federation knows site-0"),
        ("image_size = 16", "image_size = 24", r"change \[data\] in"),
    ],
)
def test_a_site_that_does_not_fit_the_federation_is_told_what_to_change(
    folder: Path, tmp_path: Path, old: str, new: str, text: str
) -> None:
    site = folder / "sites" / "site-1" / "site.toml"
    site.write_text(site.read_text().replace(old, new))
    with pytest.raises((FederationError, DataError), match=text):
        rehearse(folder / FEDERATION_FILE, [site], tmp_path / "out")


class Away(SitesGrid):
    """A network on which the last site answers nothing between two numbers of messages."""

    between = range(0)
    sent = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Work, unless it is the last site's and it is away."""
        one = list(messages)
        type(self).sent += 1
        if type(self).sent in self.between and one[0].metadata.dst_node_id == max(self.get_node_ids()):
            raise ConnectionError
        return super().push_messages(one)


@pytest.mark.parametrize(
    ("away", "trained"),
    [(range(6, 7), False), (range(6, 10**9), False), (range(9, 10), True)],
    ids=["it is back at once", "it is back for the next command", "it trained and missed the outcome"],
)
@pytest.mark.filterwarnings("ignore::medfedpure.WeakDefenceWarning")
def test_a_site_that_was_away_in_the_last_round_gets_its_part_and_defence_when_it_is_back(
    away: range, trained: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defended(folder)
    monkeypatch.setenv("MEDFEDPURE_SERVER_OUT", str(folder / "server" / "out"))
    # 3 hellos, 3 orders of the classifier's one round, 3 of its outcome: the last site's are 6 and 9
    monkeypatch.setattr(Away, "between", away)
    monkeypatch.setattr(Away, "sent", 0)
    _run(folder, Away)
    if len(away) > 1:
        results = json.loads((folder / "server" / "out" / "results.json").read_text())
        (why,) = results["defences"]["failed"].values()
        assert why.startswith("it was away in the last round of")
        assert len(results["defences"]["done"]) == 2
        _run(folder)
    results = json.loads((folder / "server" / "out" / "results.json").read_text())
    (lost,) = parts_of(results)["classifier"][0]["failed"]
    assert (lost in parts_of(results)["classifier"][0]["clients"]) == trained, "the round is told as it was"
    assert results["defences"]["done"].keys() == {"site-0", "site-1", "site-2"}
    assert results["defences"]["failed"] == {}
    parts = {site: folder / "sites" / site / "out" / "classifier" for site in ("site-0", "site-1", "site-2")}
    tensors = [(part / "tensors.safetensors").read_bytes() for part in parts.values()]
    assert len(set(tensors)) == 3, "each site's head is its own"
