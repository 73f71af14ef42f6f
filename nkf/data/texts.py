"""What the commands under ``nkf data`` print."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nkf.data.check import CheckReport
from nkf.data.counts import ClassCounts, ImportReport, sums
from nkf.data.labels import EXPRESSIONS
from nkf.data.pack import Pack


def print_report(report: ImportReport) -> None:
    """Print counts by split and class, leaks and landmarks; warnings go to standard error."""
    for warning in report.warnings:
        print("nkf: warning:", warning.replace("\n", " "), file=sys.stderr)
    print_counts(report.images, report.counts)
    if report.splits_as_known:
        print(f"counts as in a complete copy of {report.dataset}: {', '.join(report.splits_as_known)}")
    for reason, count in report.left_out.items():
        print(f"left out: {count:,} {reason}")
    for pair, count in report.leaks_found.items():
        print(f"duplicates: {count:,} {pair}")
    if report.leaks_dropped:
        print(f"dropped from train: all {report.leaks_dropped:,} images that show one of valid, of test or of the list")
    elif any(report.leaks_found.values()):
        print("(--drop-leaks leaves such images out of train)")
    print(f"landmarks: {report.landmarks_found:,} found, {report.landmarks_missing:,} missing")
    if report.images_skipped:
        print(f"skipped: {report.images_skipped:,} unreadable images")


def print_counts(images: Mapping[str, int], counts: ClassCounts) -> None:
    """Print a table of images by split and class, and how many each rule labels."""
    rows: list[Sequence[str]] = [["split", "images"]]
    first: dict[str, dict[str, int]] = next(iter(counts.values()), {})
    totals = sums(counts)
    if counts:
        rows[0] = ["split", "images", *EXPRESSIONS, *("labelled" if how == "label" else how for how in counts)]
    for split, number in images.items():
        row = [split, f"{number:,}"]
        if counts:
            row += [f"{first.get(split, {}).get(name, 0):,}" for name in EXPRESSIONS]
            row += [f"{splits.get(split, 0):,}" for splits in totals.values()]
        rows.append(row)
    print_table(rows)
    if len(counts) > 1:
        print(f"(classes under the rule {next(iter(counts))}; then the images that each rule keeps)")


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of texts in columns, aligned to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def print_pack(pack: Pack) -> None:
    """Print what a pack is and what is in it."""
    manifest = pack.manifest
    size = sum(shard["bytes"] for shard in manifest["shards"])
    print(f"{pack.path}: {manifest.get('dataset', 'a dataset')}, {len(pack):,} images, {size / 1e6:,.1f} MB")
    shown = ("source", "layout", "label_file", "crop", "release", "protocol", "test_split_is", "licence", "nkf_version")
    for key in shown:
        if manifest.get(key):
            print(f"{key.replace('_', ' ')}: {manifest[key]}")
    if carved := manifest.get("valid_carved"):
        print(f"valid: {carved['share']:.0%} of train, seed {carved['seed']}")
    print_counts(manifest["images_by_split"], manifest.get("counts", {}))
    for line in _columns(pack):
        print(line)


def _columns(pack: Pack) -> list[str]:
    """One line for each further column: how many images have it, and its values."""
    sources = _tally(pack.column("landmarks_source").tolist())
    lines = ["landmarks: " + ", ".join(f"{name} {count:,}" for name, count in sources.items())]
    for name in pack.metadata_names:
        column = pack.column(name)
        if column.ndim > 1:
            lines.append(f"{name}: {column.shape[1]} numbers each")
        elif column.dtype.kind == "U":
            given = _tally([value for value in column.tolist() if value])
            few = ", ".join(f"{value} {count:,}" for value, count in list(given.items())[:8])
            lines.append(f"{name}: {few}" if len(given) <= 8 else f"{name}: {len(given):,} different ones")
        else:
            known = column[column == column]
            span = f", {known.min():g} to {known.max():g}" if len(known) else ""
            lines.append(f"{name}: {len(known):,} of {len(column):,}{span}")
    return lines


def _tally(values: Sequence[Any]) -> dict[Any, int]:
    """How often each value comes, the most frequent first."""
    return dict(Counter(values).most_common())


def print_check(report: CheckReport) -> None:
    """Print what a check found."""
    print_counts(report.images_by_split, report.counts)
    for problem in report.problems:
        print("wrong:", problem)
    for warning in report.warnings:
        print("warning:", warning)
    wrong = len(report.problems)
    verdict = f"{wrong} things are wrong" if wrong > 1 else "1 thing is wrong" if wrong else "nothing is wrong"
    print(f"{report.pack}: {report.images:,} images checked, {verdict}")
