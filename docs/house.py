"""Draws the rooms of the package from its imports: `python docs/house.py` writes docs/diagrams/house.svg.

Rows are the layers of `[tool.importlinter]` in pyproject.toml. An arrow: a room imports another one, and
reaches it by no longer way.
"""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "medfedpure"
PICTURE = ROOT / "docs" / "diagrams" / "house.svg"
WIDTH, HEIGHT, GAP, ROW = 152, 52, 18, 104
COLOURS = ("#00897b", "#c77700", "#5e6ad2", "#b4436c", "#3d7ea6", "#7a7f2e", "#8a5a44")
DARK = ("#4db6ac", "#e0a458", "#9aa3f0", "#e58fb0", "#7fb5d6", "#b9be6b", "#c79a84")


@dataclass(frozen=True)
class Room:
    """A package directly below medfedpure."""

    name: str
    files: int
    lines: int
    imports: frozenset[str]


def layers() -> list[list[str]]:
    """Rooms from the highest to the lowest row, as the import contract says; those that do not exist yet left out."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (rooms,) = (contract["layers"] for contract in contracts if contract["id"] == "rooms")
    named = [[part.strip(" ()").removeprefix("medfedpure.") for part in row.split("|")] for row in rooms]
    return [[name for name in row if (PACKAGE / name).is_dir()] for row in named]


def room(name: str) -> Room:
    """Counts and imports of one room."""
    paths = sorted((PACKAGE / name).rglob("*.py"))
    texts = [path.read_text(encoding="utf-8") for path in paths]
    found: set[str] = set()
    for text in texts:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medfedpure."):
                found.add(str(node.module).split(".")[1])
    return Room(name, len(paths), sum(text.count("\n") for text in texts), frozenset(found - {name}))


def direct(rooms: dict[str, Room]) -> list[tuple[str, str]]:
    """The imports that are no consequence of others: importer and imported."""

    def below(name: str) -> set[str]:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            for other in rooms[waiting.pop()].imports & rooms.keys():
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return seen

    return [
        (one.name, other)
        for one in rooms.values()
        for other in sorted(one.imports & rooms.keys())
        if not any(other in below(middle) for middle in one.imports & rooms.keys() if middle != other)
    ]


def draw() -> str:
    """The picture as SVG."""
    rows = layers()
    rooms = {name: room(name) for row in rows for name in row}
    wide = max(len(row) for row in rows) * (WIDTH + GAP) + GAP
    tall = len(rows) * ROW + 8
    places = {
        name: ((wide - len(row) * (WIDTH + GAP) + GAP) / 2 + place * (WIDTH + GAP), 20 + number * ROW)
        for number, row in enumerate(rows)
        for place, name in enumerate(row)
    }
    title = "The rooms of medfedpure: each imports only from rows below it"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" width="{wide}" height="{tall}" '
        f'role="img" aria-label="{title}">',
        f"  <title>{title}</title>",
        "  <style>",
        '    text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; text-anchor: middle; }',
        "    .card { fill: #f4f8f8; }",
        "    .box { fill: #ffffff; stroke-width: 1.5; }",
        "    .name { font-size: 16px; font-weight: 600; fill: #14211f; }",
        "    .say { font-size: 12px; fill: #4a5a58; }",
        "    .way { fill: none; stroke-width: 1.6; }",
        *(
            f"    .row{n} {{ stroke: {colour}; }} .tip{n} {{ fill: {colour}; }}"
            for n, colour in enumerate(_of(COLOURS, rows))
        ),
        "    @media (prefers-color-scheme: dark) {",
        "      .card { fill: #262b33; } .box { fill: #1b1f26; } .name { fill: #eef4f3; } .say { fill: #b4c2c0; }",
        *(
            f"      .row{n} {{ stroke: {colour}; }} .tip{n} {{ fill: {colour}; }}"
            for n, colour in enumerate(_of(DARK, rows))
        ),
        "    }",
        "  </style>",
        "  <defs>",
        *(
            f'    <marker id="tip{n}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="6" markerHeight="6" '
            f'orient="auto"><path class="tip{n}" d="M0 0 L10 5 L0 10 Z"/></marker>'
            for n in range(len(rows))
        ),
        "  </defs>",
        f'  <rect class="card" x="0" y="0" width="{wide}" height="{tall}" rx="12"/>',
    ]
    level = {name: number for number, row in enumerate(rows) for name in row}
    for importer, imported in direct(rooms):
        parts.append(_arrow(places[importer], places[imported], level[importer], level[imported] - level[importer]))
    for name, (x, y) in places.items():
        own = rooms[name]
        parts += [
            f'  <rect class="box row{level[name]}" x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
            f'  <text class="name" x="{x + WIDTH / 2:g}" y="{y + 23:g}">{escape(name)}</text>',
            f'  <text class="say" x="{x + WIDTH / 2:g}" y="{y + 41:g}">{own.files} files, '
            f"{round(own.lines, -2):,} lines</text>",
        ]
    return "\n".join([*parts, "</svg>", ""])


def _of(colours: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    return [colours[number % len(colours)] for number in range(len(rows))]


def _arrow(start: tuple[float, float], end: tuple[float, float], row: int, down: int) -> str:
    """From the lower edge of one box to the upper edge of another; past boxes between them in a bow."""
    x1, y1, x2, y2 = start[0] + WIDTH / 2, start[1] + HEIGHT, end[0] + WIDTH / 2, end[1] - 2
    if down > 1 and abs(x1 - x2) < WIDTH:
        bow = WIDTH * 0.75
        path = f"M{x1:g} {y1:g} C{x1 + bow:g} {y1 + ROW / 3:g} {x2 + bow:g} {y2 - ROW / 3:g} {x2:g} {y2:g}"
    else:
        path = f"M{x1:g} {y1:g} C{x1:g} {y1 + ROW / 3:g} {x2:g} {y2 - ROW / 3:g} {x2:g} {y2:g}"
    return f'  <path class="way row{row}" d="{path}" marker-end="url(#tip{row})"/>'


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
