"""Everything that an evaluation leaves in its folder."""

from __future__ import annotations

from pathlib import Path

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import InputError
from medfedpure.core.storage import FORMAT, write_bytes
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.records import Evaluation
from medfedpure.reporting.evaluation.gallery import make_gallery
from medfedpure.reporting.evaluation.page import page
from medfedpure.reporting.evaluation.summary import Summary, summarize
from medfedpure.reporting.evaluation.table import markdown, results_csv, summary_csv, transfers_csv


def write_report(
    evaluation: Evaluation,
    folder: str | Path,
    *,
    benign: ImageDataset | None = None,
    chain: DefendedClassifier | None = None,
    headline: str | None = None,
) -> Summary:
    """Write results.json, results.csv, summary.csv, summary.md and report.html, and return the figures.

    And transfers.csv, where attackers and victims of a federation were paired.

    Args:
        evaluation: finished.
        folder: where the run kept its finished rungs (`evaluate(out=...)`), or any other.
        benign: the images that were evaluated (`medfedpure.evaluation.evaluate.choose`), for the gallery.
        chain: the headline defence, so that the gallery shows what it made of attacked images.
        headline: name of the defence that the verdict is about; by default the last one.

    Raises:
        MissingExtraError: jinja2 is not installed; all but the page was written.
        InputError: the benign images are not those that were evaluated.
    """
    evaluated = evaluation.setting.get("images")  # in the format of its time
    known = [] if benign is None else [benign.fingerprint(format) for format in range(1, FORMAT + 1)]
    if benign is not None and (benign.labels.tolist() != evaluation.labels or evaluated not in known):
        raise InputError(
            f"{len(benign)} benign images came that are not the {len(evaluation.labels)} evaluated ones, or in another "
            "order: pass what medfedpure.evaluation.evaluate.choose gives for the same seed"
        )
    folder = Path(folder)
    summary = summarize(evaluation, headline=headline)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "results.json", (evaluation.model_dump_json(indent=1) + "\n").encode())
    for name, text in (
        ("results.csv", results_csv(summary)),
        ("summary.csv", summary_csv(summary)),
        ("summary.md", markdown(summary)),
        ("transfers.csv", transfers_csv(evaluation)),
    ):
        if text:
            write_bytes(folder / name, text.encode())
    gallery = None
    if benign is not None and (folder / "rungs").is_dir():
        gallery = make_gallery(evaluation, summary, benign, folder, chain=chain)
    write_bytes(folder / "report.html", page(evaluation, summary=summary, gallery=gallery).encode())
    return summary
