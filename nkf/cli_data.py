"""What ``nkf data import`` prints."""

import sys

from nkf.data.check import ImportReport
from nkf.data.labels import EXPRESSIONS


def print_report(report: ImportReport) -> None:
    """Print counts by split and class, leaks and landmarks; warnings go to standard error."""
    for warning in report.warnings:
        print("nkf: warning:", warning.replace("\n", " "), file=sys.stderr)
    header = ["split", "images"]
    if report.counts:
        header += [*EXPRESSIONS, *report.totals]
    rows = [header]
    for split, images in report.images.items():
        row = [split, f"{images:,}"]
        if report.counts:
            row += [f"{report.counts.get(split, {}).get(name, 0):,}" for name in EXPRESSIONS]
            row += [f"{totals.get(split, 0):,}" for totals in report.totals.values()]
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    if report.counts:
        print("(classes under the rule majority; then the images that each rule keeps)")
    for pair, count in report.leaks_found.items():
        print(f"duplicates: {count:,} {pair}")
    if report.leaks_dropped:
        print(f"dropped from train: {report.leaks_dropped:,}")
    print(f"landmarks: {report.landmarks_found:,} found, {report.landmarks_missing:,} missing")
    if report.images_skipped:
        print(f"skipped: {report.images_skipped:,} unreadable images")
