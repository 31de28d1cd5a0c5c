"""The one table of an evaluation: for the terminal, as Markdown, and as CSV files ready for a paper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import TYPE_CHECKING

from medfedpure.core.config import Record
from medfedpure.core.rows.table import columns_of, csv_text
from medfedpure.evaluation.records import Evaluation, RungRow, noted
from medfedpure.evaluation.tally import Figure
from medfedpure.reporting.evaluation.summary import Line, Summary
from medfedpure.reporting.evaluation.words import figure, footnotes

if TYPE_CHECKING:
    from rich.table import Table

MARK = "UNRELIABLE"
KINDS = ("replayed", "white-box", "black-box", "control")
TRANSFER = "static: crafted on a client's bare classifier and replayed on the victim's defence"


@dataclass(frozen=True)
class Column:
    """One column; `narrow` ones are shown where there is little room, too."""

    title: str
    cell: Callable[[Line], str]
    narrow: bool = False


@dataclass(frozen=True)
class Section:
    """Rows that stand under one threat: benign images, or one eps."""

    title: str
    rows: list[list[str]]
    unreliable: list[bool]


def columns(summary: Summary) -> list[Column]:
    """What is shown; what no defence here has is left out."""
    marks = threats(summary)
    found = [
        Column("right", lambda line: f"{line.right}/{line.images}" if _known(line) else "-", narrow=True),
        Column("balanced accuracy", lambda line: figure(line.balanced), narrow=True),
    ]
    if summary.positive:
        found.append(Column("sens.", lambda line: _share(line.sensitivity), narrow=True))
        found.append(Column("spec.", lambda line: _share(line.specificity)))
    if len(summary.class_names) > 2:
        found += [_recall(name) for name in summary.class_names]
    found.append(Column("fooled", lambda line: str(line.fooled) if _known(line) else "-", narrow=True))
    if any(line.withheld for line in summary.lines if _known(line)):
        found.append(Column("refused", lambda line: str(line.withheld) if _known(line) else "-", narrow=True))
    found.append(Column("weakest against", lambda line: line.weakest or "-", narrow=True))
    found.append(Column("threat", lambda line: marks.get(line.threat, "-"), narrow=True))
    if any(line.draws > 1 for line in summary.lines):
        found.append(Column("worst of N", lambda line: _drawn(line, line.worst_of_draws)))
        found.append(Column("majority of N", lambda line: _drawn(line, line.majority_of_draws)))
    if summary.reference is not None:
        found.append(Column("difference", lambda line: figure(line.difference, signed=True)))
    if len(summary.eps) > 1:
        found.append(Column("expected", lambda line: figure(line.expected)))
    return [
        *found,
        Column("flagged", lambda line: _share(line.flagged)),
        Column("ECE", lambda line: _share(line.ece)),
        Column("NFE", lambda line: "-" if line.nfe is None else f"{line.nfe:.1f}"),
        Column("ms", lambda line: "-" if line.ms is None else f"{line.ms:.1f}"),
    ]


def _recall(name: str) -> Column:
    return Column(f"recall {name}", lambda line: _share(line.recalls[name]) if _known(line) else "-")


def threats(summary: Summary) -> dict[str, str]:
    """A letter for each threat, in the order of the rows; the same attacks at another eps share one."""
    letters = (letter * times for times in (1, 2, 3, 4) for letter in ascii_lowercase)
    alike: dict[str, str] = {}
    found = {}
    for line in summary.lines:
        if line.attacks:
            attacks = line.threat.partition("; ")[2]
            if attacks not in alike:
                alike[attacks] = next(letters)
            found[line.threat] = alike[attacks]
    return found


def threat_notes(summary: Summary) -> list[str]:
    """The threats by letter, each with every eps that it stands for."""
    sizes: dict[str, list[str]] = {}
    attacks = {}
    for text, mark in threats(summary).items():
        budget, _, attacks[mark] = text.partition("; ")
        sizes.setdefault(mark, []).append(budget.partition(", ")[2])
    return [f"({mark}) norm {summary.norm}, {' and '.join(sizes[mark])}: {words}." for mark, words in attacks.items()]


def sections(summary: Summary, shown: Sequence[Column] | None = None) -> list[Section]:
    """Rows by threat: a defence's name, then its cells; the majority class last."""
    shown = columns(summary) if shown is None else shown
    found = []
    for eps in (None, *summary.eps):
        lines = [line for line in summary.lines if line.eps == eps]
        title = "benign images" if eps is None else f"attacked, {summary.norm}, eps {eps:.4g}"
        rows = [[line.arm, *[column.cell(line) for column in shown]] for line in lines]
        anchor = {
            "balanced accuracy": f"{summary.anchor.balanced:.2f}",
            "sens.": _share(summary.anchor.sensitivity),
            "spec.": _share(summary.anchor.specificity),
        }
        rows.append(["majority class", *[anchor.get(column.title, "-") for column in shown]])
        found.append(Section(title, rows, [line.arm in summary.unreliable for line in lines] + [False]))
    return found


def warnings(summary: Summary) -> list[str]:
    """Why defences are marked, one line for each reason."""
    return [f"{MARK} {arm}: {reason}" for arm, reasons in summary.unreliable.items() for reason in reasons]


