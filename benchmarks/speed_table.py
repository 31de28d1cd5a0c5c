"""The tables of `benchmarks.speed`: `python -m benchmarks.speed_table` writes them into their page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks import pages
from benchmarks.pages import redrawn, write_tables
from benchmarks.speeds.aims import DEVICES, UNKNOWN, Document, Documents, aims, table

RESULTS = pages.RESULTS / "speed"
PAGE = pages.DOCS / "explanation" / "performance.md"


def read(folder: Path = RESULTS) -> dict[str, Document]:
    """What was measured, by kind of device."""
    paths = {kind: folder / f"{kind}.json" for kind in DEVICES}
    return {kind: json.loads(path.read_text(encoding="utf-8")) for kind, path in paths.items() if path.exists()}


def _sections(documents: Documents, *names: str) -> Iterator[tuple[str, Document]]:
    """The device and the section, wherever one of these was measured."""
    for kind, document in documents.items():
        for name in names:
            found = document["sections"].get(name, {})
            if found and "not_measured" not in found:
                yield DEVICES[kind], found


def _spread(found: Mapping[str, float] | str, digits: int = 2) -> str:
    """Median, and in brackets least and most; or why there is none."""
    if isinstance(found, str):
        return found
    middle, least, most = (f"{found[key]:,.{digits}f}" for key in ("median", "least", "most"))
    return middle if found["of"] == 1 else f"{middle} ({least} to {most})"


def conditions(documents: Documents) -> str:
    """Where, with what, and beside how much other work."""
    lines = []
    for kind, label in DEVICES.items():
        if kind not in documents:
            lines.append(f"- {label}: {UNKNOWN}.")
            continue
        found = documents[kind]
        parts = found["sections"].values()
        passed, busy = (sum(part[key] for part in parts) / 60 for key in ("seconds", "processor_seconds"))
        loads = [part["load"] for part in parts]
        packages = ", ".join(f"{name} {found['versions'][name]}" for name in ("python", "torch", "diffusers"))
        threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
        lines.append(
            f"- {found['device']}; {threads}; {packages}. Times are {found['clock']}. The whole run took {busy:.1f} "
            f"minutes of processor time, and {passed:.0f} minutes passed, beside other work (load average "
            f"{min(loads):.0f} to {max(loads):.0f} as sections began)."
        )
    return "\n".join(lines)


def benign(documents: Documents) -> str:
    """Throughput kept."""
    rows = [
        [
            f"{device}, {row['way']}",
            f"{part['size']} px",
            row["classifier"],
            f"`{row['detector']}`",
            _spread(row["kept"], 3),
            f"{100 * row['flagged']:.1f} %",
        ]
        for device, part in _sections(documents, "benign_small", "benign_large")
        for row in part["rows"]
    ]
    return table(["device, acceleration", "images", "classifier", "detector", "throughput kept", "flagged"], rows)


def purifying(documents: Documents) -> str:
    """Rates, and one image alone."""
    rows = [
        [
            f"{device}, {rate['way']}",
            f"{part['size']} px",
            _spread(rate["evaluations_a_second"], 1),
            _spread(rate["images_a_second"], 1),
            f"{alone['median_ms']:.1f}",
            f"{alone['median_flagged_ms']:.1f}",
            f"{alone['worst_ms']:.1f}",
        ]
        for device, part in _sections(documents, "purifying_small", "purifying_large")
        for rate, alone in zip(part["rates"], part["alone"], strict=True)
    ]
    heads = ["device, acceleration", "images", "U-Net evaluations a second", "purify all, images a second"]
    return table([*heads, "one image, ms: median", "median of the flagged", "worst"], rows)


def attacks(documents: Documents) -> str:
    """Our PGD, a bare loop, other libraries."""
    rows = []
    for device, part in _sections(documents, "exact_attack"):
        for row in part["rows"]:
            what = f"{part['classifier']} behind purify all, exact gradient, EoT {part['attack']['eot']}"
            rows.append([device, what, "`pgd_eot` to a bare loop of the same evaluations", _spread(row["to_bare"])])
    names = {"art": "ART", "pgd": "`pgd` (ART's, our adapter)", "foolbox": "foolbox", "torchattacks": "torchattacks"}
    for device, part in _sections(documents, "libraries"):
        for row in part["rows"]:
            what = f"`{row['classifier']}`, bare"
            rows.append([device, what, "`pgd_eot` to a bare loop", _spread(row["pgd_eot_to_bare"], 3)])
            rows += [
                [device, what, f"{words} to `pgd_eot`", _spread(row["to_pgd_eot"][name])]
                for name, words in names.items()
            ]
            early, fallen = _spread(row["early_pgd_to_pgd_eot"]), f"{100 * row['early_fallen']:.0f} % fall early"
            rows.append([device, what, f"`pgd` to `pgd_eot`, linf, eps 0.1, 20 steps, {fallen}", early])
    return table(["device", "attacked", "time as a ratio", "median (least to most)"], rows)


def fooled(documents: Documents) -> str:
    """How many images fall to equal attacks."""
    names = ["pgd_eot", "pgd", "foolbox", "torchattacks"]
    rows = [
        [device, f"`{row['classifier']}`", *(_percent(row["fooled"].get(name)) for name in names)]
        for device, part in _sections(documents, "libraries")
        for row in part["rows"]
    ]
    return table(["device", "classifier", "`pgd_eot`", "`pgd` (ART's)", "foolbox", "torchattacks"], rows)


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.1f} %"


def depths(documents: Documents) -> str:
    """Mixed depths, and the chain beside `diffpure`."""
    rows = []
    for device, part in _sections(documents, "mixed_depths"):
        count = f"{part['images']} images of {part['size']} px"
        pairs = {
            f"{count}, mixed depths, {part['evaluations']} evaluations: diffusers image by image to ours": _spread(
                part["image_by_image_to_mixed"]
            ),
            f"{count}, equal depth: diffusers' batched loop to ours": _spread(part["batched_to_equal"]),
            "mixed depths to the sum of each image's evaluations at the rate of the full batch": _spread(
                part["mixed_to_sum"]
            ),
            "memory of a gradient through 20 steps to 2 steps": f"{part['memory_of_20_steps_to_2']:.2f}",
        }
        rows += [[device, words, figure] for words, figure in pairs.items()]
    for device, part in _sections(documents, "attacked_traffic"):
        for row in part["rows"]:
            what = (
                f"{part['size']} px, {100 * part['attacked']:.0f} % of the images attacked, "
                f"{100 * row['flagged']:.1f} % flagged: `diffpure` for all, "
                f"{part['evaluations']} evaluations, to the chain"
            )
            rows.append([f"{device}, {row['way']}", what, _spread(row["all_to_chain"], 1)])
    return table(["device", "time as a ratio", "median (least to most)"], rows)


def art(documents: Documents) -> str:
    """ART's defences beside ours."""
    rows = [
        [
            device,
            row["defence"],
            _spread(row["kept"]),
            _accuracy(row["benign"]),
            _accuracy(row["attacked"]),
            f"{100 * row['benign']['refused']:.0f} % / {100 * row['attacked']['refused']:.0f} %",
        ]
        for device, part in _sections(documents, "art_pipeline")
        for row in part["rows"]
    ]
    heads = ["device", "defence", "throughput kept", "benign", "static PGD", "refused, benign / attacked"]
    lines = [
        f"{device}: {part['classifier']} after {part['steps']} steps, {part['size']} px, {part['tested']} test images."
        for device, part in _sections(documents, "art_pipeline")
    ]
    return "\n\n".join([table(heads, rows), *lines])


