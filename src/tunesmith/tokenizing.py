"""Stage: texts -> a tokenizer, or a model whose tokenizer knows their words; and what that is worth, on other texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.config_pretrain import TokenizerConfig
from tunesmith.data.corpus import divide, read_texts
from tunesmith.data.vocabulary import train_tokenizer
from tunesmith.data.words import encode_whole
from tunesmith.errors import InputError
from tunesmith.models.heads import choose_class, is_encoder
from tunesmith.models.load import find_base, load_config, load_tokenizer, quietly, resolve_model
from tunesmith.models.template import check_template
from tunesmith.records import Examples, PlainText
from tunesmith.storage import appearing

WORD = re.compile(r"[^\W\d_][\w'-]*[^\W_]")
# A word that stands in the texts less often teaches its token next to nothing.
FEWEST = 10


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a tokenizer fits texts.

    characters_per_token, bytes_per_token   the more, the less a model has to read
    unknown                                 share of the tokens that stand for what it does not know
    in_bytes                                share of the tokens that are single bytes of a character, or bytes that it
                                            falls back to
    """

    name: str
    vocabulary: int
    tokens: int
    characters_per_token: float
    bytes_per_token: float
    unknown: float
    in_bytes: float


@dataclass(frozen=True, slots=True)
class Made:
    """What was made, and how it and others fit the texts that were held out. `words` were added."""

    folder: Path
    fits: tuple[Fit, ...]
    words: tuple[str, ...] = ()


def make_tokenizer(config: TokenizerConfig) -> Made:
    """Trains a tokenizer, or extends a model by words, and saves it.

    Raises:
        InputError: wrong data, model or sizes; an output folder that exists.
    """
    folder = _find_place(config)
    parts = divide(read_texts(config.data, config), config)
    train, test = _texts(parts.train), _texts(parts.test)
    others = [name for name in (config.beside, config.extend) if name is not None]
    fits = [measure_fit(name, _load(name), test) for name in others]
    if config.extend is not None:
        tokenizer, words = extend(config.extend, train, config.num_words, folder)
    else:
        template = config.chat_template.read_text(encoding="utf-8") if config.chat_template is not None else None
        check_template(template, str(config.chat_template))
        tokenizer, words = train_tokenizer(train, config.kind, config.vocabulary, config.special, template), ()
        with appearing(folder) as partial:
            tokenizer.save_pretrained(partial)
    return Made(folder, (measure_fit(folder.name, tokenizer, test), *fits), words)


def _find_place(config: TokenizerConfig) -> Path:
    """Raises an InputError when it is taken."""
    name = f"{config.extend}-extended" if config.extend is not None else f"{config.kind}-{config.vocabulary}"
    folder = (config.output or Path("tokenizers") / f"{Path(config.data).stem}-{Path(name).name}").expanduser()
    if folder.exists():
        raise InputError(f"output '{folder}' exists already. Give another --output")
    return folder


def _texts(examples: Examples) -> list[str]:
    return [row.text for row in examples.rows if isinstance(row, PlainText)]


def _load(name: str) -> PreTrainedTokenizerBase:
    return load_tokenizer(resolve_model(name), name, "classification")


def measure_fit(name: str, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Fit:
    """Of a tokenizer on texts."""
    tokens = [token for ids_T in encode_whole(texts, tokenizer, as_text=True) for token in ids_T.tolist()]
    counts, size = Counter(tokens), max(1, len(tokens))
    in_bytes = sum(count for token, count in counts.items() if _is_byte(tokenizer, token))
    return Fit(
        name=name,
        vocabulary=len(tokenizer),
        tokens=len(tokens),
        characters_per_token=sum(map(len, texts)) / size,
        bytes_per_token=sum(len(text.encode()) for text in texts) / size,
        unknown=counts.get(tokenizer.unk_token_id, 0) / size,
        in_bytes=in_bytes / size,
    )


def _is_byte(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """A piece of a character: <0x..>, or what is no text by itself."""
    name = str(tokenizer.convert_ids_to_tokens(token))
    return bool(re.fullmatch(r"<0x[0-9A-F]{2}>", name)) or "\N{REPLACEMENT CHARACTER}" in tokenizer.decode([token])


# Words for a model


def extend(name: str, texts: Iterable[str], num_words: int, folder: Path) -> tuple[PreTrainedTokenizerBase, Any]:
    """A model with words as tokens, saved to a folder; returns its tokenizer, and the words.

    The embedding of each word, and its row of the head, begin as the mean of those of its old pieces, so that the model
    takes and gives it where it took and gave these.

    Raises:
        InputError: no word stands in the texts often enough.
    """
    source = resolve_model(name)
    base = find_base(source, name)
    if base != source:
        raise InputError(f"'{name}' is an adapter. Export it first: tunesmith export {name} --output DIR")
    tokenizer = _load(name)
    words = choose_words(texts, tokenizer, num_words)
    if not words:
        raise InputError(f"no word that '{name}' cuts into pieces stands in the texts {FEWEST} times. Give more text")
    pieces = [encode_whole([word], tokenizer, as_text=True)[0].tolist() for word in words]
    # At the beginning of a word alone where words begin with their blank; else as a whole word.
    has_blank = words[0].startswith(" ")
    tokenizer.add_tokens([AddedToken(word, single_word=not has_blank, normalized=not has_blank) for word in words])
    config = load_config(base, name)
    auto: Any = AutoModel if is_encoder(config) else choose_class(config, "text")
    with quietly():
        model = auto.from_pretrained(base, trust_remote_code=False, use_safetensors=True)
        add_rows(model, [tokenizer.convert_tokens_to_ids(word) for word in words], pieces, len(tokenizer))
        with appearing(folder) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    return tokenizer, tuple(word.strip() for word in words)


def choose_words(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, num_words: int) -> list[str]:
    """Those that would save the most tokens: how often a word stands there, times its pieces but one.

    With their blank before them where a tokenizer keeps blanks.
    """
    counts = Counter(word for text in texts for word in WORD.findall(text))
    often = [word for word, count in counts.items() if count >= FEWEST]
    blank, plain = (encode_whole([text], tokenizer)[0].tolist() for text in (" a", "a"))
    given = [f" {word}" if blank != plain else word for word in often]
    saved = {
        # One that is unknown saves all of itself.
        text: counts[word] * (len(word) if tokenizer.unk_token_id in ids_T else len(ids_T) - 1)
        for word, text, ids_T in zip(often, given, encode_whole(given, tokenizer, as_text=True), strict=True)
    }
    best = sorted((text for text, gain in saved.items() if gain), key=lambda text: (-saved[text], text))
    if blank == plain and tokenizer("A")["input_ids"] == tokenizer("a")["input_ids"]:  # it reads in lower case
        best = list(dict.fromkeys(text.lower() for text in best))
    return best[:num_words]


@torch.no_grad()
def add_rows(model: PreTrainedModel, new: Sequence[int], pieces: Sequence[Sequence[int]], size: int) -> None:
    """Embeddings and head for `size` tokens; the rows of `new` begin as the mean of those of their pieces."""
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    means = [
        [table.weight[list(ids)].float().mean(0) for ids in pieces] if table is not None else [] for table in tables
    ]
    if size > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(size, mean_resizing=False)
    for table, rows in zip([model.get_input_embeddings(), model.get_output_embeddings()], means, strict=True):
        for token, row in zip(new, rows, strict=False):
            table.weight[token] = row.to(table.weight.dtype)
