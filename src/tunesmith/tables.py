"""Results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from tunesmith.outcomes import Interval
from tunesmith.terminal import describe_bytes, describe_count, describe_seconds

if TYPE_CHECKING:  # not at run time: it brings torch, and help texts should come at once
    from tunesmith.data.quality.report import Report
    from tunesmith.data.signal import Proof
    from tunesmith.data.view import ShownRow
    from tunesmith.feedback.agreement import Measure
    from tunesmith.runs.doctor import Health
    from tunesmith.runs.past import PastRun
    from tunesmith.train.plan import Forecast

SEVERITY_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
KIND_STYLES = {
    "trained": "bold green",
    "trained special": "bold black on green",
    "special": "cyan",
    "context": "dim",
    "cut": "red strike",
}
FINDING_ROWS = 3  # of each finding in the terminal; the page and --json have more


def plan_table(forecasts: Sequence[Forecast]) -> Table:
    """Memory by what it is for, arithmetic, time, disk.

    Memory is in MB throughout, so that columns can be added up by eye.
    """
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("")
    table.add_column("method")
    for title in (
        "trained",
        "peak MB",
        "weights",
        "grads",
        "optim.",
        "activ.",
        "store",
        "base",
        "TFLOP",
        "time",
        "disk",
    ):
        table.add_column(title, justify="right")
    for one in forecasts:
        if not one.num_steps:
            table.add_row("-", one.method, *["-"] * 10, style="dim")
            continue
        held = one.memory
        passing = held.activations + held.temporaries + held.prefix
        parts = (one.peak, held.parameters, held.gradients, held.optimizer, passing, held.base)
        cost = (f"{one.flops / 1e12:,.1f}", describe_seconds(one.seconds), describe_bytes(one.disk))
        cells = [f"{one.trained:,}", *(f"{size / 1e6:,.0f}" for size in parts), *cost]
        table.add_row("✓" if one.fits else "✗", one.method, *cells, style="" if one.fits else "red")
    free = describe_bytes(forecasts[0].available)
    table.caption = f"✓ fits   ✗ does not fit into the {free} that are free   activ.: and what else passes"
    table.caption_justify = "left"
    return table


def methods_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Ways to adjust the weights, family by family."""
    sized = "trained" in rows[0]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("method", no_wrap=True)
    for title in ("trained", "share", "rate") if sized else ():
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("saved as", "merges", "what"):
        table.add_column(title, no_wrap=title != "what")
    family = ""
    for row in rows:
        if row["family"] != family:
            family = row["family"]
            table.add_row(family, style="bold cyan")
        refused = bool(row.get("refusal"))
        sizes = [] if not sized else ["-"] * 3 if refused else _sizes(row)
        what = row["refusal"] if refused else row["summary"]
        table.add_row(
            f"  {row['name']}", *sizes, row["saved_as"], _yes(row["merges"]), what, style="dim" if refused else ""
        )
    return table


def _sizes(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['trained']:,}", f"{row['share']:.2%}", f"{row['learning_rate']:g}"]


def _yes(value: bool) -> str:
    return "yes" if value else "-"


