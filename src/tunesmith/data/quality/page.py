"""The report as one self-contained HTML page: no script, no network, light and dark."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from tunesmith.data.quality.report import SEVERITIES, Report
from tunesmith.storage import write_text
from tunesmith.terminal import describe_count


def write_page(path: Path, data: str, report: Report) -> None:
    environment = Environment(
        loader=PackageLoader("tunesmith.data.quality", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    most = max((count for _, count in report.lengths), default=1)
    page = environment.get_template("page.html.j2").render(
        data=data,
        card=report.card,
        findings=report.findings,
        counts=[describe_count(report.count(severity), severity) for severity in SEVERITIES],
        lengths=[(edge, count, count / most) for edge, count in report.lengths],
        classes=_shares(report),
    )
    write_text(path, page)


def _shares(report: Report) -> list[tuple[str, int, float]]:
    """(class, rows, share of the largest class), the largest twenty."""
    classes = report.card.get("classes", {})
    most = max(classes.values(), default=1)
    return [(name, count, count / most) for name, count in list(classes.items())[:20]]
