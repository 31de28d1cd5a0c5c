"""The table of `docs/how-to/many-files.md`, drawn from what `benchmarks.many_files` measured.

`python -m benchmarks.many_files_table` writes it into the page.
"""

from __future__ import annotations

import json

from benchmarks import pages

PAGE = pages.DOCS / "how-to" / "many-files.md"
RESULTS = pages.RESULTS / "many_files"


def table(name: str) -> str:
    """What the document of that name says, a line for each promise."""
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    rows, memory, killed, rates = *map(found["whole"].get, ("rows", "memory_mib")), found["killed"], found["rates"]
    spread = rates["share_of_turns"]
    lines = [
        ("what", "found"),
        ("---", "---"),
        (
            f"{rows['rows']:,} rows of {found['files']:,} files",
            f"each once; {rows['errors']} are errors, of the {sum(found['made']['corrupt'].values())} spoilt files",
        ),
        (
            "killed after " + " and ".join(f"{end['rows']:,}" for end in killed["kills"]) + " rows",
            f"gone on with, each row once; {killed['as_in_one_go']['bit_for_bit']:,} bit for bit as in one go",
        ),
        (
            "resident memory after the first tenth",
            f"{memory['least']:.0f} to {memory['most']:.0f} MiB, apart by {memory['spread']:.1%} of their median",
        ),
        (
            "decoding alone and predicting alone, over both together",
            f"{rates['share']:.2f} by the clock ({rates['turns']} turns, of which the median {spread['median']:.2f}, "
            f"least {spread['least']:.2f}, most {spread['most']:.2f}), "
            f"{rates['share_of_processor_time']:.2f} by processor time",
        ),
    ]
    if dealt := found.get("ray"):
        same = dealt["as_in_one_go"]
        said = f"{dealt['rows']['rows']:,} rows, each once, {same['unlike']} unlike those of one process"
        lines.append((f"engine ray, {dealt['workers']} workers", f"{said}; {same['bit_for_bit']:,} bit for bit"))
    return "\n".join(f"| {left} | {right} |" for left, right in lines)


def page_with_tables(page: str) -> str:
    """The page with its tables drawn anew."""
    return pages.redrawn(page, table)


if __name__ == "__main__":
    pages.write_tables(__doc__, PAGE, page_with_tables)
