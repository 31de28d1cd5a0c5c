"""The page of verdicts on files: counts, drift, failures, the most suspicious images; one file, no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medfedpure.core.disk.whole import make_folder, write_bytes, writing_to
from medfedpure.core.errors import ArtifactError, ConfigError, MissingExtraError
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.figures.intervals import wilson
from medfedpure.reporting import charts
from medfedpure.reporting.rendering import render
from medfedpure.reporting.verdicts.counts import Counts, calibrated, edges_of
from medfedpure.reporting.verdicts.pictures import Suspect, show
from medfedpure.reporting.verdicts.words import MISUSE, drift, lead, rate, threat
from medfedpure.verdicts.decoding import FileDecoder, Shown

PAGE = "report.html"
_TEMPLATE = "verdicts/page.html"
_TITLE, _HEAD = b"<title>Verdicts of ", 4096
"""By which a page of verdicts is known, and within how many bytes."""


class VerdictsPage:
    """Writes report.html of all rows of verdicts, those of earlier calls too.

    Args:
        folder: for the page, made where it is missing, for its owner only: the page shows images and names of files.
        chain: the defence that spoke.
        shown: how the files were read.
        target_fpr: another false-positive rate than the calibrated one, where one was asked for.
        purified: the folder of purified images, where they were saved.
        most: suspicious images on the page, at most 20.

    Raises:
        MissingExtraError: jinja2 is not installed; told before anything is read.
        ArtifactError: the folder cannot be made, or holds a report.html that is no page of verdicts.
    """

    def __init__(
        self,
        folder: str | Path,
        chain: DefendedClassifier,
        *,
        shown: Shown = Shown(),  # noqa: B008
        target_fpr: float | None = None,
        purified: str | Path | None = None,
        most: int = 12,
    ) -> None:
        try:
            import jinja2  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("the page needs jinja2: pip install 'medfedpure[report]'") from error
        self.folder, self.place = Path(folder), Path(folder) / PAGE
        self._chain, self._shown = chain, shown
        self._target_fpr, self._most = target_fpr, most
        self._purified = None if purified is None else Path(purified)
        if not self.folder.exists():
            make_folder(self.folder.parent)
            with writing_to(self.folder):
                self.folder.mkdir(mode=0o700, exist_ok=True)
        make_folder(self.folder)
        self._check_ours()

    def write(self, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Write the page, whole or not at all, and say where it is.

        Args:
            rows: of `predict_files`, read once; their number does not matter to the memory.

        Raises:
            ConfigError: there is not one.
            ArtifactError: the page cannot be written.
        """
        counts = Counts(edges_of(self._chain.calibration), self._most).of(rows)
        if not counts.images and not counts.failed:
            raise ConfigError("there is no row to report: let `predict` read some files first")
        content = render(_TEMPLATE, self._values(counts))
        write_bytes(self.place, content.encode(errors="backslashreplace"), mode=0o600)
        return self.place

    def _check_ours(self) -> None:
        try:
            with self.place.open("rb") as stream:
                head = stream.read(_HEAD)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ArtifactError(f"{self.place} cannot be read ({error.strerror}): name another folder") from error
        if _TITLE not in head:
            raise ArtifactError(f"{self.place} is another page than one of verdicts: name another folder")

    def _values(self, counts: Counts) -> dict[str, Any]:
        chain = self._chain
        total = max(counts.images, 1)
        tiles = [
            (name, count, counts.images)
            for name, count, told in (
                ("flagged", counts.flagged, chain.calibration is not None),
                ("purified", counts.purified, chain.purifier is not None),
                ("without a verdict", counts.abstained, True),
            )
            if told
        ]
        return {
            "counts": counts,
            "lead": lead(counts),
            "defences": [name or "unnamed" for name in counts.defences],
            "policy": chain.policy,
            "images": "" if chain.image_facts is None else chain.image_facts.describe(),
            "tiles": [{"name": n, "count": c, "of": of, "share": 100 * c / max(of, 1)} for n, c, of in tiles],
            "rate": rate(counts, chain, self._target_fpr),
            "threat": threat(chain),
            "misuse": MISUSE,
            "classes": [
                {"name": name, "share": one.images / total, "count": one}
                for name, one in sorted(counts.classes.items(), key=lambda item: -item[1].images)
            ],
            "parts": counts.parts.most_common(),
            "drift": self._drift(counts),
            "reasons": sorted(counts.reasons.items(), key=lambda item: -item[1].files),
            "pictures": self._pictures(counts),
        }

    def _pictures(self, counts: Counts) -> list[Suspect]:
        facts, rows = self._chain.image_facts, counts.most_suspicious()
        decoder = None if facts is None or not rows else FileDecoder(facts, shown=self._shown)
        return [] if decoder is None else show(rows, decoder, self._purified, self._shown.axis)

    def _drift(self, counts: Counts) -> dict[str, Any] | None:
        """Scores in the tenths of the calibration, where both are known."""
        if self._chain.calibration is None or not counts.edges or not sum(counts.bins):
            return None
        own, total = calibrated(self._chain.calibration, counts.edges), sum(counts.bins)
        seen = []
        for place, count in enumerate(counts.bins):
            low, high = wilson(count, total)
            seen.append(charts.Point(place, count / total, low, high))
        series = [
            charts.Series("calibration", [charts.Point(place, share) for place, share in enumerate(own)], 0),
            charts.Series("these images", seen, 1, strong=True),
        ]
        ticks = [f"≤ {edge:.3g}" for edge in counts.edges] + [f"> {counts.edges[-1]:.3g}"]
        last = len(ticks) - 1
        ticks = [tick if (last - place) % 2 == 0 else "" for place, tick in enumerate(ticks)]
        highest = max([*own, *(point.high or 0.0 for point in seen)])
        chart = charts.line_chart(
            series,
            ticks,
            charts.levels_around([0.0, highest]),
            title="Shares of images by score, beside the calibration",
            across="score, by tenths of the calibration",
            up="share of images",
        )
        marks = [(one.name, charts.legend_mark(one.colour, number)) for number, one in enumerate(series)]
        return {"chart": chart, "marks": marks, "text": drift(counts, own)}
