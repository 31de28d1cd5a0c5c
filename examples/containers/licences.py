"""The licences of all that a container holds: `python licences.py FILE`, run while it is built, by the Python in it.

Lists every Python distribution with its version, the licence that it states and the texts that it brings, Python
itself, and the packages of Debian with the file under /usr/share/doc that has theirs. What says nothing is named as
unknown, at the top.
"""

from __future__ import annotations

import argparse
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

UNKNOWN = "unknown"
_TEXT = re.compile(r"(licen[cs]e|copying|notice|copyright|authors)[^/]*$", re.I)
_SAYS_NOTHING = ("", "unknown", "none", "other/proprietary license")
_STATUS = Path("/var/lib/dpkg/status")
_DOCUMENTS = Path("/usr/share/doc")


@dataclass(frozen=True)
class Licence:
    """Of one part.

    Attributes:
        part: its name.
        version: of it.
        stated: what its metadata says, in a line; UNKNOWN where they say nothing.
        texts: that come with it, by the file that holds them.
    """

    part: str
    version: str
    stated: str
    texts: dict[str, str]

    @property
    def is_known(self) -> bool:
        """Whether anything is said of it."""
        return self.stated != UNKNOWN or bool(self.texts)


def of_distribution(found: Distribution) -> Licence:
    """The licence of a Python distribution, by its metadata: an expression (PEP 639), else older fields."""
    said = found.metadata
    kinds = [line.rpartition(" :: ")[2] for line in said.get_all("Classifier") or () if line.startswith("License ::")]
    lines = (said.get("License") or "").strip().splitlines()
    written = lines[0].strip() if len(lines) == 1 or (lines and not kinds) else ""
    candidates = (said.get("License-Expression") or "", ", ".join(kinds), written)
    stated = next((one for one in candidates if one.strip().lower() not in _SAYS_NOTHING), UNKNOWN)
    named = [file for file in found.files or () if ".dist-info" in str(file) and _TEXT.search(file.name)]
    texts = {str(file): _read(Path(str(file.locate()))) for file in named}
    if len(lines) > 1:
        texts["its metadata"] = "\n".join(lines)
    return Licence(said["Name"], said["Version"], stated, {name: text for name, text in texts.items() if text})


def of_python() -> Licence:
    """The licence of the Python that runs this."""
    text = _read(Path(sysconfig.get_path("stdlib")) / "LICENSE.txt")
    return Licence("Python", sys.version.split()[0], "PSF-2.0", {"LICENSE.txt": text} if text else {})


def of_debian(status: Path = _STATUS, documents: Path = _DOCUMENTS) -> Iterator[Licence]:
    """The licences of installed packages of Debian; none where there is no such system."""
    for entry in (_read(status) or "").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", entry, re.M))
        if fields.get("Status", "").endswith(" installed"):
            file = documents / fields["Package"] / "copyright"
            stated = f"see {file}" if file.exists() else UNKNOWN
            yield Licence(fields["Package"], fields["Version"], stated, {})


def all_licences() -> list[Licence]:
    """Of everything here, by name: first Python and what runs in it, then Debian."""
    base = sysconfig.get_path("purelib", vars={"base": sys.base_prefix, "platbase": sys.base_prefix})
    found = {(one.metadata["Name"], one.metadata["Version"]): one for one in distributions(path=[base, *sys.path])}
    own = sorted((of_distribution(one) for one in found.values()), key=lambda one: one.part.lower())
    return [of_python(), *own, *of_debian()]


def told(licences: Iterable[Licence]) -> str:
    """What is written: those that are unknown, a line for each, and the texts."""
    every = list(licences)
    unknown = [f"{one.part} {one.version}" for one in every if not one.is_known]
    lines = ["Of these parts neither a licence nor a text is known:", *(unknown or ["none"]), "", "Parts:"]
    lines += [f"{one.part} {one.version}: {one.stated}" for one in every]
    for one in every:
        for name, text in one.texts.items():
            lines += ["", "=" * 80, f"{one.part} {one.version}: {name}", "=" * 80, text.rstrip()]
    return "\n".join(lines) + "\n"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def main() -> None:
    """Write the file, and say how many parts there are and which are unknown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    every = all_licences()
    given.file.write_text(told(every), encoding="utf-8")
    unknown = [one.part for one in every if not one.is_known]
    print(f"{len(every)} parts, of which {len(unknown)} are unknown: {', '.join(unknown) or 'none'}")


if __name__ == "__main__":
    main()
