"""Answers to be ranked: made by models, with all that is needed to make them again, or read from a file."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data import sources
from tunesmith.data.convert import to_ranking
from tunesmith.data.problems import Problems, RowError
from tunesmith.errors import InputError
from tunesmith.feedback.forms import MOST_CANDIDATES, Candidate, Item, clean
from tunesmith.feedback.settings import SampleConfig
from tunesmith.records import Conversation, Example, Judgement, LabelledText, Message, PlainText, Ranking, RawRow
from tunesmith.terminal import describe_count, say

if TYPE_CHECKING:  # not at run time: import of answers needs no torch
    from tunesmith.models.generate import Decoding
    from tunesmith.models.load import Network

ROUNDS = 3  # in which answers are drawn again that came out empty or equal to another
REFERENCE = "reference"


def read_prompts(config: SampleConfig) -> list[tuple[tuple[Message, ...], list[str], str]]:
    """(prompt, answers that the data has, where it stands), each prompt once, in the order of the data.

    Raises:
        InputError: data that cannot be read, or that has no prompts.
    """
    examples = sources.load_prompts(config.data, config.task, config.columns, config.encoding).rows
    found: dict[tuple[Message, ...], tuple[list[str], str]] = {}
    for row in examples:
        asked, answers = _prompt_of(row)
        prompt = tuple(replace(turn, content=clean(turn.content)) for turn in asked)
        known, _ = found.setdefault(prompt, ([], str(row.origin)))
        known += [answer for answer in answers if answer not in known]
    prompts = [(prompt, answers, origin) for prompt, (answers, origin) in found.items()]
    if config.max_prompts is not None and config.max_prompts < len(prompts):
        chosen = sorted(random.Random(config.seed).sample(range(len(prompts)), config.max_prompts))
        prompts = [prompts[at] for at in chosen]
    return prompts


def _prompt_of(row: Example) -> tuple[tuple[Message, ...], Sequence[str]]:
    """What is asked, and the answers that stand beside it."""
    match row:
        case Conversation():
            return row.messages[:-1], (row.messages[-1].content,)
        case Ranking():
            return row.prompt, row.answers
        case Judgement():
            return row.prompt, (row.answer,)
        case LabelledText():
            return (Message("user", row.whole),), ()
        case PlainText():
            return (Message("user", row.text),), ()
        case _:
            raise InputError(f"{row.origin}: words with tags are no prompts. Give texts, or questions and answers")


def sample_items(config: SampleConfig) -> list[Item]:
    """Prompts with `num_answers` different answers each, the models taking turns.

    Each prompt goes through each model once, whatever the number of its answers. What was drawn depends on
    `seed`, the prompt's place and the answer's number; each answer's `source` says which these are.

    Raises:
        InputError: a model that cannot write, or a prompt that is too long for it.
    """
    prompts = read_prompts(config)
    made: list[list[Candidate]] = [
        [Candidate(clean(text), REFERENCE, {"origin": origin}) for text in answers][: MOST_CANDIDATES - 1]
        if config.references
        else []
        for _, answers, origin in prompts
    ]
    wanted = [min(config.num_answers + len(answers), MOST_CANDIDATES) for answers in made]
    for number, name in enumerate(config.models):
        due = [
            len(made[at]) + _share(want - len(made[at]), len(config.models) - number) for at, want in enumerate(wanted)
        ]
        _add_answers(config, name, [prompt for prompt, _, _ in prompts], made, due)
    items = [
        Item(prompt, tuple(answers), origin)
        for (prompt, _, origin), answers in zip(prompts, made, strict=True)
        if len(answers) > 1
    ]
    _tell(items, len(prompts), sum(wanted))
    return items


def _share(num_left: int, num_models: int) -> int:
    return -(-num_left // num_models)


def _tell(items: Sequence[Item], num_prompts: int, num_wanted: int) -> None:
    num_made = sum(len(one.candidates) for one in items)
    if len(items) < num_prompts:
        say(f"{describe_count(num_prompts - len(items), 'prompt')} left out: all of its answers were alike or empty")
    if num_made < num_wanted:
        say(f"{num_wanted - num_made:,} answers fewer than asked for: alike or empty. A higher temperature may help")


def _add_answers(
    config: SampleConfig, name: str, prompts: Sequence[Sequence[Message]], made: list[list[Candidate]], due: list[int]
) -> None:
    """Draws answers of one model until each prompt has as many as are due, in a few rounds at most."""
    from tunesmith.data.ids import prompt_ids
    from tunesmith.evaluation.tasks import open_network
    from tunesmith.models.generate import Decoding

    network = open_network(name)
    if network.task != "generation":
        raise InputError(f"'{name}' does {network.task}, it cannot answer. Give a model or run that writes")
    ids = [prompt_ids(prompt, network.tokenizer) for prompt in prompts]
    for round_ in range(ROUNDS):
        short = [at for at in range(len(prompts)) if len(made[at]) < due[at]]
        if not short or (round_ and config.temperature == 0):
            return
        cuts = (config.top_p, config.top_k, config.seed + round_)
        decoding = Decoding(config.max_new_tokens, config.temperature, *cuts)
        for at, answers in zip(
            short, _draw(config, network, [ids[at] for at in short], decoding, made, due), strict=True
        ):
            _take_new(made[at], answers, due[at])


def _draw(
    config: SampleConfig,
    network: Network,
    ids: Sequence[Sequence[int]],
    decoding: Decoding,
    made: Sequence[Sequence[Candidate]],
    due: Sequence[int],
) -> Iterator[list[Candidate]]:
    from tunesmith.models.generate import sample
    from tunesmith.runtime import choose_precision, versions

    most = 1 if decoding.temperature == 0 else max(want - len(have) for want, have in zip(due, made, strict=True))
    dtype = choose_precision(config.precision, network.model.device)
    drawn = sample(network, ids, decoding, dtype, most, quiet=False)
    settings: dict[str, Any] = {
        "model": network.source,
        "fingerprint": network.fingerprint,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "top_k": decoding.top_k,
        "max_new_tokens": decoding.max_new_tokens,
        "seed": decoding.seed,
        "versions": versions(),
    }
    for place, answers in enumerate(drawn):
        yield [
            Candidate(
                clean(answer.text.strip()),
                network.source,
                {**settings, "prompt": place, "answer": number, "tokens": len(answer.ids), "finished": answer.finished},
            )
            for number, answer in enumerate(answers)
        ]


def _take_new(have: list[Candidate], answers: Sequence[Candidate], due: int) -> None:
    """Adds answers that are not empty and not there yet, until there are enough."""
    for answer in answers:
        is_new = answer.text and all(answer.text != one.text for one in have)
        if is_new and len(have) < due:
            have.append(answer)


def read_answers(data: str, is_gold: bool = False) -> list[Item]:
    """Items from rows with `prompt`, `answers` and, if they are known, `models` and `ranks`.

    Raises:
        InputError: rows that are none, each by line.
    """
    problems = Problems()
    found = []
    for path in sources.find_files(data) or [Path(data)]:
        for row in sources.iterate(path, problems):
            try:
                found.append(_item_of(row, is_gold))
            except RowError as problem:
                problems.add(row.origin, str(problem), row.fields)
    problems.settle(data)
    return found


def _item_of(row: RawRow, is_gold: bool) -> Item:
    fields = dict(row.fields)
    answers, models = fields.get("answers"), fields.get("models")
    if isinstance(answers, list) and any(isinstance(answer, Mapping) for answer in answers):
        raise RowError("'answers' must be texts; what model each is of stands in 'models', a list beside it")
    names: dict[str, str] = {part: part for part in ("prompt", "answers", "ranks", "system") if part in fields}
    if not {"prompt", "answers"} <= set(names):
        raise RowError(f"no 'prompt' or no 'answers' among {', '.join(fields)}. Add them")
    ranking = to_ranking(fields, names, row.origin)
    assert isinstance(ranking, Ranking)
    assert isinstance(answers, list)
    if models is not None and (not isinstance(models, list) or len(models) != len(answers)):
        raise RowError(f"'models' must be a list with one name for each of {len(answers)} answers")
    if is_gold and "ranks" not in names:
        raise RowError("no 'ranks', which gold items are made of. Add them, or leave --gold out")
    model_of = dict(zip(answers, models or ["imported"] * len(answers), strict=True))
    texts = list(dict.fromkeys(ranking.answers))
    if not 2 <= len(texts) <= MOST_CANDIDATES:
        raise RowError(f"{len(texts)} different answers; 2 to {MOST_CANDIDATES} can be ranked")
    made = tuple(Candidate(clean(text), str(model_of[text]), {"origin": str(row.origin)}) for text in texts)
    prompt = tuple(Message(turn.role, clean(turn.content)) for turn in ranking.prompt)
    return Item(prompt, made, str(row.origin), _levels(ranking, texts) if is_gold else ())


def _levels(ranking: Ranking, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    rank_of = dict(zip(reversed(ranking.answers), reversed(ranking.ranks), strict=True))  # of equal texts the best
    ranks = [rank_of[text] for text in texts]
    return tuple(tuple(at for at, one in enumerate(ranks) if one == rank) for rank in sorted(set(ranks)))
