"""How a terminal shows what becomes of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tunesmith.inspection import attention, lens
from tunesmith.inspection.asked import Texts
from tunesmith.inspection.changes import Change
from tunesmith.inspection.look import Inspection, NextWord, Sampling
from tunesmith.inspection.reading import Side
from tunesmith.inspection.tokens import Token
from tunesmith.terminal import describe_count

TOKEN_STYLES = ("black on bright_cyan", "black on bright_yellow", "black on bright_green", "black on bright_magenta")
SPECIAL_STYLE = "dim reverse"
BAR = 24  # cells of a certain word
MOST_WEIGHTS = 10
COUNTING = 8


def show(inspection: Inspection, place: int | None, count: int, sampling: Sampling) -> Iterator[RenderableType]:
    """Tokens, next word, answer, layers and what counts, in this order; a model without words has fewer."""
    yield from _show_tokens(inspection)
    if inspection.has_words:
        word = inspection.next_word(place, count, sampling)
        yield next_word_table(inspection, word)
        if inspection.can_be_said:
            yield said_table(inspection)
        yield lens_table(inspection, word.place)
        yield Text(lens.CAVEAT, style="dim")
        place = word.place
    yield _counting(inspection, -1 if place is None else place)
    yield Text(attention.CAVEAT, style="dim")
    yield from (Text(f"note  {note}", style="yellow") for note in inspection.notes)


def _show_tokens(inspection: Inspection) -> Iterator[RenderableType]:
    per_token = inspection.characters_per_token()
    alike = inspection.is_alike
    for at, reading in enumerate(inspection.readings[:1] if alike else inspection.readings):
        name = " and ".join(inspection.names) if alike else reading.subject.name
        for side in reading.tokens_of:
            tokens = inspection.tokens(side, at)
            what = "source, " if side == "source" else ""
            said = f"  {what}{describe_count(len(tokens), 'token')}, {per_token[at]:.1f} characters of text to a token"
            yield Text(name, style="bold").append(said, style="not bold dim")
            yield token_line(tokens)


def token_line(tokens: Sequence[Token]) -> Text:
    """Each token in a colour of its own, with its id; without colours in []."""
    line = Text()
    for at, token in enumerate(tokens):
        style = SPECIAL_STYLE if token.special else TOKEN_STYLES[at % len(TOKEN_STYLES)]
        line.append(f"[{_plain(token.text)}]", style=style).append(f"{token.id} ", style="dim")
    return line


def next_word_table(inspection: Inspection, word: NextWord) -> Table:
    """Bars of the first model; entropies in bits."""
    names = [reading.subject.name for reading in inspection.speaking]
    table = _table("next word" if inspection.readings[0].subject.family != "encoder" else "masked word", names)
    for each in word.words:
        _add_row(table, _plain(each.text), each.probabilities, each.difference)
    changed = word.rests[0] - word.rests[1] if len(word.rests) == 2 else None
    _add_row(table, "all others", word.rests, changed, "dim")
    _add_plain(table, "entropy, bits", [f"{entropy:.2f}" for entropy in word.entropies])
    if word.true is not None:
        _add_plain(table, f"rank of {_plain(word.true)}", [f"{rank:,}" for rank in word.ranks])
    return table


def _table(title: str, names: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(title, no_wrap=True)
    for name in names:
        table.add_column(_short(name), justify="right", max_width=24, no_wrap=True)
    if len(names) == 2:
        table.add_column("difference", justify="right")
    table.add_column("")
    return table


def _add_row(
    table: Table, text: str, shares: Sequence[float | None], difference: float | None, style: str = ""
) -> None:
    cells = ["-" if share is None else f"{100 * share:.1f} %" for share in shares]
    changed = [] if difference is None else [f"{100 * difference:+.1f}"]
    table.add_row(Text(text), *cells, *changed, Text("█" * round(BAR * (shares[0] or 0)), style="cyan"), style=style)


def _add_plain(table: Table, text: str, cells: Sequence[str]) -> None:
    table.add_row(Text(text), *cells, style="dim")


def said_table(inspection: Inspection) -> Table:
    """log-probabilities in nats of each token of the answer, and their sum."""
    names = inspection.names
    table = _table("answer, nats", names)
    said = inspection.said()
    for one in said:
        changed = [] if one.difference is None else [f"{one.difference:+.2f}"]
        table.add_row(Text(_plain(one.token.text)), *(f"{value:.2f}" for value in one.logprobs), *changed)
    sums = [sum(one.logprobs[at] for one in said) for at in range(len(names))]
    changed = [f"{sums[0] - sums[1]:+.2f}"] if len(names) == 2 else []
    table.add_row("in all", *(f"{value:.2f}" for value in sums), *changed, style="bold")
    return table


def lens_table(inspection: Inspection, place: int) -> Table:
    """What each layer would say at a place."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("layer")
    each = inspection.lens()
    names = [reading.subject.name for reading in inspection.readings if reading.logits is not None]
    for name in names:
        table.add_column(Text("would say, ").append(_short(name)), max_width=40, no_wrap=True)
    for layer in range(max(map(len, each))):
        cells = []
        for layers in each:
            at = min(place, len(layers[0]) - 1)  # another tokenizer, another length
            text, share = layers[layer][at] if layer < len(layers) else ("", 0.0)
            cells.append(Text(f"{_plain(text)}  ").append(f"{100 * share:.1f} %", style="dim"))
        table.add_row("words" if layer == 0 else str(layer), *cells)
    return table