def methods_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same as a table in Markdown, with papers and defaults."""
    titles = (
        "method",
        "what is trained",
        "paper",
        "rate: head / text",
        "other defaults",
        "saved as",
        "merges",
        "starts equal",
    )
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    family = ""
    for row in rows:
        if row["family"] != family:
            family = row["family"]
            lines.append(f"| **{family}** " + "|" * len(titles))
        rates = " / ".join(f"{rate:g}" for rate in row["learning_rate"]) + (" · 512 / width" if row["by_width"] else "")
        settings = ", ".join(f"{key} {value}" for key, value in row["settings"].items())
        flags = (row["saved_as"], _yes(row["merges"]), _yes(row["starts_equal"]))
        lines.append(
            f"| `{row['name']}` | " + " | ".join((row["summary"], row["paper"], rates, settings, *flags)) + " |"
        )
    return "\n".join(lines)


def report_lines(report: Report) -> list[Text]:
    """Findings, worst first: what, how to mend it, and the first rows of each."""
    lines = [Text(report.card["recognised"])]
    for finding in report.findings:
        line = Text.assemble((f"{finding.severity:<8}", SEVERITY_STYLES[finding.severity]), (finding.check, "bold"))
        lines += [Text(), line.append(f": {finding.summary}"), Text(f"        {finding.mend}.", style="italic")]
        for row in finding.shown[:FINDING_ROWS]:
            why = f"  [{row.why}]" if row.why else ""
            lines.append(
                Text.assemble("        ", (f"{row.origin}  " if row.origin else "", "dim"), row.excerpt, (why, "dim"))
            )
    if not report.findings:
        lines += [Text(), Text("nothing was found", style="green")]
    counts = ", ".join(describe_count(report.count(severity), severity) for severity in SEVERITY_STYLES)
    return [*lines, Text(), Text(counts, style="bold")]


def token_lines(row: ShownRow, with_ids: bool, is_coloured: bool) -> list[Text]:
    """One row of data as its tokens; without colours trained ones stand in [], cut ones in ~~."""
    title = Text(f"{row.origin}  ", style="bold")
    if row.target:
        title.append(f"-> {row.target}  ")
    title.append(f"{row.num_tokens:,} tokens", style="dim")
    if row.num_trained:
        title.append(f", {row.num_trained:,} trained", style="dim")
    if row.num_cut:
        title.append(f", {row.num_cut:,} more cut off", style="red")
    body = Text()
    for piece in row.pieces:
        trained = piece.kind.startswith("trained")
        shown = piece.text.replace("\n", "⏎\n")
        if not is_coloured:
            shown = f"[{shown}]" if trained else f"~{shown}~" if piece.kind == "cut" else shown
        body.append(shown, style=KIND_STYLES[piece.kind])
        if with_ids:
            body.append("".join(f"·{token}" for token in piece.ids) + " ", style="dim")
    body.rstrip()
    return [title, body]


def proof_lines(proof: Proof) -> list[str]:
    """What the rows teach, in lines of a name and what it is."""
    signal = proof.signal
    context = signal.num_tokens - signal.num_trained
    lines = [
        f"rows      {signal.num_rows:,}"
        + (f", {proof.num_left_out:,} too long and left out" * bool(proof.num_left_out))
    ]
    if signal.num_trained:
        lines += [
            f"trained   {signal.num_trained:,} tokens ({signal.num_trained / signal.num_tokens:.0%})",
            f"context   {context:,} tokens",
            f"stop      trained in {proof.num_stopped:,} of {signal.num_rows:,} rows",
        ]
    else:
        lines.append(f"tokens    {signal.num_tokens:,}")
    if signal.num_words:
        lines.append(f"judged    {signal.num_words:,} words, each at its first token")
    if signal.num_questions:
        lines.append(
            f"windows   of {signal.num_questions:,} questions, {signal.num_without:,} without an answer in them"
        )
    lost = f", {signal.num_lost:,} words lost" if signal.num_lost else ""
    lines.append(f"cut       {signal.num_cut_tokens:,} tokens in {signal.num_cut_rows:,} rows{lost}")
    if proof.num_idle:
        lines.append(f"nothing to train in {proof.num_idle:,} rows: {', '.join(proof.idle)}")
    lines.append("longest   " + ", ".join(f"{origin} ({length:,})" for origin, length in proof.longest))
    lines.append(f"packing   none is padding, which would be {proof.padding:.0%} of batches of {proof.PADDED_BATCH}")
    return [*lines, *([f"note      {proof.note}"] if proof.note else [])]


def reward_lines(report: Mapping[str, Any]) -> list[str]:
    """How a reward model agrees with rankings it has not seen."""
    found = report.get("test") or report["validation"]
    if not found["pairs"]:
        return ["no pair of unlike answers is left to judge the model by"]
    accuracy, longer = (Interval(**found[name]) for name in ("accuracy", "longer_wins"))
    lines = [
        f"agrees  {accuracy} of {found['pairs']:,} pairs to {found['prompts']:,} prompts it has not seen; "
        f"'the longer one wins' {longer}",
        f"sure    calibration error {found['calibration_error']:.3f}, log-loss {found['log_loss']:.3f} (0.693 knows "
        f"nothing), best temperature {found['temperature']:.2f}",
    ]
    for row in found["by_length_gap"]:
        gap = f"{row['above'] or '-inf'} to {row['to'] or 'inf'}"
        lines.append(f"        better answer longer by {gap} characters: {row['accuracy']:.3f} of {row['pairs']:,}")
    strangers = report.get("held_out_labelers")
    if strangers and strangers["pairs"]:
        lines.append(
            f"others  agrees {Interval(**strangers['accuracy'])} of {strangers['pairs']:,} pairs ranked by "
            f"people that it did not learn from ({strangers['labelers']:,})"
        )
    people = report.get("people_agree")
    if people and people["value"] is not None:
        lines.append(
            f"people  agree with each other {people['value']:.3f} over {people['num_items']:,} shared rankings"
        )
    shares = ", ".join(f"{row['n']}: {row['beats']:.2f} ({row['best']:.2f})" for row in found.get("best_of_n", ()))
    if shares:
        lines.append(f"best    of n answers its choice beats (people's would) of the rest {shares}")
    return lines


def doctor_lines(found: Sequence[Health]) -> Iterator[tuple[str, str]]:
    """What is damaged in runs and what can be saved, a line and its style each."""
    for health in found:
        yield f"{health.folder}: {health.content}, {'whole' if health.is_whole else 'damaged'}", ""
        for problem in health.problems:
            yield f"  damaged     {problem}", "red"
        for name, damage in health.checkpoints.items():
            yield f"  checkpoint  {name}: {damage or 'whole'}", "red" if damage else ""
        for path in health.left_overs:
            yield f"  left over   {path}: of a killed process; it may be removed", ""
        if health.advice:
            yield f"  {health.advice}", ""


def run_lines(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """What a training did, and what to do with it."""
    outcome = manifest["outcome"]
    losses = [point["validation_loss"] for point in outcome["curve"]]
    lines = [f"validation loss {losses[0]:.4f} before, {min(losses):.4f} after"]
    if "validation_reward" in outcome["curve"][0]:
        lines = list(_reward_change(outcome["curve"], outcome["best_step"]))
    speed = (
        f"{outcome['steps']} steps in {outcome['train_seconds']:.0f} s, {outcome['tokens_per_second']:,.0f} tokens/s"
    )
    lines.append(f"{speed}, peak {describe_bytes(manifest['peak_memory'])}")
    if planned := manifest.get("plan"):
        peak, seconds = describe_bytes(planned["peak_memory"]), describe_seconds(planned["seconds"])
        lines.append(f"planned {peak} and {seconds}; it took {describe_seconds(outcome['seconds'])} in all")
    if outcome["stopped_early"]:
        lines.append(f"stopped early; what was saved is step {outcome['best_step']}, the best evaluation")
    if "pretraining" in manifest:
        lines += pretraining_lines(manifest["pretraining"]["texts"])
    if "reward" in manifest:
        lines += reward_lines(manifest["reward"])
    if "validation_reward" in outcome["curve"][0] and "report.html" in manifest["files"]:
        lines.append(f"curves  {folder / 'report.html'}")
    verbs = {
        "generation": f"chat {folder}",
        "text": f"tune --model {folder} --data DATA",
        "ranking": f"align --algorithm ppo --reward {folder}",
    }
    return [*lines, f"saved   {folder}", f"next    tunesmith {verbs.get(manifest['task'], f'predict {folder}')}"]


def pretraining_lines(texts: Mapping[str, Any]) -> Iterator[str]:
    """Of each text's test part: bits a byte, or the loss where an encoder reads; before and after."""
    for name, found in texts.items():
        key = "bits_per_byte" if "bits_per_byte" in found["after"] else "loss"
        unit = "bits a byte" if key == "bits_per_byte" else "nats a token to be found"
        before = "" if found["before"] is None else f"{found['before'][key]:.4f} before, "
        yield f"test    {name}: {before}{found['after'][key]:.4f} after, {unit}"


