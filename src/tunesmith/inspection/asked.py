"""What the command asks for: which models, which texts, and what is shown of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from tunesmith.data import sources
from tunesmith.errors import InputError
from tunesmith.inspection.embeddings import Map
from tunesmith.inspection.look import Inspection, Sampling, look
from tunesmith.inspection.reading import SHARE_OF_MEMORY, Given
from tunesmith.inspection.settings import ALONE, InspectConfig
from tunesmith.inspection.subject import Subject, open_subject
from tunesmith.records import Conversation, Example, LabelledText, PlainText
from tunesmith.runs.folder import MANIFEST
from tunesmith.runs.run import read_manifest
from tunesmith.terminal import describe_bytes, say

MOST_TEXTS = 500


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts as points, in each model; `labels` are empty where the texts have none."""

    source: str
    texts: list[str]
    labels: list[str]
    maps: list[Map]
    note: str


def look_as_asked(config: InspectConfig) -> Inspection:
    """The text in the model, and in the one beside it; a run is shown beside its base where that takes little memory.

    Raises:
        InputError: what was given cannot be used.
    """
    subject = open_subject(config.model)
    other = _open_other(subject, config)
    subjects = [subject] if other is None else [subject, other]
    return look(subjects, Given(config.text, config.answer, config.chat))


def sampling_of(config: InspectConfig) -> Sampling:
    return Sampling(config.temperature, config.top_k, config.top_p)


def map_texts(inspection: Inspection, config: InspectConfig) -> Texts | None:
    """The texts that were asked for, at most `MOST_TEXTS` of them.

    Raises:
        InputError: no texts in that file.
    """
    if config.texts is None:
        return None
    rows = sources.load(config.texts, None, config.columns).rows
    chosen = [rows[at] for at in range(min(MOST_TEXTS, len(rows)))]
    note = f"the first {MOST_TEXTS:,} of {len(rows):,} texts" if len(rows) > MOST_TEXTS else ""
    texts = [_text_of(row, config.texts) for row in chosen]
    labels = [_label_of(row) for row in chosen]
    maps = inspection.map(texts, config.map)
    return Texts(config.texts, texts, labels if any(labels) else [], maps, note)


def _open_other(subject: Subject, config: InspectConfig) -> Subject | None:
    if config.beside is not None:
        return None if config.beside == ALONE else open_subject(config.beside)
    folder = Path(config.model).expanduser()
    if not (folder / MANIFEST).is_file():
        return None
    base = str(read_manifest(folder)["parent"]["name"])
    needed = sum(weight.numel() * 4 for weight in subject.model.parameters())
    if needed > psutil.virtual_memory().available // SHARE_OF_MEMORY:
        say(f"its base {base} would take {describe_bytes(needed)} more, so it is left out; --beside {base} shows it")
        return None
    try:
        other = open_subject(base)
    except InputError as error:
        say(f"its base cannot be shown beside it: {error}")
        return None
    say(f"beside its base {base}; --beside {ALONE} leaves it out")
    return other


def _text_of(row: Example, source: str) -> str:
    """A text, or the last question of a conversation."""
    if isinstance(row, LabelledText):
        return row.whole
    if isinstance(row, PlainText):
        return row.text
    if isinstance(row, Conversation):
        asked = [message.content for message in row.messages if message.role == "user"]
        return (asked or [row.messages[0].content])[-1]
    raise InputError(f"{source}: its rows are neither texts nor conversations, so there is no map of them")


def _label_of(row: Example) -> str:
    if not isinstance(row, LabelledText):
        return ""
    return ", ".join(row.target) if isinstance(row.target, tuple) else str(row.target)
