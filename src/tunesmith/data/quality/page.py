"""The report as one page."""

from __future__ import annotations

from pathlib import Path

from tunesmith.data.quality.report import SEVERITIES, Report
from tunesmith.pages import write_page
from tunesmith.terminal import describe_count


def write_report(path: Path, data: str, report: Report) -> None:
    most = max((count for _, count in report.lengths), default=1)
    values = {
        "data": data,
        "card": report.card,
        "findings": report.findings,
        "counts": [describe_count(report.count(severity), severity) for severity in SEVERITIES],
        "lengths": [(edge, count, count / most) for edge, count in report.lengths],
        "classes": _shares(report),
    }
    write_page(path, "tunesmith.data.quality", "page.html.j2", values)


def _shares(report: Report) -> list[tuple[str, int, float]]:
    """(class, rows, share of the largest class), the largest twenty."""
    classes = report.card.get("classes", {})
    most = max(classes.values(), default=1)
    return [(name, count, count / most) for name, count in list(classes.items())[:20]]