def _reward_change(curve: Sequence[Mapping[str, float]], best_step: int) -> Iterator[str]:
    """Reward before and after, in deviations of the start, and what it cost in divergence."""
    before = curve[0]
    after = next((point for point in curve if point["step"] == best_step), curve[-1])
    rise = after["validation_reward"] - before["validation_reward"]
    deviation = before["validation_reward_std"] or float("nan")
    yield (
        f"reward  {before['validation_reward']:.3f} before, {after['validation_reward']:.3f} after: "
        f"{rise / deviation:+.2f} deviations of the start, at a divergence of {after['validation_kl']:.2f} nats an "
        "answer"
    )
    if "validation_gold" in after:
        yield f"gold    {before['validation_gold']:.3f} before, {after['validation_gold']:.3f} after"


def runs_table(runs: Sequence[PastRun]) -> Table:
    """Past runs, a line each."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("run", "state", "method", "model", "data", "when"):
        table.add_column(title, overflow="fold")
    for title in ("loss", "best", "time", "size"):
        table.add_column(title, justify="right", no_wrap=True)
    for run in runs:
        best = "-" if run.value is None else f"{run.metric} {run.value:.3f}"
        loss = "-" if run.loss is None else f"{run.loss:.4f}"
        seconds = "-" if run.seconds is None else describe_seconds(run.seconds)
        when = run.created[:16].replace("T", " ")
        row = (run.folder, run.state, run.method, run.model, run.data, when, loss, best, seconds)
        style = {"running": "green", "damaged": "red", "interrupted": "yellow"}.get(run.state, "")
        table.add_row(*row, describe_bytes(run.size), style=style)
    return table


def differing_table(names: Sequence[str], values: Mapping[str, Sequence[Any]]) -> Table:
    """Keys as rows, runs as columns."""
    table = Table(box=None, header_style="bold", pad_edge=False, title="keys that differ", title_justify="left")
    table.add_column("key", no_wrap=True)
    for name in names:
        table.add_column(name, overflow="fold")
    for key, found in values.items():
        table.add_row(key, *("-" if value is None else str(value) for value in found))
    return table


def fits_table(fits: Sequence[Any]) -> Table:
    """How well tokenizers fit the texts that were held out."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("tokenizer", overflow="fold")
    for name in ("vocabulary", "tokens", "characters a token", "bytes a token", "unknown", "in bytes"):
        table.add_column(name, justify="right")
    for fit in fits:
        numbers = (f"{fit.characters_per_token:.3f}", f"{fit.bytes_per_token:.3f}")
        shares = (f"{fit.unknown:.3%}", f"{fit.in_bytes:.3%}")
        table.add_row(fit.name, f"{fit.vocabulary:,}", f"{fit.tokens:,}", *numbers, *shares)
    return table


def rows_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Mappings with the same keys, a line each."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for key in rows[0]:
        table.add_column(key.replace("_bytes", ""))
    for row in rows:
        table.add_row(*(_cell(key, value) for key, value in row.items()))
    return table


def _cell(key: str, value: object) -> str:
    if key.endswith("_bytes"):
        return "no" if value is None else describe_bytes(float(str(value)))
    return str(value)


def agreement_table(measures: Sequence[Measure]) -> Table:
    from tunesmith.feedback.agreement import INSTRUCTGPT

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("measure", no_wrap=True)
    for title in ("value", "95 % interval", "items"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for one in measures:
        value = "-" if one.value is None else f"{one.value:.3f}"
        interval = "-" if one.low is None or one.high is None else f"[{one.low:.3f}, {one.high:.3f}]"
        table.add_row(one.name, value, interval, f"{one.num_items:,}", one.why)
    known = ", ".join(f"{who} {value:.3f} ±{error:.3f}" for who, (value, error) in INSTRUCTGPT.items())
    table.caption, table.caption_justify = f"InstructGPT, pairwise agreement: {known}", "left"
    return table