def _counting(inspection: Inspection, place: int) -> Text:
    """The tokens without which most would change, in the first model."""
    reading = inspection.readings[0]
    side: Side = "own" if reading.source is None else "source"
    tokens, counts = inspection.tokens(side), attention.occlusion(reading, place).tolist()
    order = sorted(range(len(tokens)), key=lambda at: -counts[at])[:COUNTING]
    unit = "1 - cosine" if reading.logits is None else "nats less without it"
    line = Text("what counts, ", style="bold").append(f"{unit}:", style="not bold dim")
    for at in order:
        line.append(f"  {_plain(tokens[at].text)} ").append(f"{counts[at]:.2f}", style="dim")
    return line


def changes_table(changes: Sequence[Change]) -> Table:
    """Where weights changed most, of each matrix how much and in how many directions."""
    changed = [change for change in changes if change.relative > 0]
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(f"weights changed: {len(changed):,} of {len(changes):,}")
    for title in ("changed by", "directions"):
        table.add_column(title, justify="right")
    for change in sorted(changed, key=lambda one: -one.relative)[:MOST_WEIGHTS]:
        rank = "-" if change.rank is None else f"{change.rank:.1f}"
        table.add_row(Text(change.name), f"{100 * change.relative:.2f} %", rank)
    return table


def map_line(texts: Texts, names: Sequence[str]) -> Text:
    """How much of the differences between texts a map shows; the map itself is on the page."""
    line = Text(f"map of {describe_count(len(texts.texts), 'text')} of {texts.source}", style="bold")
    line.append(f" ({texts.note})" if texts.note else "", style="not bold")
    for name, found in zip(names, texts.maps, strict=True):
        shares = " and ".join(f"{100 * share:.0f} %" for share in found.explained) or "no share known"
        line.append(f"  {name}: {shares} of the variance", style="not bold dim")
    return line.append("; --page draws it", style="not bold dim")


def _short(name: str) -> Text:
    """Of a path or a hub name the last part."""
    return Text(name.rstrip("/").rpartition("/")[2], overflow="ellipsis")


def _plain(text: str) -> str:
    """Ends of lines and blanks that nothing stands behind so that they can be seen, and no control characters."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥")
    shown = shown.rstrip(" ") + "␣" * (len(shown) - len(shown.rstrip(" ")))
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in shown)
