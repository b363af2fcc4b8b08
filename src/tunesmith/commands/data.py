"""The data commands."""

from __future__ import annotations

from typing import Any

from cyclopts import App

from tunesmith.commands.console import AsJson, ConfigFile, given, out, print_json, print_lines
from tunesmith.config import CheckConfig, TokensConfig
from tunesmith.flags import flags_of
from tunesmith.tables import proof_lines, report_lines, token_lines

app = App(name="data", help="Look at data before anything is trained on it.")


@app.command(name="check")
@flags_of(CheckConfig)
def data_check(source: str, /, *, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> int:
    """Look for faults: duplicates, leaks, wrong labels, damage, secrets. The exit code is 2 when there are errors."""
    from tunesmith.checking import check_data

    checked = check_data(CheckConfig.read(config, {"data": source, **given(settings)}))
    if as_json:
        print_json({**checked.report.to_plain(), "written": checked.written})
    else:
        for line in report_lines(checked.report):
            out.print(line, soft_wrap=True)
        print_lines(f"written  {path}" for path in checked.written)
    return 2 if checked.report.count("error") else 0


@app.command(name="tokens")
@flags_of(TokensConfig)
def data_tokens(source: str, /, *, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Show the very tokens that would be trained: trained, context only, special, cut."""
    from tunesmith.checking import show_tokens
    from tunesmith.data.view import write_view

    settled = TokensConfig.read(config, {"data": source, **given(settings)})
    shown = show_tokens(settled)
    if settled.output is not None:
        write_view(settled.output, settled.model, settled.data, shown.proof, shown.rows)
    if as_json:
        return print_json({"proof": shown.proof, "rows": shown.rows})
    for row in shown.rows:
        for line in token_lines(row, settled.ids, out.is_terminal and out.color_system is not None):
            out.print(line, soft_wrap=True)
        out.print()
    out.print("\n".join(proof_lines(shown.proof)), markup=False, soft_wrap=True)
    print_lines([] if settled.output is None else [f"written  {settled.output}"])
