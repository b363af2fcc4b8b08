"""Commands that look inside models."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.text import Text

from tunesmith.commands.console import AsJson, ConfigFile, given, out, print_json, print_lines
from tunesmith.flags import flags_of
from tunesmith.inspection.settings import InspectConfig


@flags_of(InspectConfig)
def inspect(model: str, text: str, /, *, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """See what becomes of a text in a model: tokens, next word, answer, layers; a run beside its base.

    Parameters
    ----------
    model: A run folder, or a model by catalogue name, folder or hub name.
    text: What is read; of an encoder-decoder the source.
    """
    from tunesmith.inspection import screen
    from tunesmith.inspection.asked import look_as_asked, map_texts, sampling_of

    settled = InspectConfig.read(config, {"model": model, "text": text, **given(settings)})
    found, sampling = look_as_asked(settled), sampling_of(settled)
    texts = map_texts(found, settled)
    changes = found.changes() if settled.changes else None
    if settled.page is not None:
        from tunesmith.inspection.page import write_inspection

        write_inspection(settled.page, found, texts, settled.place, sampling)
    if as_json:
        plain = found.to_plain(settled.place, settled.count, sampling)
        return print_json({**plain, "changes": changes and [asdict(change) for change in changes], "texts": texts})
    for part in screen.show(found, settled.place, settled.count, sampling):
        out.print(part, soft_wrap=isinstance(part, Text))
        out.print()
    if changes is not None:
        out.print(screen.changes_table(changes))
    if texts is not None:
        out.print(screen.map_line(texts, found.names), soft_wrap=True)
    print_lines([] if settled.page is None else [f"written  {settled.page}"])