def conditions(summary: Summary) -> list[str]:
    """What must stand under the table: the note of the preset, every threat, what columns mean."""
    return [
        summary.note,
        *threat_notes(summary),
        *_not_made(summary),
        *footnotes(summary),
    ]


def _not_made(summary: Summary) -> list[str]:
    """Attacks that there were none of, or that must not count: a worst case without them is a milder one."""
    arms: dict[tuple[str, str], list[str]] = {}
    for row in summary.rungs:
        if row.role in ("skipped", "problem"):
            arms.setdefault((row.rung, row.note), []).append(row.arm)
    return [
        f"Not counted: {rung} against {', '.join(dict.fromkeys(map(repr, names)))}: {note}."
        for (rung, note), names in arms.items()
    ]


def terminal_table(summary: Summary, width: int = 120) -> Table:
    """The table for rich; less room, fewer columns."""
    from rich.markup import escape
    from rich.table import Table

    shown = [column for column in columns(summary) if column.narrow or width >= 150]
    table = Table(box=None, pad_edge=False)
    table.add_column("defence")
    for column in shown:
        table.add_column(escape(column.title), justify="left" if column.title == "weakest against" else "right")
    for place, section in enumerate(sections(summary, shown)):
        table.add_row(*[""] * (len(shown) + 1)) if place else None
        table.add_row(f"[bold]{escape(section.title)}[/]")
        for row, marked in zip(section.rows, section.unreliable, strict=True):
            cells = [escape(cell) for cell in row]
            cells[0] = f"  {cells[0]} [bold red]{MARK}[/]" if marked else f"  {cells[0]}"
            table.add_row(*cells, style="dim" if row[0] == "majority class" else "")
    return table


def markdown(summary: Summary) -> str:
    """The table with everything that must stand beside it."""
    shown = columns(summary)
    lines = [f"**{_cell(text)}**" for text in warnings(summary)]
    lines += [""] if lines else []
    lines += ["| | " + " | ".join(_cell(column.title) for column in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for section in sections(summary, shown):
        lines.append(f"| **{section.title}** " + "| " * len(shown) + "|")
        for row, marked in zip(section.rows, section.unreliable, strict=True):
            cells = [_cell(cell) for cell in row]
            lines.append("| " + " | ".join([f"{cells[0]} **{MARK}**" if marked else cells[0], *cells[1:]]) + " |")
    lines += ["", *[f"- {_cell(text)}" for text in conditions(summary)]]
    return "\n".join([*lines, "", *_by_attack(summary)]) + "\n"


def _by_attack(summary: Summary) -> list[str]:
    """How many images each attack leaves right, and the share that a detector flags: where a worst case comes from."""
    shown = [row for row in summary.rungs if row.role in ("counted", "control") and row.right is not None]
    faced = Counter(row.arm for row in shown)
    in_turn = sorted(shown, key=lambda row: (KINDS.index(row.kind), -faced[row.arm]))
    heads = list(dict.fromkeys(row.rung for row in in_turn))
    whole = summary.met_by_all is None
    count = f"Right of {summary.images} under each attack alone" if whole else "Right of those that met each attack"
    lines = [
        f"{count}, norm {summary.norm}, settings as above, in one draw; in "
        "brackets the share that was flagged. A dash: that attacker makes no sense there, or failed.",
        "",
        "| eps | defence | " + " | ".join(map(_cell, heads)) + " |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for eps in summary.eps:
        for arm in dict.fromkeys(row.arm for row in shown):
            own = {row.rung: row for row in shown if (row.arm, row.eps) == (arm, eps)}
            detects = summary.line(arm, eps).policy in ("purify_flagged", "abstain")
            cells = [_alone(own.get(head), detects, whole) for head in heads]
            lines.append(f"| {eps:.4g} | {_cell(arm)} | " + " | ".join(cells) + " |")
    return lines


def _alone(row: RungRow | None, detects: bool, whole: bool) -> str:
    if row is None:
        return "-"
    count = str(row.right) if whole else f"{row.right}/{row.images}"
    return f"{count} ({_share(row.flagged)})" if detects else count


def results_csv(summary: Summary) -> str:
    """One line for each defence and attack, checks and controls included, at full precision."""
    return _csv(summary.rungs, RungRow, summary)


def summary_csv(summary: Summary) -> str:
    """One line for each defence and eps (empty: benign images), the worst case over attacks."""
    return _csv(summary.lines, Line, summary)


def transfers_csv(evaluation: Evaluation) -> str:
    """One line for each attacker and victim of a federation and each eps; nothing where none were paired."""
    rows = [{**found.model_dump(), "view": TRANSFER, "note": evaluation.note} for found in evaluation.transfers]
    return csv_text(columns_of(rows)) if rows else ""


def _csv(records: Iterable[Line | RungRow], kind: type[Record], summary: Summary) -> str:
    return csv_text(columns_of(noted(records, summary.unreliable, summary.note), list(kind.model_fields)))


def _known(line: Line) -> bool:
    return line.balanced is not None


def _drawn(line: Line, value: Figure | None) -> str:
    return figure(value) if line.draws > 1 else "-"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _cell(text: str) -> str:
    """Text that neither ends a Markdown cell nor becomes markup, nor steers a terminal on which the file is shown."""
    text = "".join(c if c.isprintable() or c.isspace() else c.encode("unicode_escape").decode() for c in text)
    for sign in ("\\", "|", "*", "_", "<", ">", "`", "[", "]"):
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