def _accuracy(found: Mapping[str, float | None]) -> str:
    value, low, high = (found[key] for key in ("balanced", "low", "high"))
    own = "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
    return f"{100 * (value or 0):.1f}{own}"


def gpu(documents: Documents) -> str:
    """What only a GPU can show."""
    rows = [
        [device, f"`predict`, policy {row['policy']}, {part['batches']} batches, {row['way']}", f"{row['waits']} waits"]
        for device, part in _sections(documents, "synchronizations")
        for row in part["rows"]
    ]
    rows += [
        [device, f"`evaluate`, preset {part['preset']}, {part['size']} px, {row['way']}", f"{row['seconds']:.0f} s"]
        for device, part in _sections(documents, "standard_evaluation")
        for row in part["rows"]
    ]
    return table(["device", "what", "figure"], rows)


def processes(documents: Documents) -> str:
    """What two processes gain, or why that is not known."""
    rows = [
        [
            device,
            f"`{row['what']}`: one process to two, time that passes, starting them included",
            _spread(row["one_to_two"]),
        ]
        for device, part in _sections(documents, "processes")
        for row in part["rows"]
    ]
    why = documents.get("cpu", {"sections": {}})["sections"].get("processes", {}).get("not_measured")
    return f"{UNKNOWN}: {why}" if why else table(["device", "time as a ratio", "median (least to most)"], rows)


TABLES: Mapping[str, Callable[[Documents], str]] = {
    "conditions": conditions,
    "aims": aims,
    "benign": benign,
    "purifying": purifying,
    "attacks": attacks,
    "fooled": fooled,
    "depths": depths,
    "art": art,
    "processes": processes,
    "gpu": gpu,
}


def page_with_tables(page: str, folder: Path = RESULTS) -> str:
    """The page with what was measured after each mark."""
    documents = read(folder)
    return redrawn(page, lambda name: TABLES[name](documents))


if __name__ == "__main__":
    write_tables(__doc__, PAGE, page_with_tables)
